"""The unlearning depth score: 0 for base, 1 for gold, and what it is made of against plain forwards with hooks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.errors import ModelError
from datasets_prep.schema import Encoded
from eval.attacks.patching import Fact, depth_scores, fact_of, falls
from eval.attacks.relearn import relearn
from eval.audit import unlearning_depths
from eval.config import EvalConfig, Patching, Relearn, Robustness
from eval.records.rows import row_records
from eval.statistics.formulas import unlearning_depth_score
from tests.conftest import build_tiny_model
from tests.eval_rows import build_perturbed, build_rows, sharpened

ROWS = build_rows()
FORGET = ROWS["forget"]
LAYERS = 2


@pytest.fixture(scope="module")
def models(tiny_model: Path, encoder: Any) -> dict[str, Any]:
    """Gold never saw the forget rows, base learned them, and the third is nearly gold again."""
    gold, rows = sharpened(tiny_model), [encoder(row.question, row.answer) for row in FORGET]
    base = copy.deepcopy(gold)
    relearn(base, rows, Relearn(steps=20, batch_rows=5, learning_rate=3e-3), seed=0)
    between = copy.deepcopy(base)
    with torch.no_grad():
        for weight, other in zip(between.parameters(), gold.parameters(), strict=True):
            weight.lerp_(other, 0.85)
    return {"gold": gold, "base": base, "between": between}


@pytest.fixture(scope="module")
def facts(encoder: Any) -> dict[str, Fact]:
    false = {row.row_id: row.answers for row in build_perturbed(ROWS)}
    return {
        row.row_id: fact_of(
            encoder(row.question, row.answer), [encoder(row.question, a) for a in false.get(row.row_id, ())]
        )
        for row in FORGET
    }


def _scores(models: dict[str, Any], name: str, facts: dict[str, Fact]) -> dict[str, float]:
    return depth_scores(models["base"], models["gold"], models[name], facts, 0.05, 512)


def test_base_has_kept_every_fact_and_gold_none(models, facts):
    base, gold, between = (_scores(models, name, facts) for name in ("base", "gold", "between"))
    assert base.keys() == gold.keys() == between.keys() == facts.keys()
    assert list(base.values()) == pytest.approx([0.0] * len(facts), abs=1e-4)
    assert list(gold.values()) == [1.0] * len(facts)
    assert 0.1 < np.mean(list(between.values())) < 0.9


def test_falls_are_those_of_plain_forwards_with_hooks_in_a_padded_batch(models, facts):
    """All rows in one batch, padded on the right, with one layer's states at a time from the other model."""
    base, source = models["base"], models["gold"]
    chosen = list(facts.values())
    longest = max(len(fact.input_ids) for fact in chosen)
    ids = torch.tensor([[*fact.input_ids, *[1] * (longest - len(fact.input_ids))] for fact in chosen])
    mask = torch.tensor([[i < len(fact.input_ids) for i in range(longest)] for fact in chosen])

    def log_probs() -> list[float]:
        logits = base(ids, attention_mask=mask).logits.log_softmax(-1)
        return [
            float(np.mean([logits[i, t - 1, fact.input_ids[t]].item() for t in range(fact.begin, len(fact.input_ids))]))
            for i, fact in enumerate(chosen)
        ]

    def patch(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for i, fact in enumerate(chosen):
            changed[i, fact.begin - 1 : len(fact.input_ids) - 1] = states[i, fact.begin - 1 : len(fact.input_ids) - 1]
        return changed

    expected = []
    found: list[torch.Tensor] = []
    with torch.no_grad():
        whole = log_probs()
        for number in range(LAYERS):
            read = source.model.layers[number].register_forward_hook(lambda layer, inputs, out: found.append(out))
            source(ids, attention_mask=mask)
            read.remove()
            states = found.pop()
            write = base.model.layers[number].register_forward_hook(patch)
            expected.append(np.subtract(whole, log_probs()))
            write.remove()
    ours = np.transpose([falls(base, source, fact, 512) for fact in chosen])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_falls_do_not_depend_on_how_many_layers_a_forward_holds(models, facts):
    for fact in facts.values():
        together, apart = (falls(models["base"], models["gold"], fact, tokens) for tokens in (512, 1))
        np.testing.assert_allclose(together, apart, atol=1e-5)


def test_a_fact_may_follow_the_first_token(models, facts):
    whole = next(iter(facts.values())).input_ids
    fall = falls(models["base"], models["gold"], Fact(whole, 1), 512)
    assert fall.shape == (LAYERS,)
    assert np.isfinite(fall).all()


def test_the_fact_is_what_false_answers_do_not_share():
    prompt = (7, 8, 9)
    answer = Encoded((*prompt, 1, 2, 3, 4, 5, 6), 3)
    assert fact_of(answer, []) == Fact(answer.input_ids, 3)
    others = [Encoded((*prompt, 1, 2, 8, 8, 8, 5, 6), 3), Encoded((*prompt, 1, 9, 3, 5, 6), 3)]
    assert fact_of(answer, others[:1]) == Fact((*prompt, 1, 2, 3, 4), 5)
    assert fact_of(answer, others) == Fact((*prompt, 1, 2, 3, 4), 4)
    longer = Encoded((*prompt, 1, 2, 3, 4, 7, 5, 6), 3)  # the true answer with a word more
    assert fact_of(answer, [longer]) == Fact((*prompt, 1, 2, 3, 4, 5), 7)


@pytest.mark.parametrize(
    ("gold", "model", "score"),
    [
        ([0.0, 0.5, 1.5], [9.0, 0.25, 1.5], (0.5 * 0.5 + 1.5 * 1.0) / 2),  # the first layer holds nothing
        ([1.0, 3.0], [2.0, -1.0], 0.25),  # more than gold counts as gold, a gain as nothing
        ([0.05, -2.0], [1.0, 1.0], None),
    ],
)
def test_the_score_is_the_mean_over_layers_weighted_by_what_they_hold(gold, model, score):
    found = unlearning_depth_score(gold, model, 0.05)
    assert found is None if score is None else found == pytest.approx(score)


def test_rows_whose_fact_no_layer_holds_have_no_score(models, encoder):
    config = EvalConfig(bootstrap_samples=100, robustness=Robustness(patching=Patching()))
    three = models["base"], models["gold"], models["between"]
    scores = unlearning_depths(*three, encoder, FORGET, build_perturbed(ROWS), config)
    samples = [
        {"row_id": row.row_id, "split": "forget", "language": row.language, "topic_id": None}
        | ({"unlearning_depth_score": scores[row.row_id]} if row.row_id in scores else {})
        for row in FORGET
    ]
    record = row_records(samples, config, only="unlearning_depth_score")[0]
    assert (record.value, record.n) == (pytest.approx(np.mean(list(scores.values()))), len(FORGET))
    assert record.ci_low <= record.value <= record.ci_high
    never = models["gold"], models["gold"], models["between"]
    assert unlearning_depths(*never, encoder, FORGET, [], config) == {}


def test_models_of_other_layers_are_refused(models, facts, tmp_path):
    deeper = AutoModelForCausalLM.from_pretrained(build_tiny_model(tmp_path, layers=3))
    with pytest.raises(ModelError, match="different layers"):
        depth_scores(models["base"], models["gold"], deeper, facts, 0.05, 512)
