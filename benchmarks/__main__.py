"""`make bench`: each measurement as a ratio against a named baseline of the same run, with the bar that it must keep.

Needs `make release` to have run once: the demo's model and artifacts are what is measured. Takes about half an hour.
`python -m benchmarks header limit` runs some parts alone; `--help` names them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.__main__ import SETTINGS

if TYPE_CHECKING:
    import torch

    from benchmarks.gd_step import Step

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread: on a shared machine two measure the neighbours

ROOT = Path(__file__).resolve().parents[1]


class Line(NamedTuple):
    """One line of the table; ``bar`` is the largest ratio that is good enough."""

    what: str
    baseline: float
    ours: float
    unit: str = "s"
    bar: float | None = None

    def __str__(self) -> str:
        ratio = self.ours / self.baseline
        bar = "" if self.bar is None else f"{self.bar:.2f}" + ("" if ratio <= self.bar else " **missed**")
        values = " | ".join(f"{value:.2f} {self.unit}" for value in (self.baseline, self.ours))
        return f"| {self.what} | {values} | {ratio:.2f} | {bar} |"


def step(model: Path) -> Iterator[Line]:
    """Rows without a system header, as in the demo."""
    yield from _against_naive(model, header=False, bar=0.75)


def header(model: Path) -> Iterator[Line]:
    """Rows with the template's own system header."""
    yield from _against_naive(model, header=True, bar=0.50)


def _against_naive(model: Path, *, header: bool, bar: float) -> Iterator[Line]:
    from benchmarks import gd_step

    forget, retain = gd_step.some_rows(model, header)
    batch = gd_step.packed_batch(forget, retain)
    theirs, own = gd_step.load(model, ours=False), gd_step.load(model, ours=True)
    naive = gd_step.Step(theirs, lambda: gd_step.naive_loss(theirs, forget, retain))
    ours = gd_step.Step(own, lambda: gd_step.packed_loss(own, batch))
    same = _same(naive, ours)
    rows = "below the template's system header" if header else "without a system header"
    found = gd_step.seconds({"naive": naive, "ours": ours})
    yield Line(f"GD step, rows {rows}, fp32 ({same})", found["naive"], found["ours"], bar=bar)
    found = gd_step.seconds({"naive": naive, "ours": ours}, bf16=True)
    yield Line("the same in bf16", found["naive"], found["ours"], bar=bar)


def _same(naive: Step, ours: Step) -> str:
    """That two forms have the same loss and gradient, in words."""
    from benchmarks import gd_step

    loss, gradient = gd_step.differences(naive, ours)
    assert loss < 1e-4, loss
    assert gradient < 1e-3, gradient
    return f"same loss to {loss:.0e}, gradient to {gradient:.0e}"


def sharing(model: Path) -> Iterator[Line]:
    """From how many common tokens on a header is worth computing once: our step with and without sharing them."""
    from benchmarks import gd_step
    from datasets_prep.schema import Encoded
    from pipeline.train.packed import pack

    rows = [row for split in gd_step.some_rows(model, header=False) for row in split]
    own = gd_step.load(model, ours=True)
    for common in (3, 8, 16, 24):
        longer = [Encoded((*range(100, 100 + common), *r.input_ids), common + r.completion_start) for r in rows]
        batches = {"alone": pack(longer), "shared": pack(longer, common)}
        steps = {
            form: gd_step.Step(own, lambda batch=batch: -gd_step.completion_log_probs(own, batch).mean())
            for form, batch in batches.items()
        }
        found = gd_step.seconds(steps, bf16=True, rounds=3)
        yield Line(
            f"a header of {common} tokens once instead of in each of 16 rows, bf16", found["alone"], found["shared"]
        )


def adapters(model: Path) -> Iterator[Line]:
    """LoRA on all linear layers, against the naive full fine-tune and against the naive form with the same adapters."""
    from benchmarks import gd_step

    forget, retain = gd_step.some_rows(model, header=False)
    batch = gd_step.packed_batch(forget, retain)
    own = gd_step.load(model, ours=True, lora=True)
    ours = gd_step.Step(own, lambda: gd_step.packed_loss(own, batch))
    for lora, what, bar in ((False, "the naive full fine-tune", 0.55), (True, "the naive form with the same", None)):
        theirs = gd_step.load(model, ours=False, lora=lora)
        naive = gd_step.Step(theirs, lambda theirs=theirs: gd_step.naive_loss(theirs, forget, retain))
        if lora:
            what = f"{what} ({_same(naive, ours)})"
        found = gd_step.seconds({"naive": naive, "ours": ours})
        yield Line(f"LoRA on all linear layers, no header, against {what}", found["naive"], found["ours"], bar=bar)


def vocabulary(model: Path) -> Iterator[Line]:
    """The vocabulary of Llama 3, random weights."""
    from benchmarks import gd_step, large_vocabulary

    for below in (False, True):
        rows = "below the system header" if below else "no header"
        forms = {form: large_vocabulary.step(form, model, header=below) for form in ("naive", "ours")}
        _same(forms["naive"], forms["ours"])
        found = gd_step.seconds(forms)
        yield Line(f"128,256-token vocabulary, {rows}: time", found["naive"], found["ours"], bar=0.4)
        bytes_of = {form: large_vocabulary.step_memory(form, model, header=below) / 1e6 for form in forms}
        what = f"128,256-token vocabulary, {rows}: memory that the step adds at its peak"
        yield Line(what, bytes_of["naive"], bytes_of["ours"], "MB", 0.4)


def limit(model: Path) -> Iterator[Line]:
    """The same number of tokens in rows of one length, with nothing around the model."""
    from benchmarks import gd_step
    from core import onednn

    forget, retain = gd_step.some_rows(model, header=False)
    batch = gd_step.packed_batch(forget, retain)
    tokens, answers = batch["input_ids"].shape[1], len(batch["targets"])
    theirs, own = gd_step.load(model, ours=False), gd_step.load(model, ours=True)
    onednn.install(theirs)  # the same products, in another arrangement of rows
    steps = {
        "bare": gd_step.Step(theirs, lambda: gd_step.bare_loss(theirs, tokens, answers)),
        "ours": gd_step.Step(own, lambda: gd_step.packed_loss(own, batch)),
    }
    for bf16 in (False, True):
        found = gd_step.seconds(steps, bf16=bf16)
        what = f"GD step against a bare forward and backward of the tokens, {'bf16' if bf16 else 'fp32'}"
        yield Line(what, found["bare"], found["ours"], bar=1.15)


def kl(model: Path) -> Iterator[Line]:
    """A KL retain term against the plain one, on base, once its distributions are measured."""
    from benchmarks import gd_step
    from pipeline.unlearn.reference import BaseDistribution

    forget, retain = gd_step.some_rows(model, header=False)
    batch = gd_step.packed_batch(forget, retain)
    own = gd_step.load(model, ours=True)
    for bf16 in (False, True):

        def precision(bf16: bool = bf16) -> torch.autocast:
            import torch

            return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)

        base = BaseDistribution(own, dict(enumerate(retain)), precision)
        steps = {
            "nll": gd_step.Step(own, lambda: gd_step.packed_loss(own, batch)),
            "kl": gd_step.Step(own, lambda base=base: gd_step.kl_loss(own, batch, base)),
        }
        found = gd_step.seconds(steps, bf16=bf16)
        yield Line(f"KL retain against NLL retain, {'bf16' if bf16 else 'fp32'}", found["nll"], found["kl"], bar=1.4)


def start(model: Path) -> Iterator[Line]:
    """What happens until the first step; printed, since there is nothing to compare it with."""
    argv = [sys.executable, "-m", "benchmarks.start", str(model.parent)]
    done = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True)
    print("\nStart of the unlearn stage, in seconds:", "; ".join(done.stdout.splitlines()), "\n")
    return iter(())


def commands(model: Path) -> Iterator[Line]:
    """Commands that compute nothing."""
    bare = _command_seconds("-c", "pass")
    yield Line(
        "`python -m pipeline --help` against a bare interpreter", bare, _command_seconds("-m", "pipeline", "--help")
    )
    argv = ("-m", "pipeline", "release", "demo")
    if (model.parent / "publish").exists():
        yield Line("`release demo` with nothing changed, against the same", bare, _command_seconds(*argv))


def evaluation(model: Path) -> Iterator[Line]:
    """One pass for all log-probability metrics of base, against one metric at a time and against the forward alone."""
    from benchmarks import eval_pass

    found = eval_pass.run(model.parent / "base" / "model", model.parent / "data")
    assert found["difference"] < 1e-3, found["difference"]
    assert found["padding_bare"] <= 0.10, found["padding_bare"]
    assert found["padding_generation"] <= 0.10, found["padding_generation"]
    metrics = len(eval_pass.ONE_BY_ONE)
    what = f"{metrics} log-probability metrics in one pass, against one at a time (same to {found['difference']:.0e})"
    yield Line(what, found["one_by_one"], found["one_pass"], bar=0.20)
    texts = f"{found['texts']:.0f} texts of {found['tokens']:.0f} tokens"
    padding = f"padding {found['padding_bare']:.1%}, of prompts of generations {found['padding_generation']:.1%}"
    what = f"the same pass against a bare forward in padded batches of {eval_pass.BATCH} ({texts}; {padding})"
    yield Line(what, found["bare"], found["one_pass"], bar=1.15)
    yield Line("memory that both add at their peak", found["memory_bare"], found["memory_one_pass"], "MB")


def heap(model: Path) -> Iterator[Line]:
    """Freed memory as glibc gives it back, and kept; a process each, since it cannot be taken back."""
    found: dict[str, list[float]] = {"given back": [], "kept": []}
    for form in [*found] * 3:
        found[form].append(_of_process("freed_memory", form, str(model.parent)))
    given_back, kept = map(statistics.median, found.values())
    yield Line("all scores of 24 rows with freed memory kept, against given back", given_back, kept, bar=0.95)


def waiting(model: Path) -> Iterator[Line]:
    """Threads that wait without spinning, against OpenMP's own way, alone and beside a process that takes a core."""
    cores = str(len(os.sched_getaffinity(0)))
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"OMP_NUM_THREADS": cores}
    policies = {"unasked": env, "passive": env | {"OMP_WAIT_POLICY": "passive"}}
    for beside, bar in (("nothing", 1.05), ("one busy process", 1.0)):
        busy = None if beside == "nothing" else subprocess.Popen([sys.executable, "-c", "while True: pass"])
        found: dict[str, list[float]] = {policy: [] for policy in policies}
        try:
            for policy in [*found] * 3:
                found[policy].append(_of_process("waiting", str(model), env=policies[policy]))
        finally:
            if busy:
                busy.kill()
        unasked, passive = map(statistics.median, found.values())
        yield Line(f"GD step on {cores} threads that wait without spinning, beside {beside}", unasked, passive, bar=bar)


def compiled(model: Path) -> Iterator[Line]:
    """As many compiled products kept as a training keeps, against oneDNN's own number."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    own = {key: value for key, value in os.environ.items() if key != name}
    capacities = {"unasked": own, "ours": own | {name: SETTINGS[name]}}
    found: dict[str, list[Any]] = {capacity: [] for capacity in capacities}
    for capacity in [*found] * 3:
        found[capacity].append(_of_process("compiled_products", str(model), env=capacities[capacity]))
    assert len({digest for runs in found.values() for *_, digest in runs}) == 1
    for i, unit, scale, bar in ((0, "s", 1.0, 1.05), (1, "MB", 1e6, 1.0)):
        unasked, ours = (statistics.median(run[i] for run in runs) / scale for runs in found.values())
        what = f"steps of many lengths with {SETTINGS[name]} compiled products kept, against 1,024 (same gradients)"
        yield Line(what, unasked, ours, unit, bar)


def scan(model: Path) -> Iterator[Line]:
    """The search of the published weights for forget answers, which is to read 1 GB a second on one core."""
    from benchmarks import scan

    weights = model / "model.safetensors"
    prepared, searched = scan.seconds(weights)
    size = weights.stat().st_size
    what = f"search of {size / 1e6:.0f} MB of weights for {scan.ANSWERS:,} answers (prepared in {prepared:.1f} s)"
    yield Line(f"{what}, against 1 GB a second", size / 1e9, searched, bar=1.0)


def publication(_model: Path) -> Iterator[Line]:
    """A release of 2 GB on its way to a loopback Hub and back; takes minutes and 10 GB of disk."""
    from benchmarks import publication_time

    found = publication_time.measure()
    size = f"{publication_time.BYTES / 1e9:.1f} GB"
    for clock, what in (("", "in seconds"), (", processor", "in seconds of the client's processor")):
        baseline = found[f"sha256{clock}"] + found[f"copy{clock}"]
        parts = {part: found[f"{part}{clock}"] for part in ("package", "publish", "verify")}
        listed = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items())
        what = f"package, publish and verify of {size} ({listed}), against its sha256 and a copy, {what}"
        yield Line(what, baseline, sum(parts.values()), bar=None if clock else 2.0)
    what = "the client's peak memory meanwhile, against 400 MB"
    yield Line(what, 400, found["memory"] / 1e6, "MB", bar=1.0)


def _of_process(module: str, *argv: str, env: dict[str, str] | None = None) -> Any:
    """What ``python -m benchmarks.MODULE *argv`` prints, a number or another JSON value."""
    words = [sys.executable, "-m", f"benchmarks.{module}", *argv]
    return json.loads(subprocess.run(words, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout)


def _command_seconds(*argv: str, rounds: int = 5) -> float:
    """Median wall seconds of ``python *argv``."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        times.append(time.perf_counter() - began)
    return statistics.median(times)


PARTS = {
    part.__name__: part
    for part in (
        *(step, header, sharing, adapters, vocabulary, limit, kl),
        *(start, evaluation, heap, compiled, waiting, scan, publication, commands),
    )
}


def main() -> int:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)} (default: everything)")
    options.add_argument("--artifacts", type=Path, default=ROOT / "runs" / "demo", help="(default: runs/demo)")
    given = options.parse_args()
    if unknown := set(given.part) - PARTS.keys():
        options.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    model = given.artifacts / "model"
    if not model.exists():
        print(f"bench: {model} is not there. Run `make release` first.", file=sys.stderr)
        return 2
    print("| measurement | baseline | ours | ratio | bar |\n|---|--:|--:|--:|--:|")
    for name in given.part or PARTS:
        for line in PARTS[name](model):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
