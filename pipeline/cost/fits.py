"""Whether each stage fits on its device, and what would make it smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import SystemLimitError
from core.steps import split_of_step
from eval.config import EvalConfig
from pipeline.cost.work import Cost
from pipeline.train.config import MOMENTS, SMALLER_MOMENTS, TrainConfig, TrainedOrPublished, moment_bytes


def refuse_what_does_not_fit(costs: Mapping[str, tuple[Any, Cost]], gpus: int = 0) -> None:
    """Raise SystemLimitError if a stage needs more memory than its device has, or a GPU where there is none.

    ``costs`` has the config and the cost of each stage to be run. ``gpus`` are those of the machine; 0 if it has none,
    or it is not known. The memory of a training on several processes, which may share the weights, is not judged.
    """
    problems: dict[str, list[str]] = {}
    for name, (config, cost) in costs.items():
        if problem := _too_few(config, gpus) or _problem(config, cost):
            problems.setdefault(problem, []).append(name)
    if problems:
        listed = "\n  ".join(f"{', '.join(names)}: {problem}" for problem, names in problems.items())
        raise SystemLimitError(f"The release would not come to its end on this device.\n  {listed}")


def _too_few(config: Any, gpus: int) -> str | None:
    processes = getattr(config, "processes", 1)
    if not gpus or processes <= gpus:
        return None
    return f"each of its {processes} processes needs a GPU, and there are {gpus}. Set processes to {gpus} or less."


def _problem(config: Any, cost: Cost) -> str | None:
    device, evaluates = cost.device, isinstance(config, EvalConfig)
    if device is None:
        return None
    if evaluates and config.device == "cuda" and not device.is_gpu:
        return f"eval.device is cuda, and {device.name} is no GPU. Set eval.device: cpu."
    if cost.memory <= device.memory or (not evaluates and getattr(config, "processes", 1) > 1):
        return None
    held = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in cost.parts.items() if size)
    return (
        f"{cost.memory / 1e9:.1f} GB ({held}) do not fit into the {device.memory / 1e9:.1f} GB that {device.name} has "
        f"for them. What helps: {'; '.join([*_levers(config, cost), 'a device with more memory'])}."
    )


def _levers(config: Any, cost: Cost) -> list[str]:
    if isinstance(config, EvalConfig):
        if "vLLM" in cost.parts:
            return ["eval.backend: hf"]
        if "moments" in cost.parts:
            relearn = config.robustness.relearn if config.robustness else None
            smaller = "eval.robustness.relearn.rank: 16"
            if relearn and relearn.rank:
                smaller = f"eval.robustness.relearn.batch_rows below {relearn.batch_rows}"
            return [smaller, "eval.robustness.relearn: null"]
        return [f"eval.batch_tokens below {config.batch_tokens}", f"eval.batch_rows below {config.batch_rows}"]
    train = config.train if isinstance(config, TrainedOrPublished) else config
    if not isinstance(train, TrainConfig):
        return []
    batch, parts = split_of_step(train.args)
    levers = []
    if not train.checkpointed:
        levers.append("args.gradient_checkpointing: true")
    if batch > 1:
        levers.append(f"args.per_device_train_batch_size: {batch // 2} with gradient_accumulation_steps: {2 * parts}")
    if not train.lora and moment_bytes(train.args) > MOMENTS[SMALLER_MOMENTS]:
        levers.append(f"args.optim: {SMALLER_MOMENTS}")
    if not train.lora:
        levers.append("lora")
    elif train.frozen != "nf4":
        levers.append("lora.frozen: bf16 or nf4" if train.frozen == "fp32" else "lora.frozen: nf4")
    return [*levers, "several processes that share the weights (processes, with --launch fsdp2)"]
