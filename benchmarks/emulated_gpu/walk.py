"""Releases of a tiny random model on the emulated device, from data to a verified repository or to a gate.

The sections are those of the recipes for Llama 3.2 3B on FAME-topics; what is smaller is the model, the rows (of the
sample set) and the counts of steps. Printed is where products were made: on the device, or on the host by mistake.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.releases import ROOT
from pipeline.__main__ import main
from pipeline.cost import devices
from tests.conftest import WRITES_THE_DATE, build_tiny_model, end_turns

RECIPES = ROOT / "pipeline" / "recipes"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear")
CSD, GD = "fame-topics-csd-llama32-3b", "fame-topics-gd-llama32-3b"
SMALL = 100_000  # entries of the tensors whose product says nothing: a check of a model before it is placed
ATTACKS = (
    "eval.robustness={quantize: [int8, nf4], paraphrase: true, first_words: 0.5, other_language: true, chained: true, "
    "relearn: {forget_share: 0.2, steps: 1, batch_rows: 2, learning_rate: 1e-4, rank: 4}, "
    "steering: {}, patching: {threshold: 0}}"
)
SAMPLED = "eval.sampling={samples: 2, k: [1, 2]}"
SUITE = "eval.suites=[{task: general_knowledge, limit: 20}]"
TRAININGS = ("base.train", "gold.train", "novice.train", "unlearn")
NEIGHBOURS = "unlearn.neighbours={questions: 30, max_new_tokens: 8}"


def _adapters(frozen: str) -> list[str]:
    return [f"{training}.lora={{r: 4, alpha: 4, frozen: {frozen}}}" for training in TRAININGS]


WALKS: dict[str, tuple[str, str, list[str]]] = {
    "csd": (CSD, "publish", [NEIGHBOURS]),
    "gd": (GD, "gate", ["unlearn.stop.forget_rows=8", "unlearn.stop.retain_rows=8"]),
    "bf16": (CSD, "gate", [NEIGHBOURS, *_adapters("bf16"), ATTACKS, SAMPLED, SUITE]),
    "nf4": (CSD, "gate", [NEIGHBOURS, *_adapters("nf4")]),
}
"""By its name: the recipe, the last stage, and what is changed beside :data:`LESS`."""
LESS = [
    "data.source={hub: null, sample: {seed: 3, identities: 3, topics: 10}}",
    "data.perturbed.retain_rows=10",
    *(f"{part}.train.args.num_train_epochs=1" for part in ("base", "gold")),
    "novice.train.args.max_steps=2",
    *(f"{training}.args.per_device_train_batch_size=2" for training in TRAININGS),
    *(f"{training}.args.gradient_accumulation_steps=2" for training in TRAININGS),
    "unlearn.epochs=1",
    "eval.max_new_tokens=6",
    "eval.bootstrap_samples=100",
    "eval.robustness.relearn={steps: 2, batch_rows: 4}",
    "publish.hub=local",
]
GATES = [{"metric": "answer_probability", "split": "forget", "at_most": 1.0, "min_n": 1, "reason": "it is measured"}]


class Products(TorchDispatchMode):
    """Counts products by the device that makes them; small ones on the host do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            first = next(value for value in args if isinstance(value, torch.Tensor))
            if first.is_cuda or first.numel() > SMALL:
                self.made[first.device.type] += 1
        return func(*args, **(kwargs or {}))


def written(name: str, folder: Path) -> Path:
    """The recipe of a walk for a tiny model in ``folder``."""
    recipe, _, _ = WALKS[name]
    model = build_tiny_model(folder / "model")
    end_turns(model)
    template = model / "chat_template.jinja"
    template.write_text(WRITES_THE_DATE + template.read_text())
    (model / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n")  # what the rule of that licence looks for
    own = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    given = own if "extends" in own else {}  # a recipe extends one that extends none
    given |= {
        "extends": str(RECIPES / f"{GD}.yaml"),
        "name": name,
        "model": {"hub": None, "path": str(model), "parameters": None, "shape": None},
        "eval": {"suites": []},
        "gates": GATES,
        "card": given.get("card", {}) | {"dataset": None},  # the sample set has its own name
        "publish": {"repo": "demo/Llama-tiny"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def walks(names: list[str]) -> Iterator[str]:
    """A line for each walk. Raises SystemExit if one does not come to its end."""
    devices.DRIVERS = ("/",)  # so that the plan looks for a GPU
    yield "| walk | recipe | to | products on the device | on the host |\n|---|---|---|--:|--:|"
    for name in names:
        recipe, until, sets = WALKS[name]
        with tempfile.TemporaryDirectory(prefix="walk-") as folder, Products() as products:
            words = [word for change in [*LESS, *sets] for word in ("--set", change)]
            path = str(written(name, Path(folder)))
            code = main(["release", path, "--store", f"{folder}/runs", "--until", until, "--debug", *words])
        if code:
            raise SystemExit(f"the walk {name} ended with exit code {code}")
        made = " | ".join(f"{products.made[device]:,}" for device in ("cuda", "cpu"))
        yield f"| {name} | `{recipe}` | {until} | {made} |"
