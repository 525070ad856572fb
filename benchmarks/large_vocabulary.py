"""The step with a vocabulary as large as Llama 3's: time, and the peak memory of one step in a process of its own.

Random weights, hidden size 512, 4 layers, 128,256 tokens, head tied to the embeddings as in Llama 3.2. The memory is
what the resident set of a fresh process grew to beyond the loaded model: activations, logits and gradients.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gd_step import Step, naive_loss, packed_batch, packed_loss, some_rows
from core import onednn
from pipeline.engine.machine import peak_memory, reset_peak_memory
from pipeline.train import head
from pipeline.train.attention import ROWS_SDPA

ROOT = Path(__file__).resolve().parents[1]


def model_of(attention: str) -> Any:
    """The random model, always the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).train()


def step(form: str, folder: Path, *, header: bool) -> Step:
    """The form ``naive`` or ``ours`` of the step, on the demo's rows."""
    forget, retain = some_rows(folder, header)
    if form == "naive":
        model = model_of("sdpa")
        return Step(model, lambda: naive_loss(model, forget, retain))
    model = model_of(ROWS_SDPA)
    head.install(model)
    onednn.install(model)
    batch = packed_batch(forget, retain)
    return Step(model, lambda: packed_loss(model, batch))


def step_memory(form: str, folder: Path, *, header: bool) -> int:
    """Bytes that one step adds at its peak, measured in a child process."""
    argv = [sys.executable, "-m", "benchmarks.large_vocabulary", form, str(folder), "header" if header else ""]
    done = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(done.stdout)


def main(form: str, folder: str, header: str) -> None:
    """Print the bytes of one step."""
    measured = step(form, Path(folder), header=bool(header))
    reset_peak_memory()
    before = peak_memory()
    measured.loss().backward()
    print(peak_memory() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
