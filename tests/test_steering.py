"""Steering: the direction is a difference of means, it is added to one layer, and what cannot be made is named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets_prep.schema import Row
from eval.attacks import steering
from eval.audit import _some, audit, left_out
from eval.config import EvalConfig, Robustness, Steering
from eval.scoring.probes import Scorer, probe
from tests.eval_rows import build_rows, sharpened

ROWS = build_rows()
FORGET, RETAIN, HOLDOUT = (ROWS[split] for split in ("forget", "retain", "holdout"))
CONFIG = EvalConfig(robustness=Robustness(steering=Steering()))
LAYER = 0


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return sharpened(tiny_model)


@pytest.fixture(scope="module")
def states(model: Any, encoder: Any) -> steering.States:
    rows = {row.row_id: encoder(row.question, row.answer) for row in (*RETAIN, *HOLDOUT)}
    return steering.last_states(model, LAYER, rows)


def _mean(states: steering.States, rows: list[Row]) -> torch.Tensor:
    return torch.stack([states[row.row_id] for row in rows]).mean(0)


def _steered(model: Any, encoder: Any, rows: dict[str, list[Row]], config: EvalConfig = CONFIG) -> dict[str, Any]:
    scorer = Scorer(model, config.batch_tokens)
    probed = probe(scorer, rows["forget"], [], encoder, config.min_k)
    found = audit(scorer, None, encoder, rows, [], probed, Path(), config)
    return {row_id: sample["attacked"] for row_id, sample in found.items()}


def test_states_are_those_of_transformers_at_the_last_token_of_the_prompt(model, encoder, states):
    for row in (RETAIN[0], HOLDOUT[1]):
        example = encoder(row.question, row.answer)
        ids = torch.tensor([example.input_ids[: example.completion_start]])
        with torch.no_grad():
            plain = model(ids, output_hidden_states=True).hidden_states[LAYER + 1][0, -1]
        torch.testing.assert_close(states[row.row_id], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("depth", "layers", "index"), [(0.5, 30, 14), (0.5, 2, 0), (1.0, 2, 1), (0.01, 30, 0)])
def test_a_depth_is_the_share_of_the_layers_up_to_one(model, monkeypatch, depth, layers, index):
    monkeypatch.setattr(steering, "layers_of", lambda _: range(layers))
    assert steering.layer_at(model, depth) == index


def test_directions_are_differences_of_means(states):
    by_language = {asked: direction for rows, direction in steering.to_the_next_language(FORGET, RETAIN, states)
                   for asked in rows}  # fmt: skip
    following = {"DE": "EN", "EN": "ES", "ES": "DE"}
    assert by_language.keys() == {row.row_id for row in FORGET}
    for row in FORGET:
        own, other = ([r for r in RETAIN if r.language == name] for name in (row.language, following[row.language]))
        torch.testing.assert_close(by_language[row.row_id], _mean(states, other) - _mean(states, own))
    [(asked, direction)] = steering.to_the_known(FORGET, RETAIN, HOLDOUT, states)
    assert asked == [row.row_id for row in FORGET]
    torch.testing.assert_close(direction, _mean(states, RETAIN) - _mean(states, HOLDOUT))


def test_readings_are_those_of_a_model_whose_layer_adds_the_direction_by_a_bias(model, encoder, states):
    attacked = _steered(model, encoder, ROWS)
    [(_, direction)] = steering.to_the_known(FORGET, RETAIN, HOLDOUT, states)
    biased = copy.deepcopy(model)
    biased.model.layers[LAYER].mlp.down_proj.bias = torch.nn.Parameter(direction)
    plain = probe(Scorer(biased, 512), FORGET, [], encoder, CONFIG.min_k)
    for row in FORGET:
        found = attacked[row.row_id]
        for metric in ("answer_probability", "extraction_strength"):
            assert found["steer_known"][metric] == pytest.approx(plain[row.row_id][metric], rel=1e-3)
        assert found["steer_language"]["answer_probability"] != found["untreated"]["answer_probability"]
    again = _steered(model, encoder, ROWS, EvalConfig(batch_tokens=16, robustness=CONFIG.robustness))
    for row_id, found in attacked.items():  # in other batches, and after the direction was taken out again
        assert again[row_id] == {attack: pytest.approx(values, rel=1e-3) for attack, values in found.items()}


def test_a_direction_that_cannot_be_made_is_left_out_and_named(model, encoder):
    assert left_out(CONFIG, ROWS, []) == {}
    alone = {**ROWS, "holdout": [], "retain": [replace(row, language="DE") for row in RETAIN]}
    assert {attack for found in _steered(model, encoder, alone).values() for attack in found} == {"untreated"}
    assert left_out(CONFIG, alone, []).keys() == {"steering between languages", "steering to known rows"}
    assert left_out(EvalConfig(), alone, []) == {}
    unknown = {**ROWS, "forget": [replace(FORGET[0], language="PL"), *FORGET[1:]]}
    first, *others = _steered(model, encoder, unknown).values()
    assert first.keys() == {"untreated", "steer_known"}
    assert all(found.keys() == {"untreated", "steer_known", "steer_language"} for found in others)


def test_rows_of_a_rare_language_are_among_those_of_the_mean(monkeypatch):
    """Of 3,000 English and three German retain rows, 200 drawn ones would all be English."""
    monkeypatch.setattr(steering, "ROWS", 6)
    rows = [
        replace(RETAIN[0], row_id=f"{name}-{i}", language=name) for name, n in (("EN", 40), ("DE", 2)) for i in range(n)
    ]
    chosen = [row.language for row in _some(rows, 0)]
    assert (chosen.count("EN"), chosen.count("DE")) == (3, 2)
