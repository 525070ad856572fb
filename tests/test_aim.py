"""The pull of csd aims lower by as much as tokens of facts stay above their levels on average."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch.nn.functional import huber_loss
from transformers import AutoModelForCausalLM

from benchmarks.ablation import pull_alone
from pipeline.train.trainer import collate, counts_of
from pipeline.unlearn.counterfactual import Levels
from pipeline.unlearn.losses import PULL_DELTA
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.trainer import AIM_ALLOWS, AIM_FROM, AIM_RATE, LossDivisors
from tests.test_counterfactual import Fixed, counterfactual_of
from tests.unlearning import SGD, plain_log_probs, some_counterfactual, some_levels, some_rows, unlearn_trainer

FORGET = some_rows(6, 1)
GUIDES = [[row] for row in some_rows(6, 2)]
STANDING = SGD | {"learning_rate": 0.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("above", [0.4, -0.4, 9.0])
def test_the_aim_follows_the_mean_over_the_step(tiny_model: Path, tmp_path: Path, above: float) -> None:
    """The weights stand still, so that each step's mean is that of the start; 3 x 6 rows are steps of 4 rows."""
    pairs = [Pair(epoch, i, (i,), 0) for epoch in range(3) for i in range(6)]
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, FORGET, STANDING, pairs=pairs, guides=GUIDES, method="csd")
    precision, model = trainer.accelerator.autocast, cast("Any", trainer.model)
    found = some_counterfactual(model, FORGET, GUIDES, 4, precision)
    plain = plain_log_probs(AutoModelForCausalLM.from_pretrained(tiny_model), FORGET)
    shifted = [
        own._replace(nats=tuple(v.item() - above if nats else 0.0 for v, nats in zip(values, own.nats, strict=True)))
        for own, values in zip(found.levels, plain, strict=True)
    ]
    found.levels, trainer.counterfactual, trainer.base = shifted, found, found.base  # retain rows are the forget rows
    trainer.train()
    history = {entry["step"]: entry.get("aim_below") for entry in trainer.state.log_history if "forget_loss" in entry}
    expected, aim, rate = {}, 0.0, AIM_RATE * 3 / 5  # passes, steps
    for step in range(1, 6):
        rows = [i % 6 for i in range(4 * step - 4, min(4 * step, 18))]
        here = [above for i in rows for nats in shifted[i].nats if nats]
        if step > AIM_FROM * 5 and here:
            aim = min(max(aim + rate * (sum(here) / len(here) - AIM_ALLOWS), 0.0), PULL_DELTA)
            expected[step] = aim
    assert {step: value for step, value in history.items() if value is not None} == pytest.approx(expected, abs=1e-4)


class Term(NamedTuple):
    """A trainer whose forget term targets what the model says already but for levels, and the arguments of the term."""

    trainer: Any
    args: tuple[Any, ...]
    levels: list[Levels]


def csd_term(model: Path, out: Path) -> Term:
    """Three rows without false answers, pulled with a weight of .7."""
    forget = FORGET[:3]
    levels = some_levels(forget, [[row] for row in forget], 4)
    trainer: Any = unlearn_trainer(model, out, forget, forget, SGD, method="csd", pull_weight=0.7)
    trainer.base = "so that logits are kept"
    batch = collate([trainer.train_dataset[i] for i in range(3)])
    log_probs, here = trainer.log_probs(trainer.model, batch), batch["is_forget"]
    said = Fixed(trainer._logits.true.detach())
    trainer.counterfactual = counterfactual_of(said, levels, [[[]]] * 3, [0] * 3, said)
    counts, no_false = LossDivisors(*counts_of(batch)[:3]), torch.tensor([], dtype=torch.long)
    args = (log_probs[here], batch["row"][here], torch.arange(3), no_false, batch["targets"][here], counts)
    return Term(trainer, args, levels)


def weighted_pull(model: Path, levels: list[Levels], below: float = 0.0) -> float:
    """The pull of :func:`csd_term`, to so many nats below the levels, by plain forwards."""
    plain, pulls = AutoModelForCausalLM.from_pretrained(model), []
    for values, own in zip(plain_log_probs(plain, FORGET[:3]), levels, strict=True):
        gap = [value - (level - below) for value, level in zip(values, own.nats, strict=True) if level]
        apart = huber_loss(torch.stack(gap), torch.zeros(len(gap)), delta=PULL_DELTA) if gap else torch.tensor(0.0)
        pulls.append(apart)
    return 0.7 * torch.stack(pulls).mean().item()


def test_the_pull_is_to_levels_less_the_aim_and_no_other_target_moves(tiny_model: Path, tmp_path: Path) -> None:
    trainer, args, levels = csd_term(tiny_model, tmp_path)
    divergence = (trainer._csd_term(*args) - pull_alone(trainer, *args)).item()
    trainer.state.log_history = [{"aim_below": 0.2}, {"aim_below": 1.3}, {"loss": 1.0}]
    expected = weighted_pull(tiny_model, levels, below=1.3)
    assert pull_alone(trainer, *args).item() == pytest.approx(expected, abs=1e-4)
    assert trainer._csd_term(*args).item() - expected == pytest.approx(divergence, abs=1e-4)
