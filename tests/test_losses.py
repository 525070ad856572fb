"""Every loss against a few lines of plain torch on full logits, through one step of the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div, logsigmoid
from transformers import AutoModelForCausalLM

from core.errors import ModelError
from core.progress import Report, listening
from datasets_prep.schema import Encoded
from pipeline.train import packed
from pipeline.train.trainer import COLUMNS, collate, counts_of
from pipeline.unlearn import losses
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution, answer_log_probs
from pipeline.unlearn.trainer import UnlearnTrainer
from tests.conftest import build_tiny_model
from tests.unlearning import (
    SGD,
    plain_log_probs,
    plain_logits,
    some_counterfactual,
    some_levels,
    some_others,
    some_rows,
    unlearn_trainer,
)

Model = Any
FORGET, RETAIN = some_rows(8, 1), some_rows(8, 2)
GUIDES = [some_rows(1 + i % 3, 10 + i) for i in range(8)]  # false answers, one to three of each row
ALTERNATES = [guides[-1] for guides in GUIDES]
GAMMA, ALPHA = 0.3, 2.0


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the one that is trained, so that ratios and divergences from it are not zero."""
    return build_tiny_model(tmp_path_factory.mktemp("base"), seed=5)


def nll(model: Model, rows: list[Encoded]) -> torch.Tensor:
    return -torch.cat(plain_log_probs(model, rows)).mean()


def kl(model: Model, base: Model) -> torch.Tensor:
    ours, theirs = (torch.cat(plain_logits(m, RETAIN)).log_softmax(-1) for m in (model, base))
    return kl_div(ours, theirs.detach(), log_target=True, reduction="none").sum(-1).mean()


def wga(model: Model) -> torch.Tensor:
    values = torch.cat(plain_log_probs(model, FORGET))
    return (values.exp().detach() ** 0.5 * values).mean()


def npo(model: Model, base: Model) -> torch.Tensor:
    ours, theirs = (torch.stack([v.sum() for v in plain_log_probs(m, FORGET)]) for m in (model, base))
    return 2 / 0.1 * torch.log1p((ours - theirs.detach()).exp() ** 0.1).mean()


def altpo(model: Model, base: Model) -> torch.Tensor:
    """Row by row in probabilities, float64: the odds of the alternative against the answer, relative to base's."""
    found = []
    for true, false in zip(FORGET, ALTERNATES, strict=True):
        p, p_base, q, q_base = (
            v.double().sum().exp() for row in (true, false) for m in (model, base) for v in plain_log_probs(m, [row])
        )
        odds = (q / q_base.detach()) / (p / p_base.detach())
        found.append(-torch.log(odds**0.5 / (1 + odds**0.5)))  # log of a sigmoid, without one
    return 2 / 0.5 * torch.stack(found).mean().float()


def simnpo(model: Model) -> torch.Tensor:
    means = torch.stack([v.mean() for v in plain_log_probs(model, FORGET)])
    return -2 / 2.5 * logsigmoid(-2.5 * means - GAMMA).mean()


LEVELS = some_levels(FORGET, GUIDES, 4)
OTHERS = some_others(FORGET, LEVELS)


def csd(model: Model, base: Model) -> torch.Tensor:
    """Token by token in probabilities, row by row: no packing, no logarithm of a rescaled distribution.

    The last false answer to each row is to stay as likely as it is to base, at what is not shared and right after it.
    """
    divergence, apart = [], []
    for row, (*levels, places), guides, others, ours, theirs in zip(
        FORGET, LEVELS, GUIDES, OTHERS, plain_logits(model, FORGET), plain_logits(base, FORGET), strict=True
    ):
        asked = plain_logits(base, [Encoded((*tokens, 0), len(tokens)) for tokens in others])
        of_others = [logits[0].detach().double().softmax(-1) for logits in asked]
        gaps, known = [], False
        of_false = [logits.detach().double().softmax(-1) for logits in plain_logits(base, guides)]
        form = iter(
            [torch.stack([p[i] for p, i in zip(of_false, at, strict=True)]).mean(0) for at in zip(*places, strict=True)]
        )
        for token, content, level, z, b in zip(
            row.input_ids[row.completion_start :], *levels, ours, theirs.detach(), strict=True
        ):
            target = b.double().softmax(-1) if content else next(form)
            begins, known = content and not known, known or content
            if is_first := begins and of_others:
                target, of_others = torch.stack(of_others).mean(0), []
            if level and not begins:
                target = b.double().softmax(-1)  # the novice, which is base here
            if level:
                others = (1 - math.exp(level)) / (1 - target[token])
                target = torch.cat(
                    [target[:token] * others, target.new_tensor([math.exp(level)]), target[token + 1 :] * others]
                )
                gaps.append(z.log_softmax(-1)[token] - level)
            if is_first:
                likeliest = max((p, i) for i, p in enumerate(target.tolist()) if i != token)[1]
                gaps.append(z.log_softmax(-1)[likeliest] - target[likeliest].log())
            divergence.append((target * (target.log() - z.double().log_softmax(-1))).sum())
        apart.append(torch.stack([huber(gap) for gap in gaps]).mean() if gaps else torch.tensor(0.0))
        before, after = (plain_log_probs(each, guides[-1:])[0] for each in (base, model))
        held = [i for i in range(len(after)) if i not in places[-1] or (i and i - 1 not in places[-1])]
        of_false = [huber(after[i] - before[i].detach()) for i in held]
        apart[-1] = apart[-1] + (torch.stack(of_false).mean() if held else 0.0)
    return torch.stack(divergence).mean().float() + 0.7 * torch.stack(apart).mean()


def huber(gap: torch.Tensor) -> torch.Tensor:
    return gap.abs() * 2 - 2 if gap.abs() > 2 else gap**2 / 2


METHODS: dict[str, tuple[dict[str, Any], Callable[[Model, Model], torch.Tensor]]] = {
    "ft": ({"method": "ft"}, lambda m, b: nll(m, RETAIN)),
    "ga": ({"method": "ga"}, lambda m, b: -nll(m, FORGET)),
    "gd": ({"method": "gd", "retain_weight": ALPHA}, lambda m, b: ALPHA * nll(m, RETAIN) - nll(m, FORGET)),
    "gd, kl": (
        {"method": "gd", "retain_loss": "kl", "retain_weight": ALPHA},
        lambda m, b: ALPHA * kl(m, b) - nll(m, FORGET),
    ),
    "klm": ({"method": "klm"}, lambda m, b: kl(m, b) - nll(m, FORGET)),
    "po": ({"method": "po"}, lambda m, b: nll(m, RETAIN) + nll(m, FORGET)),  # whatever stands in the forget rows' place
    "npo": ({"method": "npo"}, lambda m, b: nll(m, RETAIN) + npo(m, b)),
    "npo, kl": ({"method": "npo", "retain_loss": "kl"}, lambda m, b: kl(m, b) + npo(m, b)),
    "simnpo": ({"method": "simnpo", "gamma": GAMMA}, lambda m, b: nll(m, RETAIN) + simnpo(m)),
    "altpo": ({"method": "altpo", "beta": 0.5}, lambda m, b: nll(m, RETAIN) + altpo(m, b)),
    "altpo, kl": ({"method": "altpo", "beta": 0.5, "retain_loss": "kl"}, lambda m, b: kl(m, b) + altpo(m, b)),
    "csd": (
        {"method": "csd", "pull_weight": 0.7, "retain_weight": ALPHA},
        lambda m, b: ALPHA * kl(m, b) + csd(m, b),
    ),
    "wga": ({"method": "wga", "beta": 0.5, "forget_weight": 3.0}, lambda m, b: nll(m, RETAIN) + 3 * wga(m)),
}


def one_step(model: Path, base: Path, out: Path, split: dict[str, int], method: dict[str, Any]) -> UnlearnTrainer:
    pairs = [
        Pair(0, None if method["method"] == "ft" else i, () if method["method"] == "ga" else (i,)) for i in range(8)
    ]
    if method["method"] in ("altpo", "csd"):
        pairs = [replace(pair, alternate=len(guides) - 1) for pair, guides in zip(pairs, GUIDES, strict=True)]
    trainer = unlearn_trainer(model, out, FORGET, RETAIN, SGD | split, pairs=pairs, guides=GUIDES, **method)
    other = AutoModelForCausalLM.from_pretrained(base, attn_implementation="rows_sdpa")
    precision = trainer.accelerator.autocast
    trainer.reference = answer_log_probs(other, FORGET, precision)
    trainer.alternate_reference = answer_log_probs(other, [row for guides in GUIDES for row in guides], precision)
    if trainer.config.method == "csd":
        trainer.counterfactual = some_counterfactual(other, FORGET, GUIDES, 4, precision)
    if trainer.config.retain_kl:
        trainer.base = BaseDistribution(other, dict(enumerate(RETAIN)), precision)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3)])
def test_one_step_equals_plain_torch_however_it_is_split(
    tiny_model: Path, base_model: Path, tmp_path: Path, name: str, batch: int, accumulation: int
) -> None:
    method, plain_loss = METHODS[name]
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = one_step(tiny_model, base_model, tmp_path, split, method)
    plain, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model, base_model))
    loss = plain_loss(plain, base)
    loss.backward()
    for parameter_name, parameter in plain.named_parameters():
        stepped = parameter.detach() - 0.1 * parameter.grad
        after = trainer.model.get_parameter(parameter_name).detach()
        torch.testing.assert_close(after, stepped, atol=3e-6, rtol=1e-5)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), abs=1e-4)
    forget = "refusal" if method["method"] == "po" else "forget"
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model)
    for kind, rows in ((forget, FORGET), ("retain", RETAIN)):
        if f"{kind}_loss" in logged:
            assert logged[f"{kind}_loss"] == pytest.approx(nll(fresh, rows).item(), abs=1e-5)
            assert logged[f"{kind}_tokens"] == sum(len(row.input_ids) - row.completion_start for row in rows)
    assert {k for k in ("forget_loss", "refusal_loss", "retain_loss") if k in logged} == {
        "ft": {"retain_loss"},
        "ga": {"forget_loss"},
    }.get(method["method"], {f"{forget}_loss", "retain_loss"})


def test_means_of_micro_batches_depend_on_the_split_as_published_code_does(
    tiny_model: Path, base_model: Path, tmp_path: Path
) -> None:
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    method = {"method": "gd", "loss_normalization": "microbatch_mean"}
    trainer = one_step(tiny_model, base_model, tmp_path, split, method)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    for i in range(0, 8, 2):
        ((nll(plain, RETAIN[i : i + 2]) - nll(plain, FORGET[i : i + 2])) / 4).backward()
    for name, parameter in plain.named_parameters():
        stepped = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), stepped, atol=3e-6, rtol=1e-5)
    by_tokens = AutoModelForCausalLM.from_pretrained(tiny_model)
    (nll(by_tokens, RETAIN) - nll(by_tokens, FORGET)).backward()
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (plain, by_tokens)]
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[1].norm()  # so the test above tells them apart


def test_k_retain_rows_with_each_forget_row(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [Pair(0, 0, (0, 1, 2)), Pair(0, 1, (3, 4, 5))]
    args = SGD | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, args, pairs=pairs, retain_rows_per_forget_row=3)
    trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    (nll(plain, RETAIN[:6]) - nll(plain, FORGET[:2])).backward()
    for name, parameter in plain.named_parameters():
        stepped = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), stepped, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_norms_of_both_terms(
    tiny_model: Path, tmp_path: Path, batch: int, accumulation: int, checkpointing: bool
) -> None:
    args = SGD | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    args |= {"max_grad_norm": 1e-3, "learning_rate": 0.0}  # clipped: the norms are of before
    args |= {"gradient_checkpointing": checkpointing}
    options = {"gradient_norms_every": 2, "retain_weight": ALPHA}
    pairs = [Pair(e, i, (i,)) for e in range(2) for i in range(8)]
    trainer = unlearn_trainer(
        tiny_model, tmp_path, FORGET, RETAIN, args | {"learning_rate": 0.0}, pairs=pairs, **options
    )
    trainer.train()
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert ["forget_grad_norm" in entry for entry in entries] == [(i + 1) % 2 == 0 for i in range(len(entries))]
    if accumulation > 1:
        return  # which rows share a step is another question; that micro-batches add up is the other test's
    for term, rows, weight in (("forget", FORGET, 1.0), ("retain", RETAIN, ALPHA)):
        plain = AutoModelForCausalLM.from_pretrained(tiny_model)
        (weight * nll(plain, rows)).backward()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm().item()
        assert entries[1][f"{term}_grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_gradient_norms_add_up_over_micro_batches(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for batch, accumulation in ((8, 1), (2, 4)):
        args = SGD | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, args, gradient_norms_every=1)
        trainer.train()
        found.append([trainer.state.log_history[0][f"{term}_grad_norm"] for term in ("forget", "retain")])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_dual_weight_follows_the_retain_loss(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [Pair(e, i, (i,)) for e in range(3) for i in range(8)]
    args = SGD | {"per_device_train_batch_size": 8}
    dual = {"rate": 0.5, "retain_loss_above_base": 0.0}
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, args, pairs=pairs, dual=dual, retain_weight=1.5)
    trainer.retain_bound = 6.0
    trainer.train()
    weight = 1.5
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    for entry in [e for e in trainer.state.log_history if "loss" in e]:
        plain.zero_grad()
        (weight * nll(plain, RETAIN) - nll(plain, FORGET)).backward()
        weight = max(0.0, weight + 0.5 * (entry["retain_loss"] - 6.0))
        assert entry["retain_weight"] == weight
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
    assert weight != 1.5
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), parameter.detach(), atol=1e-5, rtol=1e-4)


def test_cap_takes_rows_out_of_the_ascent() -> None:
    log_probs = torch.tensor([-1.0, -1.0, -9.0, -9.0], requires_grad=True)
    row, tokens = torch.tensor([0, 0, 1, 1]), torch.tensor(4)
    plain = losses.gradient_ascent(log_probs, row, tokens, caps=None)
    assert plain.item() == pytest.approx(-(1 + 1 + 9 + 9) / 4)
    caps = torch.tensor([5.0, 5.0])
    capped = losses.gradient_ascent(log_probs, row, tokens, caps=caps)
    assert capped.item() == pytest.approx(-(1 + 1) / 4)
    capped.backward()
    assert log_probs.grad.tolist() == pytest.approx([0.25, 0.25, 0, 0])
    weighted = losses.weighted_gradient_ascent(log_probs, row, tokens, beta=1.0, caps=caps)
    assert weighted.item() == pytest.approx(-2 * math.exp(-1) / 4)


@pytest.mark.parametrize("method", [{"method": "gd"}, {"method": "wga", "beta": 0.5}])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3)])
def test_a_step_with_a_cap_for_each_row(
    tiny_model: Path, tmp_path: Path, method: dict[str, Any], batch: int, accumulation: int
) -> None:
    """Every other row is at its own cap; the pairs come in another order than the rows, so a cap follows its row."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    at_cap = [i % 2 == 0 for i in range(8)]
    log_probs = plain_log_probs(plain, FORGET)
    means = torch.stack([-values.detach().mean() for values in log_probs])
    args = SGD | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    pairs = [Pair(0, i, (i,)) for i in reversed(range(8))]
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, args, pairs=pairs, **method)
    trainer.forget_caps = means + torch.tensor([-0.01 if capped else 0.01 for capped in at_cap])
    trainer.train()
    power = method.get("beta", 0.0)
    free = torch.cat([values for values, capped in zip(log_probs, at_cap, strict=True) if not capped])
    ascent = (free.exp().detach() ** power * free).sum() / sum(len(values) for values in log_probs)
    (nll(plain, RETAIN) + ascent).backward()
    for name, parameter in plain.named_parameters():
        stepped = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), stepped, atol=3e-6, rtol=1e-5)


def test_a_kl_retain_term_without_retain_rows_is_zero_with_a_gradient(tiny_model: Path, tmp_path: Path) -> None:
    """As on a rank that has no row left: the others wait for it in the backward pass."""
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, SGD, method="klm")
    trainer.base = BaseDistribution(trainer.model, {0: RETAIN[0]}, trainer.accelerator.autocast)
    batch = collate([{name: [] for name in COLUMNS}])
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor([5, 5, 1, 1]))
    assert loss.item() == 0.0
    loss.backward()
    assert all(not p.grad.any() for p in trainer.model.parameters())
    assert counts_of(batch).tolist() == [0, 0, 0, 0]


def test_the_pull_of_the_bounded_methods_ends() -> None:
    row, one = torch.tensor([0]), torch.tensor(1)
    reference = torch.tensor([-0.1])

    def pull(loss: Callable[[torch.Tensor], torch.Tensor], at: float) -> float:
        value = torch.tensor([at], requires_grad=True)
        loss(value).backward()
        assert value.grad is not None
        return value.grad.item()

    bounded = {
        "npo": lambda v: losses.negative_preference(v, row, one, reference=reference, beta=0.1),
        "simnpo": lambda v: losses.simple_negative_preference(v, row, one, here=1, beta=2.5, gamma=0.0),
        "wga": lambda v: losses.weighted_gradient_ascent(v, row, one, beta=1.0, caps=None),
    }
    for loss in bounded.values():
        assert pull(loss, -0.1) > 100 * pull(loss, -80.0) >= 0
    assert pull(bounded["npo"], -0.1) == pytest.approx(1.0)  # at base it pulls as ascent does
    assert pull(lambda v: losses.gradient_ascent(v, row, one, caps=None), -80.0) == 1.0


@pytest.mark.parametrize(
    ("beta", "margin", "pull"),
    [
        (1e-6, -3.0, 1.0),  # without a bound: ascent on the answer and descent on the alternative
        (1e-6, 3.0, 1.0),
        (0.1, 0.0, 1.0),  # at base, whatever beta is
        (7.0, 0.0, 1.0),
        (100.0, 3.0, 0.0),  # a wall: nothing is left to do on the right side
        (100.0, -3.0, 2.0),
    ],
)
def test_the_pull_of_altpo_from_no_bound_to_a_wall(beta: float, margin: float, pull: float) -> None:
    log_probs = torch.tensor([-2.0, -1.0, -4.0 + margin], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-3.0, -4.0], dtype=torch.float64)  # an answer of two tokens, an alternative of one
    row, one = torch.tensor([0, 0, 1]), torch.tensor(1)
    loss = losses.alternate_preference(log_probs, row, one, reference=reference, beta=beta)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([pull, pull, -pull], abs=1e-5)
    assert loss.item() == pytest.approx(2 / beta * math.log1p(math.exp(-beta * margin)), rel=1e-9)


def test_altpo_with_alternatives_at_base_is_npo() -> None:
    log_probs, row, rows = torch.tensor([-2.0, -1.0, -7.0]), torch.tensor([0, 0, 1]), torch.tensor(2)
    reference = torch.tensor([-1.5, -0.5])
    npo = losses.negative_preference(log_probs, row, rows, reference=reference, beta=0.1)
    both = torch.cat([log_probs, torch.tensor([-5.0, -6.0])])
    order, of_both = torch.tensor([0, 0, 1, 2, 3]), torch.cat([reference, torch.tensor([-5.0, -6.0])])
    assert torch.equal(losses.alternate_preference(both, order, rows, reference=of_both, beta=0.1), npo)


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=3), st.lists(st.floats(-30, 30), min_size=3, max_size=3))
def test_kl_is_that_of_torch(ours: list[float], base: list[float]) -> None:
    logits, other = torch.tensor([ours, base]).double(), torch.tensor([base, base]).double()
    expected = kl_div(logits.log_softmax(1), other.log_softmax(1), log_target=True, reduction="sum") / 2
    found = losses.kl_from_base(logits, other, torch.tensor(2))
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    assert found.item() >= -1e-12


def test_base_distributions_are_those_of_plain_forwards_and_do_not_move_with_the_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, SGD, retain_loss="kl")
    monkeypatch.setattr(packed, "CPU_TOKENS", 30)
    said: list[Report] = []
    with listening(said.append):
        base = BaseDistribution(trainer.model, dict(enumerate(RETAIN)), trainer.accelerator.autocast)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = torch.cat([plain_logits(plain, RETAIN)[i].detach() for i in (5, 1)])
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    torch.testing.assert_close(base.logits([5, 1], torch.device("cpu")), expected, atol=1e-5, rtol=1e-5)
    assert sum(hidden.numel() for hidden in base.hidden.values()) == 64 * sum(
        len(row.input_ids) - row.completion_start for row in RETAIN
    )
    assert len({report.done for report in said}) == len(said) > 1
    assert {report.total for report in said} == {len(RETAIN)}  # of thousands of rows it takes minutes


def test_a_model_that_changes_logits_after_the_head_is_refused_for_kl(tiny_model: Path, tmp_path: Path) -> None:
    trainer = unlearn_trainer(tiny_model, tmp_path, FORGET, RETAIN, SGD, retain_loss="kl")

    def halve(module: Any, inputs: Any, outputs: Any) -> Any:
        outputs.logits = outputs.logits / 2
        return outputs

    trainer.model.register_forward_hook(halve)
    with pytest.raises(ModelError, match="retain_loss: nll"):
        BaseDistribution(trainer.model, dict(enumerate(RETAIN)), trainer.accelerator.autocast)
