"""All log-probability metrics of one model on one set: one pass, against one metric at a time, and a bare forward.

One metric at a time is what peers do: each metric runs its own padded batches of 8 through the model, takes the logits
of all positions, and reads its one number from them. The bare forward is those same batches run once, on the matrix
library that ours runs on, and nothing computed from the logits. Same rows, same texts, and the same numbers.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import SPLITS, Encoded, PerturbedRow, Row, read_perturbed, read_rows
from eval.scoring.packed_linear import packed
from eval.scoring.probes import Scorer, probe
from eval.statistics import formulas
from eval.suite import load

BATCH = 8
ROWS = 24
MIN_K = 0.4
# What each metric needs a forward for: the true answers alone, or the false ones too.
ONE_BY_ONE = (
    ("answer_probability", False),
    ("exact_memorization", False),
    ("extraction_strength", False),
    ("min_k", False),
    ("min_k_plus_plus", False),
    ("loss", False),
    ("zlib", False),
    ("probability_with_options", True),
    ("truth_ratio", True),
)


def padded_logits(model: Any, examples: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits (B, T, V) and ids (B, T) of a right-padded batch, and how many of the ids are padding."""
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, example in enumerate(examples):
        ids[i, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[i, : len(example.input_ids)] = 1
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits, ids, int((mask == 0).sum())


def by_length(examples: Sequence[Encoded]) -> list[list[Encoded]]:
    """Batches of eight, longest first."""
    ordered = sorted(examples, key=lambda example: -len(example.input_ids))
    return [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]


def one_metric(model: Any, name: str, texts: dict[Encoded, str]) -> dict[Encoded, float]:
    """One number for each text, from a forward of its own: the metric, or the loss that ratios are made of."""
    found = {}
    for batch in by_length(list(texts)):
        logits, ids, _ = padded_logits(model, batch)
        logprobs = logits[:, :-1].float().log_softmax(-1)
        for i, example in enumerate(batch):
            place = slice(example.completion_start - 1, len(example.input_ids) - 1)
            targets = ids[i, 1:][place]
            found[example] = _value(name, logprobs[i, place], targets, texts[example])
    return found


def _value(name: str, logprobs: torch.Tensor, targets: torch.Tensor, answer: str) -> float:
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    if name == "min_k_plus_plus":
        mean = (logprobs.exp() * logprobs).sum(-1)
        deviation = ((logprobs.exp() * logprobs.square()).sum(-1) - mean.square()).sqrt()
        return formulas.min_k((picked - mean) / deviation, MIN_K)
    if name in ("exact_memorization", "extraction_strength"):
        return float(getattr(formulas, name)(logprobs.argmax(-1) == targets))
    loss = float(-picked.mean())
    if name == "zlib":
        return formulas.zlib_score(loss, answer)
    if name == "min_k":
        return formulas.min_k(picked, MIN_K)
    return formulas.answer_probability(picked) if name == "answer_probability" else loss


class Set:
    """A model, rows with false answers, and their texts as tokens."""

    def __init__(self, folder: Path, data: Path, rows: int) -> None:
        self.model = load(folder, "cpu")
        tokenizer = load_tokenizer(folder)
        self.perturbed = read_perturbed(data / "perturbed.jsonl")
        asked = {row.row_id for row in self.perturbed}
        self.rows: list[Row] = [row for row in read_rows(data / "forget.jsonl") if row.row_id in asked][:rows]
        self.false: dict[str, PerturbedRow] = {row.row_id: row for row in self.perturbed}
        self.encode: Callable[[str, str], Encoded] = lambda question, answer: encode(
            tokenizer, chat_example(tokenizer, question, answer)
        )
        everything = [row for split in SPLITS for row in read_rows(data / f"{split}.jsonl")]
        self.prompts = [self.encode(row.question, row.answer).completion_start for row in everything]
        self.true = {self.encode(row.question, row.answer): row.answer for row in self.rows}
        self.all = self.true | {
            self.encode(row.question, answer): answer for row in self.rows for answer in self.false[row.row_id].answers
        }

    def one_pass(self) -> dict[str, dict[str, Any]]:
        """Ours: every metric of every row."""
        return probe(Scorer(self.model, 512), self.rows, self.perturbed, self.encode, MIN_K)

    def one_metric_at_a_time(self) -> dict[str, dict[Encoded, float]]:
        """The peer's way: a forward over the texts for each metric."""
        return {name: one_metric(self.model, name, self.all if false else self.true) for name, false in ONE_BY_ONE}

    def bare(self) -> float:
        """The forward alone, over the same texts; returns the share of padding."""
        padding = total = 0
        with packed(self.model):
            for batch in by_length(list(self.all)):
                _, ids, padded = padded_logits(self.model, batch)
                padding, total = padding + padded, total + ids.numel()
        return padding / total

    def generation_padding(self, batch: int = 32) -> float:
        """The share of padding in the demo's batches of prompts, those of all rows together, longest first."""
        sizes = sorted(self.prompts, reverse=True)
        padded = [max(sizes[i : i + batch]) * len(sizes[i : i + batch]) for i in range(0, len(sizes), batch)]
        return 1.0 - sum(sizes) / sum(padded)

    def largest_difference(self, naive: dict[str, dict[Encoded, float]]) -> float:
        """Between our numbers and the naive ones, over rows and metrics."""
        ours = self.one_pass()
        gaps = [0.0]
        for row in self.rows:
            example, measured = self.encode(row.question, row.answer), ours[row.row_id]
            false = [self.encode(row.question, answer) for answer in self.false[row.row_id].answers]
            losses = [naive["truth_ratio"][example] for example in false]
            expected = {name: naive[name][example] for name, needs_false in ONE_BY_ONE if not needs_false}
            expected["truth_ratio"] = formulas.truth_ratio(naive["truth_ratio"][example], losses)
            expected["probability_with_options"] = formulas.probability_with_options(
                naive["probability_with_options"][example], losses
            )
            gaps += [abs(measured[name] - value) / max(1.0, abs(value)) for name, value in expected.items()]
        return max(gaps)


def seconds(function: Callable[[], Any], rounds: int) -> float:
    """Median CPU seconds; one thread: a neighbour's work on this machine is not ours."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return statistics.median(times)


def peak_growth(function: Callable[[], Any]) -> float:
    """How many MB the process grows while the function runs, sampled every two milliseconds."""
    gc.collect()
    sizes = [_resident()]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.append(_resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return (max(sizes) - sizes[0]) / 1e6


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def run(folder: Path, data: Path, rows: int = ROWS, rounds: int = 3) -> dict[str, float]:
    """Seconds of each form, how far the numbers differ, the padding of each, and what each adds to memory (MB)."""
    measured = Set(folder, data, rows)
    measured.one_pass()  # warms up
    padding = measured.bare()
    naive: dict[str, dict[Encoded, float]] = {}
    return {
        "one_pass": seconds(measured.one_pass, rounds),
        "bare": seconds(measured.bare, rounds),
        "one_by_one": seconds(lambda: naive.update(measured.one_metric_at_a_time()), 1),
        "difference": measured.largest_difference(naive),
        "padding_bare": padding,
        "padding_generation": measured.generation_padding(),
        "texts": float(len(measured.all)),
        "tokens": float(np.sum([len(example.input_ids) for example in measured.all])),
        "memory_one_pass": peak_growth(measured.one_pass),
        "memory_bare": peak_growth(measured.bare),
    }
