"""`python -m benchmarks.ablation`: each variant changes one part of the demo's method, and what it says."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import ablation
from datasets_prep.schema import read_rows
from pipeline.recipe import load_recipe
from pipeline.unlearn import counterfactual, run
from pipeline.unlearn.continuations import Continuation, write_continuations
from pipeline.unlearn.counterfactual import Counterfactual, Levels, answer_levels
from tests.conftest import build_tiny_model
from tests.test_aim import csd_term, weighted_pull
from tests.test_counterfactual import FORM_A, Fixed, counterfactual_of, row
from tests.test_unlearn_run import write_other_facts
from tests.unlearning import (
    stage_inputs,
    unlearn_config,
)

DEMO = load_recipe("demo")
TRUE = torch.tensor([1, 2, 1])
LOGITS = torch.tensor([[0.3, 2.0, -1.0, 0.5], [0.1, 0.0, 9.0, 0.2], [0.0, 0.4, 0.2, -2.0]])


@pytest.mark.parametrize("variant", ablation.VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_differs_from_the_demo_in_one_part(variant: ablation.Variant) -> None:
    recipe, (unlearn, *_) = load_recipe("demo", variant.sets), ablation.stages_of(variant)
    assert recipe.model_dump(exclude={"unlearn"}) == DEMO.model_dump(exclude={"unlearn"})
    assert (recipe.unlearn == DEMO.unlearn) == (not variant.sets)
    assert bool(variant.sets) + bool(variant.patch) == (variant.name != "csd")
    (plain, *_) = ablation.stages_of(ablation.VARIANTS[-1])
    assert (unlearn.identity == plain.identity) == (variant.name == "csd")


def with_level(level: ablation.Level) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and levels of two rows of two and one token, whose second and third are content."""
    levels = [
        Levels((False, True), (0.0, -3.0), ((0,),)),
        Levels((True,), (-4.0,), ((),)),
    ]
    wanted = ablation.with_level(level)(
        cast("Any", Fixed(LOGITS)), cast("Any", Fixed(LOGITS)), levels, [[[-1.0]]] * 2, [0, 0]
    )
    log_probs, content, nats, *_ = wanted.of([0, 1], TRUE)
    assert content.tolist() == [False, True, True]
    torch.testing.assert_close(log_probs[0], LOGITS[0].log_softmax(0))
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3))
    return log_probs, nats[content]


def test_unilogits_level_is_one_of_v() -> None:
    log_probs, levels = with_level(ablation.uniform)
    assert levels.tolist() == pytest.approx([math.log(1 / 4)] * 2)
    assert [log_probs[1, 2].exp(), log_probs[2, 1].exp()] == pytest.approx([0.25, 0.25])


def test_undials_level_is_that_of_a_lower_logit() -> None:
    log_probs, levels = with_level(ablation.shifted)
    for place in (1, 2):
        lower = LOGITS[place].double().exp()
        lower[TRUE[place]] *= math.exp(-10)
        expected = (lower / lower.sum()).log()
        assert levels[place - 1].item() == pytest.approx(expected[TRUE[place]].item(), abs=1e-5)
        torch.testing.assert_close(log_probs[place].double(), expected, atol=1e-5, rtol=1e-5)


def test_without_a_level_at_other_form_what_surprises_the_novice_is_as_base_has_it() -> None:
    asked = {"base_false": [[[-0.1, -3.0]]], "novice_false": [[[-0.1, -3.0]]], "novice_true": [[-5.0, -7.0]]}
    forget, guides = {"a": row(FORM_A, 20)}, [[row(FORM_A, 30)]]
    assert answer_levels(forget, guides, (), **asked)[0].nats == pytest.approx((-5.0 / 3, -7.0))
    (variant,) = [variant for variant in ablation.VARIANTS if variant.name == "no-form"]
    with ablation.patched(variant.patch):
        assert answer_levels(forget, guides, (), **asked)[0].nats == pytest.approx((0.0, -7.0))


def test_one_level_is_the_mean_of_all_tokens_of_facts() -> None:
    forget = {"a": row(FORM_A, 20), "b": row(FORM_A, 21, 22)}
    guides, false = [[row(FORM_A, 30)], [row(FORM_A, 33)]], [[[-0.1, -3.0]], [[-0.1, -2.0]]]
    asked = {"base_false": false, "novice_false": false, "novice_true": [[-0.1, -7.0], [-0.1, -1.0, -4.0]]}
    assert answer_levels(forget, guides, (), **asked)[0].nats == pytest.approx((0.0, -7.0))
    a, b = ablation.one_level(forget, guides, (), **asked)
    assert (a.content, b.content) == ((False, True), (False, True, True))
    assert [*a.nats, *b.nats] == pytest.approx([0.0, -4.0, 0.0, -4.0, -4.0])


def test_another_level_is_of_facts_alone_and_ends_keep_theirs() -> None:
    levels = Levels((True, False, False), (-3.0, -0.5, 0.0), ((1, 2),))
    assert ablation.at_content(levels, [-4.0] * 3).nats == (-4.0, -0.5, 0.0)
    (variant,) = [variant for variant in ablation.VARIANTS if variant.name == "no-ends"]
    asked = {"base_false": [[[-3.0, -1.0]]], "novice_false": [[[-3.0, -1.0]]], "novice_true": [[-4.0, -2.0]]}
    guides = [[row(30, FORM_A)]]
    assert answer_levels({"a": row(20, FORM_A)}, guides, (), **asked)[0].nats == (-4.0, -2.0)
    with ablation.patched(variant.patch):
        assert answer_levels({"a": row(20, FORM_A)}, guides, (), **asked)[0].nats == pytest.approx((-4.0, -2.0 / 3))


def test_without_a_map_levels_are_what_the_novice_says() -> None:
    (variant,) = [variant for variant in ablation.VARIANTS if variant.name == "unmapped"]
    asked = {"base_false": [[[-0.1, -3.0]]], "novice_false": [[[-0.1, -9.0]]], "novice_true": [[-0.1, -7.0]]}
    forget, guides = {"a": row(FORM_A, 20)}, [[row(FORM_A, 30)]]
    assert answer_levels(forget, guides, (), **asked)[0].nats == pytest.approx((0.0, -1.0))
    with ablation.patched(variant.patch):
        assert answer_levels(forget, guides, (), **asked)[0].nats == pytest.approx((0.0, -7.0))


def test_own_form_is_what_base_says_in_the_true_answer() -> None:
    wanted = counterfactual_of(
        Fixed(LOGITS), [Levels((True, False, False), (-3.0, 0.0, 0.0), ((0, 0),))], [[[-1.0]]], [0]
    )
    assert ablation.own_form(wanted, 0) == [(0, [1, 2])]
    with ablation.patched((Counterfactual, "_form", ablation.own_form)):
        found = wanted.of([0], TRUE)
    torch.testing.assert_close(found.log_probs[1:], LOGITS[1:].log_softmax(1))


def test_the_pull_alone_is_the_forget_term_without_its_kl(tiny_model: Path, tmp_path: Path) -> None:
    trainer, args, levels = csd_term(tiny_model, tmp_path)
    pull = weighted_pull(tiny_model, levels)
    assert ablation.pull_alone(trainer, *args).item() == pytest.approx(pull, abs=1e-5)
    assert trainer._csd_term(*args).item() > pull + 1e-3  # its KL is back


def test_a_patch_changes_what_the_stage_makes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterfactual, "SURPRISING", -6.4)  # about half of a random model's log-probabilities
    build_tiny_model(tmp_path / "novice" / "model", seed=1)  # another model than base
    start = build_tiny_model(tmp_path / "start", seed=2)
    monkeypatch.setattr(ablation, "of_demo", lambda stage: SimpleNamespace(path={"model": start}[stage]))
    inputs = stage_inputs(tiny_model, tmp_path) | {name: tmp_path / name for name in ("novice", "neighbours")}
    write_other_facts(inputs["data"])
    inputs["neighbours"].mkdir()
    (inputs["neighbours"] / "neighbours.jsonl").touch()
    of = read_rows(inputs["data"] / "forget.jsonl")[0].row_id
    continuation = Continuation(row_id="c", of=of, text="x", input_ids=[5, 6, 7, 8], completion_start=2)
    write_continuations(inputs["neighbours"], [continuation])
    args = {"learning_rate": 3e-3, "per_device_train_batch_size": 6}
    config = unlearn_config(method="csd", epochs=2, keep="last", stop=None, neighbours={"questions": 1}, args=args)
    made = set()
    variants = [variant for variant in ablation.VARIANTS if variant.name != "no-aim"]  # here nothing is above its level
    patches = [None, *(variant.patch for variant in variants if variant.patch)]
    for patch in patches:
        out = tmp_path / str(len(made))
        out.mkdir()
        with ablation.patched(patch):
            run.run(config, inputs, out)
        made.add((out / "model" / "model.safetensors").read_bytes())
    assert len(made) == len(patches)
