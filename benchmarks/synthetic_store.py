"""The command line on a store of 10,000 artifacts that nobody built: their manifests say what a stage's would.

Seconds are CPU seconds of the whole process, since others may share the machine; memory is its peak.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.releases import ROOT
from core.artifacts import FileEntry, Git, Manifest, json_text
from core.digests import MANIFEST
from pipeline.commands.prepare import surveyed
from pipeline.engine.artifact import Artifact, link, read_artifact
from pipeline.engine.graph import Member
from pipeline.engine.runner import Stage, Store, key_of
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import stages
from pipeline.train.facts import ModelFacts, Products

ARTIFACTS = 10_000
FILES = 8  # of an artifact
COMMANDS = {
    "`status demo` (all done)": ["status", "demo"],
    "`explain demo publish`": ["explain", "demo", "publish"],
    "`release own-data --dry-run`": ["release", "own-data", "--dry-run"],
    "`release fame-topics-gd-llama32-3b --dry-run`": [
        "release",
        "fame-topics-gd-llama32-3b",
        "--dry-run",
        "--device",
        "H100 80GB",
    ],
}
MODEL = ModelFacts(
    name="a/b",
    license="apache-2.0",
    parameters=134_515_008,
    dtypes=["F32"],
    products=Products.unmeasured("fp32"),
)
# A small process starts the command, since a child's peak begins with its parent's.
STARTER = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss)"
)


def fill(root: Path, artifacts: int) -> list[Recipe]:
    """Fill a store with at least so many artifacts: those of the demo and of recipes like it with other data seeds."""
    made, recipes = 0, []
    demo = load_recipe("demo")
    for seed in count():
        if made >= artifacts:
            return recipes
        changed = {"name": f"synthetic-{seed}", "data": demo.data.model_copy(update={"seed": seed})} if seed else {}
        recipe = demo.model_copy(update=changed)
        store, done = Store(root, recipe.name), dict[str, Artifact]()
        for stage in stages(recipe):
            place = store.place(stage.name, key_of(stage, done))
            known = read_artifact(place)  # the model, which all have
            done[stage.name] = known or _artifact(place, stage, done)
            made += known is None
            link(place, store.link(stage.name))
        recipes.append(recipe)
    raise AssertionError("count() has no end")


def _artifact(place: Path, stage: Stage, done: dict[str, Artifact]) -> Artifact:
    """An artifact of nothing but a manifest."""
    key = key_of(stage, done)
    facts = MODEL.model_dump(mode="json") if stage.name == "model" else {}
    entry = FileEntry(sha256=key, size=1, mtime_ns=1, ctime_ns=1, inode=1)
    manifest = Manifest(
        stage=stage.name,
        version=stage.version,
        key=key,
        config=stage.identity,
        inputs={name: done[by].digest for name, by in stage.inputs.items()},
        facts=facts,
        seconds=1.0,
        peak_memory_bytes=1,
        git=Git(commit="c" * 40, dirty=False),
        packages={f"package-{number}": "1.0" for number in range(13)},
        device="cpu",
        argv=["pipeline"],
        digest=key[::-1],
        files={f"file-{number}": entry for number in range(FILES)},
    )
    place.mkdir(parents=True)
    (place / MANIFEST).write_text(json_text(manifest.model_dump(mode="json")), encoding="utf-8")
    return Artifact(place, manifest)


def measured(words: list[str]) -> tuple[float, float]:
    """CPU seconds of a command, and its peak memory in MB."""
    argv = [sys.executable, "-c", STARTER, sys.executable, "-m", "pipeline", *words]
    code, seconds, kib = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    if code != "0":
        raise SystemExit(f"`{' '.join(words)}` ended with {code}")
    return float(seconds), float(kib) / 1024


def table() -> Iterator[str]:
    """Each command on a full store and on an empty one, and a look at all recipes of the full one."""
    with TemporaryDirectory() as full, TemporaryDirectory() as empty:
        recipes = fill(Path(full), ARTIFACTS)
        yield f"{ARTIFACTS:,} artifacts of {len(recipes)} recipes."
        yield ""
        yield "| command | CPU seconds | memory, MB | in an empty store | |"
        yield "|---|--:|--:|--:|--:|"
        for label, words in COMMANDS.items():
            numbers = [number for store in (full, empty) for number in measured([*words, "--store", store])]
            yield (
                f"| {label} | "
                + " | ".join(f"{n:.2f}" if i % 2 == 0 else f"{n:.0f}" for i, n in enumerate(numbers))
                + " |"
            )
        began = time.process_time()
        members = [Member(recipe, stages(recipe), Store(Path(full), recipe.name)) for recipe in recipes]
        found = sum(status.artifact is not None for member in members for status in surveyed(member).values())
        took = time.process_time() - began
        yield ""
        yield f"The state of all {found:,} stages of the {len(recipes)} recipes in one process: {took:.1f} CPU seconds."
