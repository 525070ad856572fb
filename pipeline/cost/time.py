"""Seconds of each kind of work: floating point operations at a share of the device's peak. Estimates, not measured.

A forward takes two operations for each weight and token, the backward pass twice as many, half of it where a weight is
frozen. Products of single tokens, as in a generation, wait for the weights to be read. Intervals, plots and the
interpreter's start are left out.
"""

from __future__ import annotations

from pipeline.cost import shape as of
from pipeline.cost.devices import Device
from pipeline.cost.memory import LOGITS_BYTES, Batch
from pipeline.train.config import Shape, TrainConfig

BEST_SHARE, HALF_AT = 0.45, 1500
"""A forward of t tokens reaches 0.45 x t / (t + 1,500) of a GPU's peak: a fifth at 1,300, two fifths at 12,000."""
CPU_SHARE = 0.5
BANDWIDTH_SHARE = 0.6
LAYER_SECONDS = 8e-4
"""Launching the kernels of one layer for one token, which no batch makes longer. Ours."""
DISK, NETWORK = 1e9, 5e7
"""Bytes a second of the disk, and of the network. Ours."""


def product_seconds(operations: float, tokens: float, device: Device, *, bf16: bool) -> float:
    """Seconds of products in forwards of so many tokens."""
    peak = (device.bf16 if bf16 else device.fp32) or float("nan")
    return operations / (peak * (BEST_SHARE * tokens / (tokens + HALF_AT) if device.is_gpu else CPU_SHARE))


def forward_operations(shape: Shape, batch: Batch) -> float:
    """Operations of a forward whose head runs at answers only."""
    body = shape.num_hidden_layers * of.layer_products(shape)
    return 2.0 * (body * batch.tokens + of.head_parameters(shape) * batch.answers)


def step_operations(shape: Shape, config: TrainConfig, batch: Batch) -> float:
    """Operations of the forward and the backward pass of one micro-batch."""
    head = 2.0 * of.head_parameters(shape) * batch.answers
    layers = of.trained_layers(shape, config.train_from_layer)
    body = 2.0 * layers * of.layer_products(shape) * batch.tokens
    backward = body * (1 if config.lora else 2) + head * (1 if config.lora or config.train_from_layer else 2)
    if config.checkpointed:
        backward += body
    if batch.answers * shape.vocab_size * 4 > LOGITS_BYTES:  # in tiles: the logits are computed again
        backward += head
    return forward_operations(shape, batch) + backward


def scoring_seconds(shape: Shape, work: Batch, batch_tokens: int, device: Device, *, bf16: bool) -> float:
    """Seconds of forwards of ``batch_tokens`` tokens over ``work``."""
    return product_seconds(forward_operations(shape, work), batch_tokens, device, bf16=bf16)


def generation_seconds(
    shape: Shape, rows: float, batch_rows: float, new_tokens: float, device: Device, width: int
) -> float:
    """Seconds of ``rows`` generations in batches: weights are read for each token, and kernels launched."""
    read = width * of.parameters(shape) / ((device.bandwidth or float("nan")) * BANDWIDTH_SHARE)
    compute = product_seconds(2.0 * of.parameters(shape) * batch_rows, batch_rows, device, bf16=width == 2)
    launch = LAYER_SECONDS * shape.num_hidden_layers if device.is_gpu else 0.0
    return -(-rows // batch_rows) * new_tokens * max(read + (0 if device.is_gpu else compute), launch)


def optimizer_seconds(trained: int, moments: int, device: Device) -> float:
    """Seconds of an optimizer's step: weights, gradients and ``moments`` (bytes) read, weights and moments written."""
    return (12.0 * trained + 2 * moments) / ((device.bandwidth or float("nan")) * BANDWIDTH_SHARE)
