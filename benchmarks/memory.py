"""Computed against measured peaks of the demo's model: `python -m benchmarks.memory` (after `make release`).

Each line is one piece of work in a process of its own: a few steps of a stage's own code, or a pass. Measured is the
peak of the resident set; computed is what `release --dry-run` says of the same settings and the same tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.releases import ROOT, STORE
from datasets_prep.chat import encode_rows, load_tokenizer
from datasets_prep.schema import SPLITS, Encoded, read_perturbed, read_rows, write_rows
from eval.attacks.copies import stand_in
from eval.attacks.relearn import relearn
from eval.config import Relearn
from eval.scoring.probes import Scorer, TokenTree
from eval.suite import load
from pipeline.cost import memory
from pipeline.cost.memory import Batch, Parts
from pipeline.cost.shape import read_shape
from pipeline.engine.machine import peak_memory, reset_peak_memory
from pipeline.recipe import load_recipe
from pipeline.train import fine_tune
from pipeline.train.config import Shape, TrainConfig
from pipeline.train.precision import in_bf16
from pipeline.unlearn import run
from pipeline.unlearn.config import UnlearnConfig

STEPS = 3


class Demo:
    """The demo's artifacts, its rows as tokens, and the shape of its model."""

    def __init__(self, artifacts: Path) -> None:
        self.artifacts, self.data = artifacts, artifacts / "data"
        self.inputs = {"model": artifacts / "model"}
        tokenizer = load_tokenizer(artifacts / "model")
        self.rows = {split: encode_rows(tokenizer, read_rows(self.data / f"{split}.jsonl")) for split in SPLITS}
        shape = read_shape(artifacts / "model" / "config.json")
        assert shape
        self.shape: Shape = shape

    def batch(self, forget: int, retain: int) -> Batch:
        """The mean micro-batch of so many rows."""
        counts = {"forget": forget, "retain": retain}
        rows = [(row, count / len(self.rows[split])) for split, count in counts.items() for row in self.rows[split]]
        tokens = sum(share * len(row.input_ids) for row, share in rows)
        answers = sum(share * (len(row.input_ids) - row.completion_start) for row, share in rows)
        return Batch(round(tokens), round(answers))


def training_config(**changes: Any) -> TrainConfig:
    """A few steps of the demo's base stage, with these settings in the place of its own."""
    given = load_recipe("demo").base.train
    assert given
    args = given.args | {"max_steps": STEPS, "save_strategy": "no"} | changes.pop("args", {})
    return TrainConfig.model_validate(given.model_dump() | changes | {"args": args})


def unlearning_config(**changes: Any) -> UnlearnConfig:
    """One pass of the demo's unlearn stage without neighbours, with these settings in the place of its own."""
    given = load_recipe("demo").unlearn.model_dump(exclude_none=True)
    return UnlearnConfig.model_validate(given | {"epochs": 1, "min_steps": 0, "neighbours": None} | changes)


def training(demo: Demo, out: Path, **changes: Any) -> Parts:
    """A few steps of the base stage, and what they are computed to take."""
    config = training_config(**changes)
    fine_tune.train(config, demo.inputs | {"data": demo.data}, out, ("retain", "forget"))
    bf16 = in_bf16(config, demo.inputs)
    return memory.of_training(demo.shape, config, demo.batch(0, config.args["per_device_train_batch_size"]), bf16=bf16)


def unlearning(demo: Demo, out: Path, **changes: Any) -> Parts:
    """A few steps of the unlearn stage on a part of the rows."""
    config = unlearning_config(**changes)
    few = out / "data"
    few.mkdir()
    rows = {split: read_rows(demo.data / f"{split}.jsonl")[:20] for split in SPLITS}
    for split, of_split in rows.items():
        write_rows(few / f"{split}.jsonl", of_split)
    kept = {row.row_id for row in rows["forget"]}
    write_rows(few / "guides.jsonl", [row for row in read_perturbed(demo.data / "guides.jsonl") if row.row_id in kept])
    run.run(config, demo.inputs | {name: demo.artifacts / name for name in ("base", "novice")} | {"data": few}, out)
    size, each = config.args["per_device_train_batch_size"], config.retain_rows_per_forget_row or 0
    bf16 = in_bf16(config, demo.inputs)
    batch = demo.batch(size * (1 + config.trains_on_false_answers), size * each)
    return memory.of_unlearning(demo.shape, config, batch, bf16=bf16)


def scoring(demo: Demo, out: Path, *, tokens: int) -> Parts:
    """A scoring pass over all rows, until its largest forward is done."""
    model = load(demo.artifacts / "base" / "model", "cpu")
    texts: list[Encoded] = sorted(row for split in SPLITS for row in demo.rows[split])
    Scorer(model, tokens).score(texts)
    tree = TokenTree.of(texts)
    predicted = len({tree.parents[n] for p, e in zip(tree.paths, texts, strict=True) for n in p[e.completion_start :]})
    forward = min(tokens, len(tree.tokens))
    return memory.of_scoring(demo.shape, Batch(forward, forward * predicted // len(tree.tokens)), 4, packed=True)


def relearning(demo: Demo, out: Path, *, rows: int) -> Parts:
    """A few steps of relearning beside the measured model."""
    model = load(demo.artifacts / "base" / "model", "cpu")
    with stand_in(model) as copied:
        relearn(copied, demo.rows["forget"], Relearn(steps=STEPS, batch_rows=rows), 0)
    measured = {"measured model": sum(parameter.nbytes for parameter in model.parameters())}
    return memory.of_relearning(demo.shape, demo.batch(rows, 0), 4, None) | measured


Work = Callable[..., Parts]
CASES: dict[str, tuple[Work, dict[str, Any]]] = {
    "base, as in the demo (layers 10 to 29, 8 rows)": (training, {}),
    "all layers, bf16, 8 rows": (training, {"precision": "bf16", "train_from_layer": 0}),
    "all layers, fp32, 8 rows": (training, {"precision": "fp32", "train_from_layer": 0}),
    "all layers, bf16, 32 rows, checkpointed": (
        training,
        {
            "precision": "bf16",
            "train_from_layer": 0,
            "args": {"per_device_train_batch_size": 32, "gradient_checkpointing": True},
        },
    ),
    "LoRA, bf16, 8 rows": (training, {"precision": "bf16", "train_from_layer": 0, "lora": {"r": 16, "alpha": 32}}),
    "LoRA over bf16 weights, 8 rows": (
        training,
        {"precision": "bf16", "train_from_layer": 0, "lora": {"r": 16, "alpha": 32, "frozen": "bf16"}},
    ),
    "LoRA over nf4 weights, 8 rows": (
        training,
        {"precision": "bf16", "train_from_layer": 0, "lora": {"r": 16, "alpha": 32, "frozen": "nf4"}},
    ),
    "unlearn, as in the demo (csd, layers 10 to 29, 5 + 5 + 10 rows)": (unlearning, {}),
    "unlearn, gd, all layers, 5 + 10 rows": (
        unlearning,
        {"method": "gd", "train_from_layer": 0, "pull_weight": None},
    ),
    "scoring pass, 512 tokens": (scoring, {"tokens": 512}),
    "scoring pass, 4096 tokens": (scoring, {"tokens": 4096}),
    "relearning, 4 rows, beside the measured model": (relearning, {"rows": 4}),
}


def measure(case: str, artifacts: Path) -> dict[str, int]:
    """Bytes of one case in this process: computed, measured, and what was resident before the model was loaded."""
    work, settings = CASES[case]
    demo = Demo(artifacts)
    reset_peak_memory()
    before = peak_memory()
    out = Path(tempfile.mkdtemp(prefix="memory-"))
    try:
        parts = work(demo, out, **settings)
    finally:
        shutil.rmtree(out)
    return {"process": before, "measured": peak_memory(), "computed": sum(parts.values()) + memory.PROCESS}


def main() -> int:
    """Print the table, a line for each case that is measured in a child process."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    options.add_argument("case", nargs="*", help="cases of the table by their beginnings (default: all)")
    options.add_argument("--artifacts", type=Path, default=STORE / "demo", help="(default: runs/demo)")
    options.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.here:
        print(json.dumps(measure(given.case[0], given.artifacts)))
        return 0
    print("| work | before the model | measured | computed | ratio |\n|---|--:|--:|--:|--:|")
    for case in [name for name in CASES if not given.case or name.startswith(tuple(given.case))]:
        argv = [sys.executable, "-m", "benchmarks.memory", case, "--here", "--artifacts", str(given.artifacts)]
        done = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["computed"] / found["measured"]
        values = " | ".join(f"{found[name] / 1e9:.2f} GB" for name in ("process", "measured", "computed"))
        print(f"| {case} | {values} | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
