"""Peak memory of each kind of work, in bytes, from a model's shape: no weights are needed, and no device.

Formulas count the tensors that are alive at the fullest moment; tests compare them with the tensors of real steps.
Attention is counted as fused kernels have it, without scores. A name of a part says what holds the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.cost import shape as of
from pipeline.train.config import BITSANDBYTES, Frozen, Lora, Shape, TrainConfig, moment_bytes
from pipeline.unlearn.config import UnlearnConfig

Parts = dict[str, int]
"""Bytes by what holds them."""
FORWARD_BYTES = 2**31  # as in eval/scoring/batches.py, which a test compares
LOGITS_BYTES = 2**27  # as in pipeline/train/head.py
TILE = 8192
NF4 = 0.5 + 4 / 64
"""Bytes of a weight of 4 bits, with the float32 scale of each 64."""
PADDED = 3
"""Times that the texts of a scoring forward are longer side by side than as a tree: what FAME's rows have."""
PROCESS = 900_000_000
"""Bytes of the interpreter and its libraries, where models are in the host's memory too; measured (fame.md)."""


class Batch(NamedTuple):
    """Tokens of one forward, packed, and those of them in answers."""

    tokens: int
    answers: int


def of_training(shape: Shape, config: TrainConfig, batch: Batch, *, bf16: bool) -> Parts:
    """A training step of micro-batches like ``batch``, with products in bf16 or float32.

    The peak is at the beginning of the backward pass, when all activations are there, or at its end, when all gradients
    are; with accumulated gradients both come together. Weights of 4 bits may take more when they are merged.
    """
    trained = of.trained_parameters(shape, config.lora, config.train_from_layer)
    held = held_weights(shape, config.frozen) + (4 * trained if config.lora else 0)
    layers = of.trained_layers(shape, config.train_from_layer)
    whole = not config.lora and not config.train_from_layer
    head = of.head_parameters(shape)
    tiled = batch.answers * shape.vocab_size * 4 > LOGITS_BYTES and not _compares_distributions(config)
    saved = batch.tokens * saved_per_token(shape, bf16=bf16, norms=not config.lora)
    last = 12 * batch.tokens * shape.hidden_size  # the final norm
    # Under autocast each weight has a copy in bfloat16 for as long as the backward pass may need it.
    copied = bf16 and config.frozen == "fp32"
    copies = 2 * layers * of.layer_products(shape) + (0 if tiled else 2 * head) if copied else 0
    passing = batch.tokens * (2 * shape.intermediate_size * (2 if bf16 else 4) + 8 * shape.hidden_size)
    logits = max(_logits(shape, config, batch, tiled=tiled, bf16=bf16), passing)
    one_layer = saved + (2 * of.layer_products(shape) if copied else 0)
    if config.frozen == "nf4":
        one_layer += 2 * of.largest_product(shape)  # its 4 bits are unpacked for each product
    activations = layers * saved + last + copies
    borders = layers * (4 if config.frozen == "fp32" else 2) * batch.tokens * shape.hidden_size
    if config.checkpointed and config.lora:
        # Nothing outlives its layer, and the logits are gone when the first runs again.
        activations, logits = borders + last, max(logits, one_layer + passing)
    elif config.checkpointed:  # autocast keeps copies of trained weights until the forward's end
        activations = borders + last + max(copies, one_layer)
    accumulates = config.args.get("gradient_accumulation_steps", 1) > 1
    begin = {
        "gradients": (4 * trained if accumulates else 0) + (4 * head if whole else 0),
        "activations": activations,
        "logits": logits,
    }
    untied = 0 if tiled or not whole or not shape.tie_word_embeddings else 8 * head  # the head's and the embedding's
    end = {"gradients": 4 * trained + untied, "activations": one_layer + passing, "logits": 0}
    merging = {"merged weights": max(0, 2 * of.parameters(shape) - held) if config.frozen == "nf4" else 0}
    fullest = max(begin, end, merging, key=lambda moment: sum(moment.values()))
    return {
        "weights": held,
        "moments": moments(config, shape),
        "copies of the head": _heads_beside(shape, config),
        **fullest,
    }


def moments(config: TrainConfig, shape: Shape) -> int:
    """Bytes of all moments. The Trainer has bitsandbytes keep those of the embedding in float32."""
    each, trained = moment_bytes(config.args), of.trained_parameters(shape, config.lora, config.train_from_layer)
    whole = not config.lora and not config.train_from_layer
    in_float32 = shape.vocab_size * shape.hidden_size if whole and config.args.get("optim") in BITSANDBYTES else 0
    return each * trained + (8 - each) * in_float32


def held_weights(shape: Shape, frozen: Frozen) -> int:
    """The weights as a training holds them: below adapters they may be bfloat16, or the linear layers of 4 bits."""
    every, linear = of.parameters(shape), shape.num_hidden_layers * of.layer_products(shape)
    if frozen == "nf4":
        return round(NF4 * linear) + 2 * (every - linear)
    return (2 if frozen == "bf16" else 4) * every


def saved_per_token(shape: Shape, *, bf16: bool, norms: bool) -> int:
    """Bytes that a layer's forward keeps of each token for its backward pass.

    Both norms keep their input, and what they multiply with their weight if that is trained (``norms``); linear layers
    keep their inputs, each its own copy under autocast; attention its inputs and its output; the MLP four times its
    inner width (gate, its activation, up, their product).
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = of.heads_width(shape)
    width = 2 if bf16 else 4
    of_norms = 2 * (4 + (4 if norms else 0)) * hidden
    inputs = 5 * 2 * hidden if bf16 else 2 * 4 * hidden
    attention = (3 * queries + 2 * keys) * width + 4 * shape.num_attention_heads
    return of_norms + inputs + attention + 4 * inner * width


def _compares_distributions(config: TrainConfig) -> bool:
    return isinstance(config, UnlearnConfig) and config.retain_kl


def _heads_beside(shape: Shape, config: TrainConfig) -> int:
    """Heads that turn hidden states into distributions: base's, a copy for each term if it is trained; the novice's."""
    if not _compares_distributions(config):
        return 0
    takes_novice = config.method == "csd"  # type: ignore[attr-defined]
    copies = 0 if config.lora or config.train_from_layer else 2 if takes_novice else 1
    of_novice = (4 if config.frozen == "fp32" else 2) if takes_novice else 0
    return (4 * copies + of_novice) * of.head_parameters(shape)


def _logits(shape: Shape, config: TrainConfig, batch: Batch, *, tiled: bool, bf16: bool) -> int:
    """Logits with their gradient, in float32 and once in bf16; more of their size where distributions are compared."""
    entries = batch.answers * (min(TILE, shape.vocab_size) if tiled else shape.vocab_size)
    more = 0
    if _compares_distributions(config):
        more = 2 if config.method == "csd" else 1  # type: ignore[attr-defined]
    return entries * (8 + (2 if bf16 else 0) + 4 * more)


def of_unlearning(shape: Shape, config: UnlearnConfig, batch: Batch, *, bf16: bool) -> Parts:
    """The fullest moment of an unlearning: its step, or measuring levels, which loads a second model beside base."""
    step = of_training(shape, config, batch, bf16=bf16)
    if "gold" not in config.named_levels and config.method != "csd":
        return step
    both = {"weights": step["weights"], "a second model": held_weights(shape, config.frozen)}
    return max(step, both, key=lambda moment: sum(moment.values()))


def of_scoring(shape: Shape, batch: Batch, width: int, *, packed: bool) -> Parts:
    """Log-probabilities under weights of ``width`` bytes; on a CPU they have a ``packed`` copy (packed_linear.py)."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = of.heads_width(shape)
    layer = batch.tokens * ((2 * width + 8) * hidden + width * max(3 * inner, 2 * PADDED * (queries + keys)))
    logits = min(batch.answers * shape.vocab_size * width, FORWARD_BYTES) + 3 * 16 * shape.vocab_size * 4
    linear = shape.num_hidden_layers * of.layer_products(shape) + of.head_parameters(shape)
    return {
        "weights": width * of.parameters(shape),
        "packed weights": width * linear if packed else 0,
        "activations and logits": max(layer, logits + batch.tokens * hidden * width),
    }


def of_generation(shape: Shape, rows: int, tokens: int, width: int, *, packed: bool) -> Parts:
    """``rows`` generations of up to ``tokens`` with their prompts, in batches that eval/scoring/batches.py bounds."""
    _, keys = of.heads_width(shape)
    cache = rows * tokens * 2 * shape.num_hidden_layers * keys * width
    scoring = of_scoring(shape, Batch(rows * tokens, rows), width, packed=packed)
    return scoring | {"keys and values": min(cache, FORWARD_BYTES)}


def of_suites(shape: Shape, longest: int, width: int) -> Parts:
    """lm-eval's scoring: logits and their softmax in float32 at each position; a question of ``longest`` goes alone."""
    logits = max(FORWARD_BYTES, longest * shape.vocab_size * (width + 4))
    tokens = logits // (shape.vocab_size * (width + 4))
    return {
        "weights": width * of.parameters(shape),
        "activations and logits": logits + tokens * shape.hidden_size * width,
    }


def of_relearning(shape: Shape, batch: Batch, width: int, rank: int | None) -> Parts:
    """Float32 weights and both moments; gradients come one by one, and only a tied head's waits for the embedding's.

    With adapters of a ``rank`` the weights keep their ``width``, and only what the adapters have is trained.
    """
    every, head = of.parameters(shape), of.head_parameters(shape)
    adapters = of.adapter_parameters(shape, Lora(r=rank, alpha=rank)) if rank else 0
    saved = saved_per_token(shape, bf16=bool(rank) and width == 2, norms=not rank)
    if rank and width == 2:
        # Beside bf16 weights each adapter keeps its own float32 copy of its input, where autocast would keep one of 2
        # bytes; the frozen layers keep none.
        queries, _ = of.heads_width(shape)
        saved += 10 * shape.hidden_size + 4 * queries + 2 * shape.intermediate_size
    activations = batch.tokens * (shape.num_hidden_layers * saved + 12 * shape.hidden_size)
    return {
        "weights": width * every + 4 * adapters if rank else 4 * every,
        "moments": 8 * (adapters or every),
        "gradients": 0 if rank else 4 * head,
        "activations": activations,
        "logits": 8 * batch.answers * shape.vocab_size,
    }
