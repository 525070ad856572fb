"""What every training of a release shares: loading, resuming, what to say without memory, and the files it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import _GeneratorContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from transformers.training_args import OptimizerNames
from trl import SFTTrainer

from core import memory, onednn
from core.differences import differences
from core.errors import ArtifactError
from core.generation import end_at
from core.loading import load_model
from core.ranks import first_ranks, from_all_ranks, is_first, rank
from core.yaml_source import dotted
from datasets_prep.chat import end_of_turn, load_tokenizer
from datasets_prep.schema import Encoded
from pipeline.train import head
from pipeline.train.arguments import CHECKPOINTS
from pipeline.train.attention import ROWS_SDPA
from pipeline.train.config import MOMENTS, SMALLER_MOMENTS, Frozen, moment_bytes, refuse_no_layer
from pipeline.train.guards import StepRefused
from pipeline.train.kept import sync
from pipeline.train.lora import merge
from pipeline.train.packed import check_rows_apart

MADE_BY = "made_by.json"
DOOMED = "checkpoints-to-delete"
WHOLE = "whole"  # in a checkpoint all of whose files are on the disk
NF4 = torch.uint8  # what bitsandbytes holds weights of 4 bits in, two in each
MERGE_ROWS = 8  # rows on which merged adapters are compared with the trained ones


def load(folder: Path, frozen: Frozen = "fp32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer. The weights are float32, or for adapters as :class:`Lora` says.

    Raises ModelError if model, tokenizer or chat template is absent or not whole, or the model cannot take packed rows.
    """
    tokenizer = load_tokenizer(folder)
    settings: dict[str, Any] = {"dtype": torch.float32 if frozen == "fp32" else torch.bfloat16}
    if frozen == "nf4":  # layer by layer as they are read, on the device that computes
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        settings["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    model = load_model(folder, attn_implementation=ROWS_SDPA, **settings)
    for layer in model.modules():
        if frozen == "nf4" and hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # else a forward without gradients packs the weights for good
    head.install(model)
    onednn.install(model)
    check_rows_apart(model)
    return model, tokenizer


def freeze_below(model: PreTrainedModel, layer: int) -> None:
    """Train the layers from ``layer`` on, and the final norm; 0 trains everything, embeddings included.

    Raises RecipeError if the model has no such layer.
    """
    layers = model.get_decoder().layers
    refuse_no_layer(layer, len(layers))
    if layer:
        for frozen in (model.get_input_embeddings(), model.get_output_embeddings(), *layers[:layer]):
            frozen.requires_grad_(False)


def fit(trainer: SFTTrainer, out: Path, made_by: dict[str, Any]) -> str | None:
    """Train, from the last checkpoint in ``out`` if a run was interrupted there, and write ``log.jsonl``.

    Returns why a guard ended the run, or None. ``made_by`` identifies the checkpoints. Raises ArtifactError if those in
    ``out`` have another ``made_by``, SystemLimitError if memory runs out.
    """
    checkpoints = out / CHECKPOINTS
    if is_first():
        shutil.rmtree(out / DOOMED, ignore_errors=True)
    last = first_ranks(_last_whole(checkpoints) if is_first() else None)
    _check_maker(checkpoints, made_by, resumes=last is not None)
    trainer.add_callback(_Durable(checkpoints, trainer.args.save_total_limit))
    trainer.args.save_total_limit = None
    refused = None
    try:
        with memory_limits(trainer):
            trainer.train(resume_from_checkpoint=last)
    except StepRefused as stop:
        refused = str(stop)
    steps = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]  # the summary holds times
    if is_first():
        with (out / "log.jsonl").open("w", encoding="utf-8") as file:
            # A log that came back from a checkpoint has its keys sorted.
            file.writelines(json.dumps(entry, sort_keys=True, allow_nan=False) + "\n" for entry in steps)
    return refused


class _Durable(TrainerCallback):
    """Forces each of ``checkpoints`` to the disk and marks it, and only then deletes older ones, down to ``limit``.

    The trainer deletes them as soon as the new one is written, and a power loss could then leave none that is whole.
    """

    def __init__(self, checkpoints: Path, limit: int | None) -> None:
        self.checkpoints = checkpoints
        self.limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Each process syncs what it may have written, when all have written their part."""
        folder = self.checkpoints / f"checkpoint-{state.global_step}"
        from_all_ranks([rank()])
        for path in (*folder.rglob("*"), folder, self.checkpoints):
            sync(path)
        from_all_ranks([rank()])
        if is_first():
            (folder / WHOLE).touch()
            sync(folder)
            rotate_checkpoints(str(self.checkpoints), self.limit)


def delete_checkpoints(out: Path) -> None:
    """Delete the checkpoints of a finished training.

    They are renamed first: of those that were deleted in part, a run after a killed one would resume without the
    optimizer's state.
    """
    (out / CHECKPOINTS).rename(out / DOOMED)
    shutil.rmtree(out / DOOMED, ignore_errors=True)


def go_back(trainer: SFTTrainer, out: Path) -> int:
    """Load the last checkpoint that passed the guard into the trainer's model; returns its step.

    The refused step's losses are those of the last step's weights; older weights passed. Returns 0, and changes
    nothing, if there is no such checkpoint.
    """
    steps = [int(folder.name.rpartition("-")[2]) for folder in (out / CHECKPOINTS).glob("checkpoint-*")]
    good = max((step for step in steps if step < trainer.state.global_step), default=0)
    if good and not trainer.is_deepspeed_enabled:  # whose weights cannot be loaded into an engine that trains
        trainer._load_from_checkpoint(str(out / CHECKPOINTS / f"checkpoint-{good}"))  # type: ignore[attr-defined]
        return good
    return 0


def _last_whole(checkpoints: Path) -> str | None:
    """The last whole checkpoint. Removes those that a kill or a power loss interrupted."""
    for folder in list(checkpoints.glob("checkpoint-*")):
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder)
    return get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None


def _check_maker(checkpoints: Path, made_by: dict[str, Any], *, resumes: bool) -> None:
    """Write ``made_by`` beside new checkpoints. Raises ArtifactError if existing ones have another."""
    file = checkpoints / MADE_BY
    if not resumes and is_first():
        checkpoints.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(made_by), encoding="utf-8")
    if not resumes:
        return
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{checkpoints}: does not say which recipe made it ({error}). Delete the folder to start again."
        ) from error
    other = [f"{dotted(path)} is {a!r} there and {b!r} here" for path, a, b in differences(recorded, made_by)]
    if other:
        raise ArtifactError(
            f"{checkpoints} holds checkpoints of another recipe ({'; '.join(other)}). Delete the folder to start "
            "again, or give the recipe that made them."
        )


def memory_limits(trainer: SFTTrainer | None = None) -> _GeneratorContextManager[None]:
    """Raise SystemLimitError if memory runs out: with advice for ``trainer``'s steps, or without it for a whole stage.

    A stage is inside it as a whole, since loading and measuring take memory too. The error of a training inside passes
    through unchanged.
    """
    return memory.limits(partial(_memory_advice, trainer) if trainer else _advice_beside_the_steps)


def _advice_beside_the_steps(has: str) -> str:
    return (
        f"(before or after the steps): {has}. Weights take 4 bytes a parameter, or less below adapters (lora.frozen), "
        "and a level of gold loads a second model. Free some memory, or use a smaller model or a device with more."
    )


def step_bytes(model: torch.nn.Module, moments: int) -> int:
    """Bytes of the weights as they are held, and of gradients and moments (bytes each) of those that are trained."""
    return sum(p.nbytes + ((4 + moments) * p.numel() if p.requires_grad else 0) for p in model.parameters())


def _memory_advice(trainer: SFTTrainer, has: str) -> str:
    """The needed and the available memory, and the settings that lower the need, each with its number."""
    args, model = trainer.args, cast("PreTrainedModel | PeftModel", trainer.model)
    every = sum(p.numel() * (2 if p.dtype == NF4 else 1) for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    moments = moment_bytes({"optim": OptimizerNames(args.optim).value, "optim_args": args.optim_args})
    needed = step_bytes(model, moments)
    batch, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
    rows = len(trainer.train_dataset[0]["input_ids"])  # type: ignore[index]
    levers = []
    if batch > 1:
        levers.append(
            f"args.per_device_train_batch_size: {batch // 2} with gradient_accumulation_steps: {2 * parts} (now "
            f"{batch} and {parts}; the same step, half the activations)"
        )
    if not args.gradient_checkpointing:
        levers.append("args.gradient_checkpointing: true (activations of one layer at a time, about a third more time)")
    if not isinstance(model, PeftModel) and moments > (fewer := MOMENTS[SMALLER_MOMENTS]):
        levers.append(f"args.optim: {SMALLER_MOMENTS} (moments of {fewer} bytes a weight, instead of {moments})")
    if trained == every:
        levers.append(f"lora ({4 * every / 1e9:.1f} GB and the adapters, instead of {needed / 1e9:.1f} GB)")
    elif isinstance(model, PeftModel) and torch.float32 in frozen:
        levers.append("lora.frozen: bf16 or nf4 (2 or about half a byte a weight, instead of 4)")
    elif isinstance(model, PeftModel) and NF4 not in frozen:
        levers.append("lora.frozen: nf4 (about half a byte a weight, instead of 2)")
    if not args.bf16:
        levers.append("precision: bf16 (half the activations, if the device has it)")
    return (
        f"at step {trainer.state.global_step + 1}: weights, gradients and the optimizer's moments take "
        f"{needed / 1e9:.1f} GB for {every / 1e6:,.1f} M parameters ({trained / 1e6:,.1f} M trained), {has}, a "
        f"micro-batch holds {batch} x {rows} rows. "
        f"What helps: {'; '.join(levers) or 'a device with more memory'}."
    )


def shards_weights(trainer: SFTTrainer) -> bool:
    """Whether no rank has the whole model (FSDP, ZeRO-3)."""
    return trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def place(trainer: SFTTrainer, model: torch.nn.Module) -> None:
    """Put the model where the trainer computes, before it is measured.

    A launch that shards the weights leaves it on the host until the training begins. What is measured there cannot be
    summed over ranks on GPUs, and a copy of its head stays there.
    """
    if shards_weights(trainer):
        model.to(trainer.args.device)


def whole_model(
    trainer: SFTTrainer, trained: PreTrainedModel | PeftModel, again: Callable[[], PreTrainedModel | PeftModel]
) -> PreTrainedModel | PeftModel:
    """``trained``; if its weights are sharded, on the first rank a model made ``again`` with the gathered weights.

    All ranks must call it together.
    """
    if not shards_weights(trainer):
        return trained
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not is_first():
        return trained
    fresh = again()
    if isinstance(fresh, PeftModel):  # weights of 4 bits cannot be loaded so, and those below adapters are the same
        names = [name for name, parameter in fresh.named_parameters() if parameter.requires_grad]
        fresh.load_state_dict({name: state[name] for name in names}, strict=False)
    else:
        fresh.load_state_dict(state)
    return fresh


def release_weights(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], folder: Path
) -> None:
    """Merge adapters, if any, and check the merge on the first of ``rows``; then write the files of the release."""
    if isinstance(model, PeftModel):
        model = merge(model, rows[:MERGE_ROWS])
    save_for_release(model, tokenizer, folder)


def save_for_release(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write bfloat16 safetensors, tokenizer and chat template: the files that are evaluated and published."""
    model.bfloat16()
    model.config.use_cache = True  # the trainer turns it off
    end_at(model, end_of_turn(tokenizer))  # for whoever generates with it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def row_digest(rows: Sequence[Encoded]) -> str:
    """SHA-256 of the tokens of ``rows`` and of the indices at which their answers begin."""
    plain = [[list(row.input_ids), row.completion_start] for row in rows]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
