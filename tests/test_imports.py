"""The borders between the packages, read from the source."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("core", "datasets_prep", "eval", "model_card", "pipeline")
SEALED = (
    "core", "datasets_prep", "eval", "model_card", "pipeline.engine", "pipeline.train", "pipeline.unlearn",
    "pipeline.publish", "pipeline.localhub", "pipeline.cost",
)  # fmt: skip
EVERYBODY = ("core", "datasets_prep.schema", "eval.schema")  # what all may import; core itself imports nobody
ALLOWED = {  # beyond that
    "model_card": {"eval.catalog", "eval.attacks.catalog"},
    "eval": {"pipeline.train.attention", "pipeline.train.packed", "datasets_prep.chat", "datasets_prep.text"},
    "pipeline.train": {"datasets_prep.chat"},
    "pipeline.cost": {  # what a section of a recipe takes
        "datasets_prep.config",
        "eval.config",
        "pipeline.train.config",
        "pipeline.unlearn.config",
        "pipeline.publish.config",
    },
    "pipeline.engine": {  # what a stage will do and need is read from the sections of a recipe
        "pipeline.recipe",
        "datasets_prep.config",
        "datasets_prep.prepare",  # the plan reads rows of local files
        "eval.config",
        "eval.catalog",
        "pipeline.train.config",
        "pipeline.cost",
        "pipeline.train.fit",
        "pipeline.train.facts",
        "pipeline.publish.schema",
        "pipeline.unlearn.config",
        "pipeline.publish.config",
    },
    "pipeline.unlearn": {"pipeline.train", "datasets_prep.chat", "datasets_prep.perturb", "datasets_prep.text"},
    "pipeline.publish": {"pipeline.localhub"},
}
HEAVY = {
    *("torch", "transformers", "trl", "datasets", "lm_eval", "matplotlib", "scipy", "sklearn", "peft", "accelerate"),
    *("starlette", "uvicorn"),
}
MAY_WAIT = {*HEAVY, "pyarrow"}  # what a command imports late if it may not need it


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


# What the command line reads before it runs a stage.
LIGHT = (
    "pipeline.__main__",
    *(name for name in FILES if name.startswith("pipeline.commands.")),
    "pipeline.stages",
    "pipeline.recipe",
    "pipeline.recipe_reference",
    *(name for name in FILES if name.startswith("pipeline.cost")),
    "pipeline.engine.plan",
    "pipeline.engine.rows",
    "pipeline.engine.summary",
    "pipeline.engine.launch",
    "pipeline.engine.live",
    "pipeline.engine.runner",
    "pipeline.train.start_model",
)
HELP = {"pipeline", "pipeline.commands", "pipeline.commands.shared", "core", "core.errors", "core.places"}


@cache
def imports(path: Path, *, lazy: bool = True) -> tuple[str, ...]:
    """Full names of what a file imports; without ``lazy`` only what happens when the module itself is imported."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                for alias in child.names:
                    name = f"{child.module}.{alias.name}"
                    yield name if name in FILES else str(child.module)
            yield from visit(child)

    return tuple(visit(ast.parse(path.read_text(encoding="utf-8"))))


def owner(module: str) -> str | None:
    return next((sealed for sealed in SEALED if module == sealed or module.startswith(f"{sealed}.")), None)


@pytest.mark.parametrize("module", [name for name in FILES if owner(name)])
def test_sealed_packages_import_neither_the_runner_nor_each_other(module: str) -> None:
    mine = owner(module)
    assert mine
    for imported in imports(FILES[module]):
        if imported.split(".")[0] not in PACKAGES or owner(imported) == mine:
            continue
        allowed = ALLOWED.get(mine, set()) | ({*EVERYBODY} if mine != "core" else set())
        assert any(imported == a or imported.startswith(f"{a}.") for a in allowed), f"{module} imports {imported}"


def test_the_check_sees_an_import_that_is_not_allowed(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from pipeline.engine import runner\n    import pipeline.stages\n")
    assert set(imports(file)) == {"pipeline.engine.runner", "pipeline.stages"}
    assert set(imports(file, lazy=False)) == set()


def reached(module: str, seen: set[str]) -> set[str]:
    """All modules of this project, and all others, that importing ``module`` imports."""
    for imported in imports(FILES[module], lazy=False):
        parts = imported.split(".")
        for name in [".".join(parts[: i + 1]) for i in range(len(parts))]:
            if name not in seen:
                seen.add(name)
                if name in FILES:
                    reached(name, seen)
    return seen


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_line_imports_nothing_heavy(module: str) -> None:
    assert not {name.split(".")[0] for name in reached(module, set())} & HEAVY


def test_help_imports_two_modules_of_ours() -> None:
    assert {name for name in reached("pipeline.__main__", set()) if name in FILES} == HELP


def late(path: Path) -> set[str]:
    """Our own modules that a file imports inside a function."""
    found = Counter(imports(path)) - Counter(imports(path, lazy=False))
    return {name for name in found if name in FILES}


# A stage imports its code when it runs, heavy or not.
@pytest.mark.parametrize(
    "module", [name for name in FILES if name.startswith("pipeline.") and name != "pipeline.stages"]
)
def test_our_own_modules_are_imported_at_the_top_unless_they_bring_something_heavy(module: str) -> None:
    assert {
        name for name in late(FILES[module]) if not {n.split(".")[0] for n in reached(name, set())} & MAY_WAIT
    } == set()


def test_a_late_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import core.errors\ndef f():\n    from core import digests\n    import torch\n")
    assert late(file) == {"core.digests"}


def test_nobody_rebinds_the_builtin_eval() -> None:
    """What ruff does not see (A004, S307): `import eval.config`."""
    for path in (*FILES.values(), *sorted((ROOT / "tests").glob("*.py"))):
        assert not re.search(r"^\s*import eval\b", path.read_text(encoding="utf-8"), re.MULTILINE), path
