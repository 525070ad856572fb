"""`python -m benchmarks.targets [NAME …]`: what counterfactual self-distillation aims at, and how near it comes.

Reads data, base, gold and the unlearned model of releases in the store (the demo's by default) and trains nothing. At
the tokens of the facts: the mean log-probability of the true token and its standard deviation, the entropy of the
distribution and the likeliest token's probability; then the AUC of min-k and of min-k++ of forget against holdout rows.
For a target, holdout rows are as base has them. For an unlearned model also how far its log-probabilities of the true
tokens lie from their levels, with the correlation, and the KL divergence to it from its target.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.releases import STORE
from core.artifacts import read_manifest
from datasets_prep.chat import encode_rows
from datasets_prep.schema import Encoded, read_rows
from eval.config import EvalConfig
from eval.statistics.formulas import auc, min_k
from pipeline.train.fit import load
from pipeline.unlearn import run
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.reference import BaseDistribution

CPU = torch.device("cpu")
HEADS = (
    *("true token", "entropy", "likeliest", "min-k", "min-k++"),
    *("from its level", "correlation", "KL from target"),
)


def distributions(model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """Log-probabilities at all answer tokens, (N, V)."""
    base = BaseDistribution(model, dict(enumerate(rows)), nullcontext)
    return base.logits(range(len(rows)), CPU).log_softmax(dim=1)


def true_tokens(rows: Sequence[Encoded]) -> torch.Tensor:
    """The tokens of all answers, (N,)."""
    return torch.tensor([token for row in rows for token in row.input_ids[row.completion_start :]])


def scores(log_probs: torch.Tensor, true: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the true tokens, and their distance from the mean in standard deviations, (N,) each."""
    shares = log_probs.exp()
    finite = log_probs.clamp(min=-80.0)
    mean = (shares * finite).sum(dim=1)
    spread = ((shares * finite.square()).sum(dim=1) - mean.square()).clamp(min=1e-6).sqrt()
    of_true = log_probs.gather(1, true[:, None])[:, 0]
    return of_true, (of_true - mean) / spread


def by_row(values: torch.Tensor, rows: Sequence[Encoded], share: float) -> list[float]:
    """Each row's mean of its lowest ``share`` of ``values``."""
    parts = values.split([len(row.input_ids) - row.completion_start for row in rows])
    return [float(min_k(part.numpy(), share)) for part in parts]


def table(names: Sequence[str]) -> Iterator[str]:
    """Of each release: base, gold, the target and the unlearned model."""
    yield f"| release | what | {' | '.join(HEADS)} |"
    yield f"|---|---|{'--:|' * len(HEADS)}"
    for name in names:
        folder = STORE / name
        config = UnlearnConfig.model_validate(read_manifest(folder / "unlearn").config)
        base, tokenizer = load(folder / "base" / "model")
        rows = run.read(config, {"data": folder / "data", "neighbours": folder / "neighbours"}, tokenizer)
        forget = rows.encoded["forget"]
        holdout = encode_rows(tokenizer, read_rows(folder / "data" / "holdout.jsonl"))
        true, never = true_tokens(forget), true_tokens(holdout)
        counterfactual = run.counterfactual(config, base, tokenizer, folder / "novice" / "model", rows, nullcontext)
        target, _, levels, *_ = counterfactual.of(range(len(forget)), true)
        content = torch.tensor([is_content for row in counterfactual.levels for is_content in row.content])
        models = {"base": base} | {which: load(folder / which / "model")[0] for which in ("gold", "unlearn")}
        unseen = {which: scores(distributions(model, holdout), never) for which, model in models.items()}
        found = {which: distributions(model, forget) for which, model in models.items()} | {"target": target}
        for which in ("base", "gold", "target", "unlearn"):
            here, there = scores(found[which], true), unseen[which if which != "target" else "base"]
            share = EvalConfig().min_k
            against = [
                auc(by_row(mine, forget, share), by_row(others, holdout, share))
                for mine, others in zip(here, there, strict=True)
            ]
            log_probs, of_true = found[which][content], here[0][content]
            cells = [
                f"{of_true.mean():.2f} ± {of_true.std():.2f}",
                f"{-(log_probs.exp() * log_probs.clamp(min=-80.0)).sum(dim=1).mean():.2f}",
                f"{log_probs.exp().amax(dim=1).mean():.2f}",
                *(f"{value:.3f}" for value in against),
            ]
            cells += _reached(of_true, levels[content], target[content], log_probs) if which == "unlearn" else ["–"] * 3
            yield f"| {name} | {which} | {' | '.join(cells)} |"


def _reached(true: torch.Tensor, levels: torch.Tensor, target: torch.Tensor, found: torch.Tensor) -> list[str]:
    apart = true - levels
    divergence = (target.exp() * (target - found)).sum(dim=1).mean()
    correlation = torch.corrcoef(torch.stack([true, levels]))[0, 1]
    return [f"{apart.mean():.2f} ± {apart.std():.2f}", f"{correlation:.2f}", f"{divergence:.2f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__)
    parser.add_argument("names", nargs="*", default=["demo"], help="releases in the store (by default the demo)")
    for text in table(parser.parse_args().names):
        print(text, flush=True)


if __name__ == "__main__":
    main()
