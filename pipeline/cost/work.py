"""What each stage costs: the functions that `pipeline/stages.py` names beside those of `pipeline/engine/plan.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.steps import saves_of, split_of_step, steps_of
from datasets_prep.config import DataConfig
from eval.config import VLLM_SHARE, EvalConfig, Suite
from pipeline.cost import memory, time
from pipeline.cost import shape as of
from pipeline.cost.devices import USABLE, Device
from pipeline.cost.memory import Batch, Parts
from pipeline.cost.rows import Lengths, Row
from pipeline.publish.config import PublishConfig
from pipeline.train.config import ModelConfig, Shape, TrainConfig, TrainedOrPublished, moment_bytes
from pipeline.unlearn.config import BATCH_ROWS, BEAMS, OTHERS, Neighbours, UnlearnConfig

STORED = 2  # bytes of a weight in bf16: what training stages save
MEASURED_TOKENS = 8192  # of a forward without gradients on a GPU (pipeline/train/packed.py)
BYTES_PER_ROW = 3000  # of an evaluation's files; the demo's have 2,500
QUESTION = 3000  # tokens of a suite's longest question
SUITES = {  # questions of all tasks, tasks, forwards for each question, tokens of a question without examples
    "mmlu": (14042, 57, 1, 140),
    "hellaswag": (10042, 1, 4, 110),
    "arc_challenge": (1172, 1, 4, 50),
    "wmdp": (3668, 3, 1, 150),
    **{f"m_mmlu_{language}": (13000, 1, 1, 230) for language in ("de", "es", "fr", "it")},
}
"""By their data sets' cards; the tokens are estimates of ours, as are those of any other suite."""
OTHER_SUITE = (1000, 1, 4, 200)


class Planned(NamedTuple):
    """What costs are computed from; parts that are not known yet are None. ``host`` is this machine's processor."""

    shape: Shape | None
    parameters: int | None
    rows: dict[str, int] | None
    lengths: Lengths | None
    data: DataConfig
    device: Device
    host: Device


@dataclass(frozen=True)
class Cost:
    """Seconds (an estimate), the fullest moment of the memory of ``device``, and bytes of disk and of downloads.

    ``scratch`` is the disk that is free again at the end. Seconds are None, and activations left out of the memory,
    where what they follow from is not known.
    """

    seconds: float | None = 0.0
    parts: Parts = field(default_factory=dict)
    device: Device | None = None
    disk: int = 0
    scratch: int = 0
    download: int = 0

    @property
    def memory(self) -> int:
        """Bytes at the fullest moment."""
        return sum(self.parts.values())

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seconds": None if self.seconds is None or math.isnan(self.seconds) else round(self.seconds),
            "memory_bytes": self.memory,
            "memory": self.parts,
            "disk_bytes": self.disk,
            "download_bytes": self.download,
        }


def total(costs: Sequence[Cost], device: Device) -> dict[str, Any]:
    """Of stages one after the other: all seconds, the fullest memory of ``device``, all downloads, the most disk."""
    seconds = [cost.plain()["seconds"] for cost in costs]
    return {
        "seconds": None if None in seconds else sum(seconds),
        "memory_bytes": max((cost.memory for cost in costs if cost.device in (None, device)), default=0),
        "disk_bytes": sum(cost.disk for cost in costs) + max((cost.scratch for cost in costs), default=0),
        "download_bytes": sum(cost.download for cost in costs),
    }


def nothing(config: object, known: Planned) -> Cost:
    """A stage that computes next to nothing."""
    return Cost()


def fetching(config: ModelConfig, known: Planned) -> Cost:
    """The start model's download. Of a GGUF file the weights are unpacked in the host's memory, and compared."""
    count = known.parameters or 0
    if config.path:
        return Cost(count * STORED / time.DISK, disk=count * STORED)
    if config.hub:
        return Cost(count * STORED / time.NETWORK, disk=count * STORED, download=count * STORED)
    parts = {"weights, three times": 12 * count, "process": memory.PROCESS} if count else {}
    return Cost(count * 0.75 / time.NETWORK, parts, known.host, disk=4 * count, download=round(0.75 * count))


def preparing(config: DataConfig, known: Planned) -> Cost:
    """Rows and false answers: kilobytes each."""
    return Cost(disk=BYTES_PER_ROW * sum((known.rows or {}).values()))


def training(config: TrainedOrPublished, known: Planned, *, splits: Sequence[str]) -> Cost:
    """A training, or a published model's download."""
    stored = STORED * (known.parameters or 0)
    if config.train is None:
        return Cost(stored / time.NETWORK, disk=stored, download=stored)
    args = config.train.args
    if known.shape is None or known.lengths is None or known.rows is None:
        return Cost(None, _fixed(config.train, known), known.device, stored)
    batch, parts = split_of_step(args)
    counts = {split: known.rows[split] for split in splits}
    row, rows = known.lengths.mean(counts), sum(counts.values())
    used = memory.of_training(known.shape, config.train, row.fullest(batch), bf16=_bf16(config.train))
    seconds = steps_of(args, rows) * _step_seconds(config.train, row.batch(batch), parts, known)
    return _trained(config.train, used, seconds, saves_of(args, rows), kept=1, known=known)


def unlearning(config: UnlearnConfig, known: Planned) -> Cost:
    """The ascent with its checks and levels."""
    stored = STORED * (known.parameters or 0)
    if known.shape is None or known.lengths is None or known.rows is None:
        return Cost(None, _fixed(config, known), known.device, stored)
    batch, parts = split_of_step(config.args)
    forget, retain = known.rows["forget"], known.rows["retain"]
    each = {  # rows of one forget row; a false answer is as long as the true one
        "forget": (config.method != "ft") + config.trains_on_false_answers,
        "retain": config.retain_rows_per_forget_row or 0,
    }
    row, together = known.lengths.mean(each), batch * sum(each.values())
    args, items = {**config.args, "num_train_epochs": 1}, config.passes(forget) * forget  # all passes are one epoch
    steps = steps_of(args, items)
    used = memory.of_unlearning(known.shape, config, row.fullest(together), bf16=_bf16(config))
    guides = known.data.perturbed.for_unlearning
    read = float(guides * forget if config.caps_move else 0)
    if config.retain_kl:
        neighbours = config.neighbours.questions + forget if config.neighbours else 0  # a continuation a forget row
        three_times = 3 * (guides + 1)  # false answers by base twice and the novice once, true ones the other way round
        of_csd = (three_times + OTHERS) * forget if config.method == "csd" else 0
        read += retain + neighbours + of_csd
    if config.stop:
        checked = min(config.stop.forget_rows or forget, forget)
        moving = guides * checked if "false_answers" in config.named_levels else 0
        read += (steps // config.stop.every + 2) * (checked + config.stop.retain_rows + moving)
    seconds = steps * _step_seconds(config, row.batch(together), parts, known)
    tokens = MEASURED_TOKENS if known.device.is_gpu else 1024
    seconds += time.scoring_seconds(known.shape, row.scored(read), tokens, known.device, bf16=_bf16(config))
    return _trained(config, used, seconds, saves_of(args, items), kept=2, known=known)


def asking(config: Neighbours, known: Planned) -> Cost:
    """Base's likeliest answers to questions like the given ones, and continuations, with float32 weights."""
    if known.shape is None or known.lengths is None:
        return Cost(None, {"weights": 4 * (known.parameters or 0)}, known.device)
    row = known.lengths.mean(known.rows or dict.fromkeys(known.lengths.rows, 1))
    new = min(config.max_new_tokens, row.longest)
    continued = OTHERS * known.rows["forget"] if known.rows else 0
    beams, at_once = BEAMS * config.questions + continued, BEAMS * BATCH_ROWS
    used = memory.of_generation(known.shape, at_once, round(row.prompt + new), 4, packed=False)
    seconds = time.generation_seconds(known.shape, beams, at_once, new, known.device, 4)
    return Cost(seconds, _with_process(used, known.device), known.device, disk=config.questions * 300)


def evaluating(config: EvalConfig, known: Planned) -> Cost:
    """The scoring pass, generations, attacks and suites, each with the device to itself."""
    device = known.device if config.device == "cuda" else known.host
    if known.shape is None or known.lengths is None or known.rows is None:
        return Cost(None, {"weights": (2 if device.is_gpu else 4) * (known.parameters or 0)}, device)
    row = known.lengths.mean(known.rows)
    fullest = max(_moments(config, known.shape, row, device), key=lambda parts: sum(parts.values()))
    seconds = _evaluation_seconds(config, known.shape, row, known.rows, known.data, device)
    disk = BYTES_PER_ROW * sum(known.rows.values())
    return Cost(seconds, _with_process(fullest, device), device, disk)


def _moments(config: EvalConfig, shape: Shape, row: Row, device: Device) -> list[Parts]:
    """The memory of each kind of work of an evaluation. On a GPU the measured model waits elsewhere where it can."""
    width, on_cpu = (2, False) if device.is_gpu else (4, True)
    every = of.parameters(shape)
    share = row.answer / (row.prompt + row.answer)
    forward = Batch(config.batch_tokens, round(config.batch_tokens * share))
    scoring = memory.of_scoring(shape, forward, width, packed=on_cpu)
    beside = {"measured model": 4 * every} if on_cpu else {}
    tokens = round(row.prompt + min(config.max_new_tokens, row.longest))
    found = [scoring | beside, memory.of_generation(shape, config.batch_rows, tokens, width, packed=on_cpu)]
    if config.suites:
        found.append(memory.of_suites(shape, QUESTION, width))
    if config.robustness and config.robustness.relearn:
        relearn = config.robustness.relearn
        found.append(memory.of_relearning(shape, row.fullest(relearn.batch_rows), width, relearn.rank) | beside)
        found.append(memory.of_scoring(shape, forward, width if relearn.rank else 4, packed=on_cpu) | beside)
    if config.patching:
        found.append(scoring | {"base and gold": 2 * width * every})
    if config.backend == "vllm" and device.is_gpu:
        found = [parts | {"vLLM": round(VLLM_SHARE * device.memory / USABLE)} for parts in found]
    return found


def _evaluation_seconds(
    config: EvalConfig, shape: Shape, row: Row, rows: dict[str, int], data: DataConfig, device: Device
) -> float:
    bf16, forget = device.is_gpu, rows["forget"]
    width = 2 if bf16 else 4

    def scored(count: float, false: float = 0, *, bf16: bool = bf16) -> float:
        return time.scoring_seconds(shape, row.scored(count, false), config.batch_tokens, device, bf16=bf16)

    asked = forget + rows["holdout"] + min(data.perturbed.retain_rows, rows["retain"])
    new = min(config.max_new_tokens, row.longest)
    seconds = scored(sum(rows.values()), asked * data.perturbed.per_row)
    seconds += time.generation_seconds(shape, asked, config.batch_rows, new, device, width)
    seconds += scored(forget)  # generations under base
    if config.robustness:
        attacks = config.robustness.attacks()
        again = [
            name for name in attacks if name not in ("untreated", "first_words") and not name.startswith("relearn")
        ]
        seconds += len(again) * scored(forget)
        if relearn := config.robustness.relearn:
            batch = row.batch(relearn.batch_rows)
            step, half = time.step_operations(shape, TrainConfig(), batch), bf16 and relearn.rank is not None
            seconds += 2 * relearn.steps * time.product_seconds(step, batch.tokens, device, bf16=half)
            seconds += 2 * scored(forget * (1 - relearn.forget_share), bf16=half)
    if config.sampling:
        batches = math.ceil(config.sampling.samples / config.batch_rows)
        seconds += forget * time.generation_seconds(shape, batches, 1, new, device, width)
    return seconds + sum(_suite_seconds(suite, shape, device, bf16=bf16) for suite in config.suites)


def _suite_seconds(suite: Suite, shape: Shape, device: Device, *, bf16: bool) -> float:
    """lm-eval's forwards have the head at each position."""
    questions, tasks, forwards, tokens = SUITES.get(suite.task, OTHER_SUITE)
    asked = min(questions, tasks * suite.limit) if suite.limit else questions
    every = asked * forwards * tokens * (1 + (suite.num_fewshot or 0))
    together = memory.FORWARD_BYTES // (shape.vocab_size * 6)
    return time.product_seconds(time.forward_operations(shape, Batch(every, every)), together, device, bf16=bf16)


def packaging(config: object, known: Planned) -> Cost:
    """The tree for the Hub: each byte of it is read, scanned and signed."""
    stored = STORED * (known.parameters or 0)
    return Cost(3 * stored / time.DISK, disk=stored)


def publishing(config: PublishConfig, known: Planned) -> Cost:
    """The upload, and the cold download that is verified; the loopback Hub keeps a copy."""
    stored = STORED * (known.parameters or 0)
    if config.hub == "local":
        return Cost(4 * stored / time.DISK, disk=stored, scratch=stored)
    return Cost(2 * stored / time.NETWORK, scratch=stored, download=stored)


def _bf16(config: TrainConfig) -> bool:
    """Whether products are in bf16; ``auto`` is taken to be, since every device that one would plan for has it."""
    return config.precision != "fp32"


def _fixed(config: TrainConfig, known: Planned) -> Parts:
    """What a training takes at least if only the number of parameters is known."""
    count = known.parameters or 0
    if config.lora:
        return {"weights": round(count * {"fp32": 4, "bf16": 2, "nf4": memory.NF4}[config.frozen])}
    return (
        {"weights": 4 * count}
        if config.train_from_layer
        else {"weights": 4 * count, "gradients": 4 * count, "moments": moment_bytes(config.args) * count}
    )


def _step_seconds(config: TrainConfig, micro: Batch, parts: int, known: Planned) -> float:
    assert known.shape  # noqa: S101  # the callers saw to it
    trained = of.trained_parameters(known.shape, config.lora, config.train_from_layer)
    operations = time.step_operations(known.shape, config, micro)
    passes = parts * time.product_seconds(operations, micro.tokens, known.device, bf16=_bf16(config))
    return passes + time.optimizer_seconds(trained, memory.moments(config, known.shape), known.device)


def _trained(config: TrainConfig, used: Parts, seconds: float, saves: int, *, kept: int, known: Planned) -> Cost:
    """``saves`` checkpoints are written, of which ``kept`` and one being written are there at a time."""
    assert known.shape  # noqa: S101  # the callers saw to it
    trained = of.trained_parameters(known.shape, config.lora, config.train_from_layer)
    weights = 4 * (trained if config.lora else of.parameters(known.shape))
    checkpoint = weights + memory.moments(config, known.shape)
    stored = STORED * of.parameters(known.shape)
    seconds += (saves * checkpoint + 2 * stored) / time.DISK
    scratch = min(saves, kept + 1) * checkpoint
    device = known.device
    return Cost(seconds / config.processes, _with_process(used, device), device, stored, scratch)


def _with_process(parts: Parts, device: Device) -> Parts:
    return parts if device.is_gpu else parts | {"process": memory.PROCESS}
