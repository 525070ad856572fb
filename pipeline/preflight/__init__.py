"""What would fail later, found before the first stage. `doctor` prints it, and `release` begins with it.

Each check is a function that says in words what it found, and raises a ReleaseError, with what to do, if a stage would
fail. Only stages that are not done are checked. Nothing is downloaded but answers about repositories, and the few lines
that describe a model; nothing is written but temporary files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from core.errors import DataError, InputError, RecipeError, ReleaseError, SystemLimitError
from datasets_prep.schema import DataFacts, read_data_facts, read_rows
from eval.config import EvalConfig, Suite
from eval.records.facts import count_facts
from eval.verdicts import measurable
from model_card.agreement import refuse_unfinished
from pipeline.cost import devices
from pipeline.cost.fits import refuse_what_does_not_fit
from pipeline.cost.shape import shape_of
from pipeline.cost.work import SUITES, Cost, total
from pipeline.engine.machine import free_space
from pipeline.engine.plan import gigabytes, planned, sizes
from pipeline.engine.runner import Stage, Status, Store
from pipeline.preflight import models
from pipeline.preflight.access import readable
from pipeline.publish.package import refuse_answers
from pipeline.publish.sign import check_settings
from pipeline.publish.target import check_local, check_target, refuse_example
from pipeline.recipe import Recipe
from pipeline.stages import data_without_model, said_of
from pipeline.train.config import TrainConfig, refuse_no_layer
from pipeline.unlearn.false_answers import false_answers


class Finding(NamedTuple):
    """What was checked, the first stage that needs it, what was found, and why the stage would fail (None: fine).

    ``stage`` is empty if the problem itself names the stages, or is that of all together.
    """

    what: str
    stage: str
    found: str
    problem: str | None


class Preflight(NamedTuple):
    """A release that is about to run: its recipe, the stages that are not done, the state of all, and the store."""

    recipe: Recipe
    waiting: Sequence[Stage]
    states: Mapping[str, Status]
    store: Store

    def first(self, *names: str) -> str | None:
        """The first waiting stage of these names, or whose name begins with one that ends in a hyphen."""
        found = (s.name for s in self.waiting if s.name in names or s.name.startswith(_prefixes(names)))
        return next(found, None)

    def costs(self, device: devices.Device) -> dict[str, tuple[Any, Cost]]:
        """Configuration and cost of each waiting stage."""
        known = planned(self.recipe, self.states, device)
        return {stage.name: (stage.config, stage.costs(stage.config, known)) for stage in self.waiting}


def _prefixes(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name.endswith("-"))


def examine(release: Preflight, *, here: bool = True) -> list[Finding]:
    """All checks of the release. If its stages do not run ``here``, the device and packages for it are left out."""
    return _findings(_checks(release, here=here))


def examine_offline(release: Preflight) -> list[Finding]:
    """The checks of what the recipe says, and of rows that are on this machine."""
    return _findings(_offline_checks(release))


def to_fill_in(release: Preflight) -> list[Finding]:
    """What a recipe may leave open until it is released: commits, and the repository's name."""
    return _findings(_filled_in(release))


def _findings(checks: Iterable[Check]) -> list[Finding]:
    found = []
    for what, stage, check in checks:
        try:
            found.append(Finding(what, stage, check(), None))
        except ReleaseError as problem:
            found.append(Finding(what, stage, "", str(problem)))
    return found


def refuse(findings: Sequence[Finding]) -> None:
    """Raise InputError with every problem that was found."""
    problems = [f"{f.stage}: {f.problem}" if f.stage else f.problem for f in findings if f.problem]
    if problems:
        raise InputError("The release would not come to its end.\n" + "\n".join(problems))


Check = tuple[str, str, Callable[[], str]]
"""What is checked, the first stage that needs it, and the check."""


def _filled_in(release: Preflight) -> Iterator[Check]:
    names = [stage.name for stage in release.waiting]
    if names:
        yield "commits", names[0], partial(refuse_unpinned, release.recipe)
    if "publish" in names and release.recipe.publish.hub == "hf":
        yield "publication", "publish", partial(refuse_example, release.recipe.publish.repo)


def _offline_checks(release: Preflight) -> Iterator[Check]:
    names = [stage.name for stage in release.waiting]
    if not names:
        return
    if release.recipe.data.source.hub is None or release.states["data"].artifact:
        yield from _data(release)
    elif "gate" in names:
        yield "gates", "gate", partial(_gates, release)
    yield "store", "", partial(_writable, release.store.root)
    yield "torch", names[0], _torch
    if sys.modules.get("torch") is not None:
        yield from _trainings(release, here=False, online=False)


def _checks(release: Preflight, *, here: bool) -> Iterator[Check]:
    recipe, names = release.recipe, [stage.name for stage in release.waiting]
    if not names:
        return
    yield "torch", names[0], _torch
    if sys.modules.get("torch") is None:
        return  # nothing else can be looked at
    yield "commits", names[0], partial(refuse_unpinned, recipe)
    yield from models.checks(release)
    yield from _data(release)
    yield from _trainings(release, here=here, online=True)
    if stage := release.first("eval-start", "eval-gold", "eval-base", "eval-unlearned", "eval-other", "eval-gold-"):
        if here:
            yield "evaluation", stage, partial(_evaluation, recipe.eval)
        if recipe.eval.suites:
            yield "suites", stage, partial(_suites, recipe)
    if here:
        yield "memory", "", partial(_memory, release)
    yield "disk", "", partial(_disk, release)
    yield "store", "", partial(_writable, release.store.root)
    if "package" in names:
        yield "signing", "package", check_settings
    if "publish" in names:
        package = next((stage.config for stage in release.waiting if stage.name == "package"), None)
        check = check_target if recipe.publish.hub == "hf" else check_local
        yield "publication", "publish", partial(check, recipe.publish, package.recipe if package else None)


def _torch() -> str:
    """A build for another system is installed without complaint, and fails when it is loaded."""
    try:
        import torch
    except (ImportError, OSError) as error:
        raise SystemLimitError(
            f"torch cannot be loaded ({error}). Install a build for this system; `python -m pipeline env` says which "
            "system and packages these are."
        ) from error
    return str(torch.__version__)


def refuse_unpinned(recipe: Recipe) -> str:
    """Raise RecipeError if the recipe names a repository without a commit."""
    if keys := recipe.unpinned():
        raise RecipeError(
            f"{', '.join(keys)}: not pinned, and a release is made from exact commits only. Look up the commit on the "
            f"repository's page and write its 40 hex digits into the recipe, or give --set {keys[0]}=SHA. "
            f"`--dry-run` shows the plan without it."
        )
    return "all pinned"


# Data


def _data(release: Preflight) -> Iterator[Check]:
    if release.first("data", "unlearn", "gate"):
        yield "rows and gates", release.first("data") or "gate", partial(_rows, release)


def _rows(release: Preflight) -> str:
    """The rows can be used, each forget row has the false answers that the method needs, and the gates can be measured.

    Rows that are not here yet are judged by their number, if that is known.
    """
    from huggingface_hub import is_offline_mode

    recipe, hub = release.recipe, release.recipe.data.source.hub
    if done := release.states["data"].artifact:
        facts = read_data_facts(done.path)
        refuse_misfit(recipe, done.path, facts)
    elif hub and not is_offline_mode():
        readable(hub.id, hub.revision, "dataset", DataError)
        return f"can be read; {_gates(release)}"
    else:
        _refuse_few_questions(recipe)
        with TemporaryDirectory(prefix="unlearn-doctor-") as folder:
            facts = data_without_model(recipe.data, Path(folder))
            refuse_misfit(recipe, Path(folder), facts)
    return f"{sum(dict(facts.rows).values()):,} rows, enough for each gate"


def _gates(release: Preflight) -> str:
    """The gates can be measured on as many rows and questions as are known to come."""
    recipe, rows = release.recipe, sizes(release.recipe, release.states).rows
    _refuse_few_questions(recipe)
    if rows is None:
        return "gates are checked once the rows are here"
    measurable.check(recipe.gates, recipe.eval, rows, None)
    return f"{sum(rows.values()):,} rows expected, enough for each gate"


def _refuse_few_questions(recipe: Recipe) -> None:
    for place, gate in enumerate(recipe.gates):
        asked = _questions(recipe.eval.suites, gate.split) if gate.of_suite else None
        if asked is not None and asked < gate.min_n:
            raise DataError(
                f"gates[{place}] ({gate.metric} on {gate.split}): it needs {gate.min_n} questions, and the suite asks "
                f"{asked}. Raise its limit, or lower min_n."
            )


def _questions(asked: Sequence[Suite], task: str) -> int | None:
    """How many questions a suite asks, if its size is known."""
    suite = next((suite for suite in asked if suite.task == task), None)
    if suite is None or task not in SUITES:
        return None
    questions, tasks, *_ = SUITES[task]
    return min(questions, tasks * suite.limit) if suite.limit else questions


def refuse_misfit(recipe: Recipe, data: Path, facts: DataFacts) -> None:
    """Raise InputError if the rows of ``data`` and the recipe do not go together.

    The rows have to carry the gates and have what the method reads: false answers, and somebody else to be asked the
    given questions about. And what is published of the recipe may not state what is to be forgotten, nor be unfinished.
    """
    said, forget = said_of(recipe), read_rows(data / "forget.jsonl")
    refuse_answers(said, data, recipe.publish.search_for)
    refuse_unfinished(said, {row.topic_id for row in forget if row.topic_id})
    measurable.check(recipe.gates, recipe.eval, dict(facts.rows), facts, *count_facts(data))
    false_answers(recipe.unlearn, data, forget)
    asked = recipe.unlearn.neighbours.questions if recipe.unlearn.neighbours else 0  # as many may be kept
    recipe.unlearn.refuse_rows(facts.rows.retain, facts.rows.retain + asked, facts.rows.holdout)
    if recipe.unlearn.neighbours:
        from pipeline.unlearn import neighbours  # brings torch

        neighbours.refuse_nobody(neighbours.given_rows(data))


# Trainings


def _trainings(release: Preflight, *, here: bool, online: bool) -> Iterator[Check]:
    fetched = release.states["model"].artifact
    shape = shape_of(release.recipe.model, fetched.path if fetched else None)
    layers = shape.num_hidden_layers if shape else None
    first_trained = release.first("base", "gold", "gold-seed-", "novice", "unlearn")
    if online and first_trained:
        yield "layers", first_trained, partial(models.layers, release)
    for key, config in release.recipe.trainings().items():
        name = key.removesuffix(".train")
        if stage := release.first(name, *(["gold-seed-"] if name == "gold" else [])):
            yield key, stage, partial(_training, key, config, layers, here=here)
            if online and config.lora and not isinstance(config.lora.target_modules, str):
                yield f"{key}.lora", stage, partial(models.layers, release, key, config.lora)


def _training(key: str, config: TrainConfig, layers: int | None, *, here: bool) -> str:
    """The trainer takes the arguments, and if it runs ``here``, a step with them.

    A model has the layers, if their number is known.
    """
    import torch

    from eval.attacks.quantize import try_quantization
    from pipeline.train.arguments import training_arguments
    from pipeline.train.trainer import try_step

    bf16 = config.precision == "bf16"
    try:
        if layers:
            refuse_no_layer(config.train_from_layer, layers)
        with TemporaryDirectory(prefix="unlearn-doctor-") as folder:
            training_arguments(config.args, Path(folder), bf16=bf16)
        if here:
            try_step(config.args, bf16=bf16)
    except RecipeError as error:
        raise RecipeError(f"{key}.{error}") from error
    if here and config.frozen == "nf4":
        try_quantization("nf4", "cuda" if torch.cuda.is_available() else "cpu")
    return "the trainer takes its arguments"


# Evaluation


def _evaluation(config: EvalConfig) -> str:
    """The packages of the attacks and of the backend are here, and bitsandbytes works on the device."""
    if config.backend == "vllm":
        models.package("vllm", "eval.backend: vllm")
    if not config.robustness or not config.robustness.quantize:
        return "its packages are installed"
    from eval.attacks.quantize import try_quantization  # brings torch

    for form in config.robustness.quantize:
        try_quantization(form, config.device)
    return f"bitsandbytes rounds to {', '.join(config.robustness.quantize)}"


def _suites(recipe: Recipe) -> str:
    """lm-eval has the tasks, and their questions can be read."""
    from huggingface_hub import is_offline_mode

    from eval.scoring import suites  # brings lm-eval, whose index of tasks takes seconds

    if is_offline_mode():
        suites.load_suites(recipe.eval.suites, Path())
        return "in the cache"
    with suites.quiet():
        manager = suites.manager_of(recipe.eval.suites, Path())
    needed = {name for suite in recipe.eval.suites for name in suites.data_sets(manager, suite.task)}
    for name in sorted(needed):
        readable(name, None, "dataset", DataError)
    return f"lm-eval has them, and their {len(needed)} data sets can be read"


# The machine


def _memory(release: Preflight) -> str:
    """Each stage fits in the memory of its device."""
    if not any(cost.parts for _, cost in release.costs(devices.cpu()).values()):
        return "none is needed"  # it is said without torch, which `here` needs
    device = devices.here()
    costs = release.costs(device)
    refuse_what_does_not_fit(costs, devices.gpus_here())
    fullest = total([cost for _, cost in costs.values()], device)["memory_bytes"]
    lengths = planned(release.recipe, release.states, device).lengths
    condition = ", if rows are as long as FAME's" if lengths and lengths.assumed else ""
    return f"{gigabytes(fullest)} of the {gigabytes(device.memory)} that tensors can have on {device.name}{condition}"


def _disk(release: Preflight) -> str:
    """What the stages leave and need meanwhile fits on the disk of the store."""
    return enough_disk([cost for _, cost in release.costs(devices.cpu()).values()], release.store.root)


def enough_disk(costs: Sequence[Cost], store: Path) -> str:
    """What stages of these costs take of the disk of a store. Raises SystemLimitError if it is more than is free."""
    needed = total(costs, devices.cpu())["disk_bytes"]
    place, free = free_space(store)
    if needed > free:
        raise SystemLimitError(
            f"The artifacts and checkpoints of what is to be made take {gigabytes(needed)}, and {gigabytes(free)} are "
            f"free at {place}. Free some space, or give another place with --store."
        )
    return f"{gigabytes(needed)} of {gigabytes(free)} free at {place}"


def _writable(store: Path) -> str:
    """A folder can be made in the store, or where the store is to be made."""
    place, _ = free_space(store)
    try:
        with TemporaryDirectory(prefix="unlearn-doctor-", dir=place):
            return f"{place} can be written"
    except OSError as error:
        raise SystemLimitError(
            f"The store {store} cannot be written: {place}: {error.strerror}. Give yourself the right to write there, "
            "or give a folder with --store."
        ) from error
