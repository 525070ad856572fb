"""A checkpoint that a rule chose is judged again on the rows that did not choose it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.digests import weights_sha256
from core.errors import ArtifactError
from core.unlearning import (
    CheckpointSelection,
    NeighbourFacts,
    ReadRows,
    read_selection,
    write_selection,
)
from eval.attacks.catalog import ATTACKS
from eval.catalog import CATALOG, READINGS, ROW_FAMILIES, of_family
from eval.config import EvalConfig, Gate, GateConfig, Sampling
from eval.records.audited import audit_records
from eval.records.rows import all_records, row_records
from eval.schema import (
    OnOtherRows,
    Record,
    evaluations,
    find_record,
    read_records,
    read_samples,
    write_measured,
    write_records,
    write_samples,
)
from eval.verdicts import gates as stage
from eval.verdicts.recheck import verdict_problems
from tests.artifacts import fields, renamed, write_manifest

CONFIG = EvalConfig(bootstrap_samples=100)
AUDITED = EvalConfig(sampling=Sampling(samples=4, k=[1, 4]))
ROW_METRICS = [metric.name for metric in of_family(*ROW_FAMILIES)]
UNREAD_NONE = "Not confirmed: 0 rows are left without those that chose the checkpoint."
SPLITS = {
    metric.name: metric.splits
    for metric in CATALOG.values()
    if metric.family not in ("utility", "relative") and metric.k in (None, *AUDITED.sampling.k)
}


def judge(gates: list[Gate], inputs: dict[str, Path], config: EvalConfig = AUDITED) -> dict[str, Any]:
    """The verdict, which is also what follows from what a release publishes of it."""
    verdict = stage.judge(GateConfig(gates, config), inputs)
    published = {model: read_records(folder / "results.json") for model, folder in evaluations(inputs).items()}
    assert verdict_problems(verdict, gates, published) == []
    return verdict


def _rows(split: str, count: int, level: float, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "row_id": f"{split}-{start + i}", "split": split, "language": "EN", "topic_id": "x",
            "answer_probability": level + 0.001 * (i % 5),
        }
        for i in range(count)
    ]  # fmt: skip


def _write(folder: Path, samples: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    write_samples(folder / "samples.jsonl", samples)
    write_records(folder / "results.json", row_records(samples, CONFIG))
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """20 retain rows chose the checkpoint and kept their level; the 60 others lost a tenth."""
    model = tmp_path / "unlearn" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    chosen, rest = _rows("retain", 20, 0.95), _rows("retain", 60, 0.85, start=20)
    forget = _rows("forget", 40, 0.1)
    folders = {
        "unlearn": tmp_path / "unlearn",
        "eval-unlearned": _write(tmp_path / "unlearned", [*forget, *chosen, *rest]),
        "eval-base": _write(tmp_path / "base", [*_rows("forget", 40, 0.9), *_rows("retain", 80, 0.95)]),
    }
    write_measured(folders["eval-unlearned"], weights_sha256(model))
    _select(folders, forget=[row["row_id"] for row in forget], retain=[row["row_id"] for row in chosen])
    return folders


def _select(inputs: dict[str, Path], *, forget: list[str], retain: list[str]) -> None:
    read = ReadRows(forget=forget, retain=retain)
    write_selection(inputs["unlearn"], CheckpointSelection(rule="the closest checked step", read=read))


def _ask(inputs: dict[str, Path], row_ids: list[str]) -> dict[str, Path]:
    """The same inputs, and a neighbours stage whose questions are also those of the unrehearsed rows ``row_ids``."""
    facts = NeighbourFacts(asked=99, kept=90, empty=5, stating_a_forgotten_fact=4, continued=3, of_unrehearsed=row_ids)
    folder = inputs["unlearn"].parent / "neighbours"
    folder.mkdir(exist_ok=True)
    write_manifest(folder, "neighbours", facts)
    return inputs | {"neighbours": folder}


def _gate(split: str = "retain", **changes: Any) -> Gate:
    given = {"metric": "answer_probability", "split": split, "min_n": 40, "reason": "a test"}
    return Gate.model_validate(given | (changes or {"at_least": {"of": "base", "times": 0.9}}))


def test_rows_that_chose_do_not_carry_the_verdict_alone(inputs):
    """All rows together hold, 0.877 against 0.857; the rows that did not choose, 0.852, do not."""
    verdict = judge([_gate()], inputs)
    (gate,) = verdict.gates
    assert not gate.passed
    assert gate.measured == pytest.approx(0.877)
    assert gate.confirmed.n == 60
    assert gate.confirmed.measured == pytest.approx(0.852)
    assert "did not choose" in gate.why
    assert "20 of 80 retain rows" in verdict.selection


def test_the_bound_of_base_is_that_of_the_same_rows(inputs):
    gate = judge([_gate(at_least={"of": "base", "times": 0.85})], inputs).gates[0]
    assert gate.passed
    assert gate.confirmed.passed
    assert gate.confirmed.says.startswith("On the 60 rows that did not choose")


def test_where_every_row_chose_that_is_said(inputs):
    gate = judge([_gate("forget", at_most=0.5)], inputs).gates[0]
    assert gate.passed
    assert gate.confirmed == OnOtherRows.unjudged(0, UNREAD_NONE)


def test_where_no_row_chose_all_rows_confirm(inputs):
    _select(inputs, forget=[], retain=[])
    gate = judge([_gate()], inputs).gates[0]
    assert gate.passed
    assert gate.confirmed.n == 80


@pytest.fixture
def with_unrehearsed(inputs: dict[str, Path]) -> dict[str, Path]:
    """Of 20 unrehearsed rows the first 12, about which base was asked, kept their level; the others lost a fifth."""
    for model, rest in (("base", 0.95), ("unlearned", 0.75)):
        folder = inputs[f"eval-{model}"]
        rows = [*_rows("unrehearsed", 12, 0.95), *_rows("unrehearsed", 8, rest, start=12)]
        samples = [*read_samples(folder / "samples.jsonl"), *rows]
        write_samples(folder / "samples.jsonl", samples)
        write_records(folder / "results.json", row_records(samples, CONFIG))
    return inputs


ASKED = [f"unrehearsed-{i}" for i in range(12)]


def test_unrehearsed_rows_are_read_apart_by_whether_base_was_asked_about_them(with_unrehearsed):
    gate = _gate("unrehearsed", min_n=20, at_least={"of": "base", "times": 0.9})
    (judged,) = judge([gate], _ask(with_unrehearsed, ASKED)).gates
    assert judged.passed  # 0.872 against 0.857: the eight rows that lost more do not decide
    asked, others = judged.parts
    assert (asked.n, asked.measured) == (12, pytest.approx(0.95 + 0.001 * 21 / 12))
    assert (others.n, others.measured) == (8, pytest.approx(0.75 + 0.001 * 13 / 8))
    assert asked.ci_low < asked.measured < asked.ci_high
    assert (others.ci_low, others.ci_high) == (None, None)  # of so few rows an interval would be made up
    assert [part.references for part in judged.parts] == [
        {"base": pytest.approx(0.95 + 0.001 * 21 / 12)}, {"base": pytest.approx(0.95 + 0.001 * 13 / 8)},
    ]  # fmt: skip
    assert asked.says == (
        "On the 12 rows whose question the method put to base, it is "
        f"{asked.measured:.4g} (95 % interval {asked.ci_low:.4g} to {asked.ci_high:.4g}); base has 0.9517 there. "
        "This does not decide the verdict."
    )
    assert others.says == (
        "On the 8 rows about which it did not ask, it is 0.7516 (too few for an interval); base has 0.9516 there. "
        "This does not decide the verdict."
    )
    said = {asked.measured, asked.ci_low, others.measured, *asked.references.values(), *others.references.values()}
    assert set(judged.numbers()) >= said


def test_each_part_is_what_an_evaluation_of_its_rows_alone_would_measure(with_unrehearsed):
    asked = [f"unrehearsed-{i}" for i in (0, 3, 13, 17, 19)]
    (judged,) = judge([_gate("unrehearsed", at_least=0.1)], _ask(with_unrehearsed, asked), CONFIG).gates
    samples = read_samples(with_unrehearsed["eval-unlearned"] / "samples.jsonl")
    of_split = [row for row in samples if row["split"] == "unrehearsed"]
    for part, rows in zip(
        judged.parts,
        ([row for row in of_split if (row["row_id"] in asked) is is_asked] for is_asked in (True, False)),
        strict=True,
    ):
        record = find_record(row_records(rows, CONFIG), "answer_probability", "unrehearsed")
        interval = (None, None) if record.n == 5 else (record.ci_low, record.ci_high)
        assert (part.n, part.measured, part.ci_low, part.ci_high) == (record.n, record.value, *interval)


def test_nothing_is_read_apart_where_base_was_not_asked_and_nothing_of_other_splits(with_unrehearsed):
    gate = _gate("unrehearsed", at_least=0.1)
    assert judge([gate], with_unrehearsed).gates[0].parts == []
    assert judge([gate], _ask(with_unrehearsed, [])).gates[0].parts == []
    inputs = _ask(with_unrehearsed, ASKED)
    gates = judge([_gate(), _gate("forget", at_most=0.5), _gate("holdout", at_most=0.5)], inputs).gates
    assert [judged.parts for judged in gates] == [[], [], []]


def test_where_base_was_asked_about_all_unrehearsed_rows_there_is_one_part(with_unrehearsed):
    inputs = _ask(with_unrehearsed, [f"unrehearsed-{i}" for i in range(20)])
    (judged,) = judge([_gate("unrehearsed", at_least=0.1)], inputs).gates
    assert [part.n for part in judged.parts] == [20]
    assert "whose question the method put to base" in judged.parts[0].says


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_what_base_was_asked_and_cannot_be_read_is_an_error(inputs, text):
    asked = _ask(inputs, ASKED)
    manifest = asked["neighbours"] / "manifest.json"
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        judge([_gate()], asked)


def _measured(model: str, split: str, count: int, chosen: int = 0) -> list[dict[str, Any]]:
    """Rows with every measurement; the first ``chosen`` are forgotten, and the unlearned model knows the others."""
    rng = np.random.default_rng([len(model), len(split)])
    rows = []
    for i in range(count):
        known = model == "base" or (model == "unlearned" and i >= chosen and split == "forget")
        level = float(rng.normal(2.0 if known else 0.0))
        row = {name: float(rng.random() / 2 + known / 2) for name in ROW_METRICS if split in CATALOG[name].splits}
        row |= {name: float(known) for name in ("multiple_choice_accuracy", "empty_generation") if name in row}
        row |= {"row_id": f"{split}-{i}", "split": split, "language": ("DE", "EN")[i % 2], "topic_id": "x"}
        row |= {"truth_ratio": float(np.exp(-level)), "truth_ratio_of": "answer", "loss": -level, "zlib": level}
        row |= {"min_k": level, "min_k_plus_plus": level}
        if split == "forget":
            row["attacked"] = {attack.name: {m.name: float(rng.random()) for m in READINGS} for attack in ATTACKS}
            row["sampled"] = {"n": 4, "hits": 2 * known}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """60 of 100 forget rows and 20 of 80 retain rows chose the checkpoint; base, gold and unlearned on all of them."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "unlearn" / "model").mkdir(parents=True)
    (folder / "unlearn" / "model" / "model.safetensors").write_bytes(b"weights")
    folders = {"unlearn": folder / "unlearn"}
    sizes = (("forget", 100, 60), ("retain", 80, 0), ("holdout", 50, 0), ("unrehearsed", 30, 0), ("general", 40, 0))
    samples = {m: [row for size in sizes for row in _measured(m, *size)] for m in ("gold", "base", "unlearned")}
    for model, rows in samples.items():
        gold = None if model == "gold" else samples["gold"]
        folders[f"eval-{model}"] = _write(folder / model, rows)
        write_records(folder / model / "results.json", _records(rows, gold))
    write_measured(folders["eval-unlearned"], weights_sha256(folder / "unlearn" / "model"))
    _select(folders, forget=[f"forget-{i}" for i in range(60)], retain=[f"retain-{i}" for i in range(20)])
    return folders


def _records(
    rows: list[dict[str, Any]], gold: list[dict[str, Any]] | None, config: EvalConfig = AUDITED
) -> list[Record]:
    return [*all_records(rows, gold, config), *audit_records(rows, gold, config)]


def _unread(inputs: dict[str, Path], model: str) -> list[dict[str, Any]]:
    selection = read_selection(inputs["unlearn"])
    assert selection
    read = selection.rows("forget") | selection.rows("retain")
    return [row for row in read_samples(inputs[f"eval-{model}"] / "samples.jsonl") if row["row_id"] not in read]


@pytest.fixture(scope="module")
def without_the_chosen(everything: dict[str, Path]) -> list[Record]:
    """What an evaluation of the other rows alone would have said."""
    return _records(_unread(everything, "unlearned"), _unread(everything, "gold"))


@pytest.mark.parametrize(
    ("metric", "split"), [(name, s) for name, splits in SPLITS.items() for s in splits if s in ("forget", "retain")]
)
def test_every_metric_of_rows_is_confirmed_as_the_other_rows_alone_would_be_measured(
    everything, without_the_chosen, metric, split
):
    (gate,) = judge([_gate(split, metric=metric, at_most=1e9)], everything).gates
    assert gate.passed
    expected = find_record(without_the_chosen, metric, split)
    assert gate.confirmed.n == expected.n == (40 if split == "forget" else 60)
    assert gate.confirmed.says.startswith(f"On the {expected.n} rows that did not choose the checkpoint: ")
    assert gate.confirmed.measured == pytest.approx(expected.value)
    assert (gate.confirmed.ci_low, gate.confirmed.ci_high) == pytest.approx((expected.ci_low, expected.ci_high))


@pytest.mark.parametrize(
    ("metric", "split"),
    [
        ("answer_probability", "retain"),
        ("answer_probability", "forget"),
        ("mia_min_k_auc", "forget"),
        ("privacy_leak", "forget"),
        ("extraction_strength_nf4_gap", "forget"),
        ("leak_at_2", "forget"),
    ],
)
def test_rows_are_confirmed_under_the_settings_of_the_recipe(everything, tmp_path, metric, split):
    """A rule that read none of these rows leaves all of them: the same rows have the same record."""
    config = EvalConfig(bootstrap_samples=150, seed=7, sampling=Sampling(samples=4, k=[2]))
    inputs = dict(everything)
    for name in ("unlearn", "eval-unlearned"):
        inputs[name] = Path(shutil.copytree(everything[name], tmp_path / name))
    _select(inputs, forget=["another"], retain=["another"])
    ours, gold = (read_samples(everything[f"eval-{model}"] / "samples.jsonl") for model in ("unlearned", "gold"))
    write_records(inputs["eval-unlearned"] / "results.json", _records(ours, gold, config))
    (gate,) = judge([_gate(split, metric=metric, at_most=1e9)], inputs, config).gates
    numbers = ("measured", "ci_low", "ci_high", "n")
    assert gate.measured is not None
    assert [getattr(gate.confirmed, name) for name in numbers] == [getattr(gate, name) for name in numbers]


@pytest.mark.parametrize(
    ("metric", "bound"),
    [
        ("mia_min_k_auc", {"at_most": 0.8}),
        ("forget_quality", {"at_least": 1e-6}),
        ("forget_quality_ks", {"at_most": 0.5}),
        ("forget_against_holdout_ks", {"at_most": 0.5}),
        ("privacy_leak", {"at_least": -60.0}),
        ("leak_at_1", {"at_most": {"of": "gold", "plus": 0.3}}),
        ("leak_at_4_gap", {"at_most": 0.5}),
        ("truth_ratio", {"at_least": 0.3}),
    ],
)
def test_rows_that_are_known_still_fail_a_gate_on_a_set(everything, metric, bound):
    (gate,) = judge([_gate("forget", metric=metric, **bound)], everything).gates
    assert not gate.passed
    assert "Other rows do not confirm it. On the 40 rows" in gate.why


@pytest.mark.parametrize(
    ("metric", "split"),
    [
        ("model_utility", "retain+general"),
        ("leak_coordinate", "forget"),
        ("damage", "forget"),
        ("damage_gap", "forget"),
    ],
)
def test_what_is_no_metric_of_single_rows_is_said_not_to_be_confirmed(everything, metric, split):
    (gate,) = judge([_gate(split, metric=metric, at_most=1e9)], everything).gates
    says = f"Not confirmed: {CATALOG[metric].label} is not a metric of one split's rows."
    assert gate.confirmed == OnOtherRows.unjudged(None, says)


@pytest.mark.parametrize(
    ("metric", "split"),
    [("utility", "general"), ("fluency", "holdout"), ("answer_probability", "unrehearsed"), ("acc", "mmlu")],
)
def test_no_row_of_another_split_chose_the_checkpoint(everything, metric, split):
    (gate,) = judge([_gate(split, metric=metric, at_most=1e9)], everything).gates
    assert gate.confirmed.says == "No row of the split was used to choose the checkpoint."


def test_a_failed_gate_stays_failed_whatever_the_others_say(inputs):
    _select(inputs, forget=[], retain=[f"retain-{i}" for i in range(20, 80)])
    gate = judge([_gate(at_least=0.94)], inputs).gates[0]
    assert not gate.passed


def test_an_unlearn_stage_that_says_nothing_is_reported_as_such(inputs):
    (inputs["unlearn"] / "selection.json").unlink()
    verdict = judge([_gate()], inputs)
    assert verdict.selection is None
    assert verdict.gates[0].confirmed is None


@pytest.mark.parametrize("content", ["{", "[]", '{"rule": "x"}', '{"version": 1, "rule": "x", "read": 3}'])
def test_a_selection_that_cannot_be_read_is_an_error(inputs, content):
    (inputs["unlearn"] / "selection.json").write_text(content)
    with pytest.raises(ArtifactError, match="selection"):
        judge([_gate()], inputs)


def test_no_key_of_the_selection_can_be_renamed_in_silence(inputs):
    path = inputs["unlearn"] / "selection.json"
    before = path.read_text()
    places = [place for place, _ in fields(read_selection(inputs["unlearn"]))]
    assert ("read", "retain") in places
    for place in places:
        path.write_text(json.dumps(renamed(json.loads(before), place)))
        with pytest.raises(ArtifactError, match=rf"selection\.json: .*({place[-1]}_ is not known|made by no version)"):
            judge([_gate()], inputs)


def test_the_unlearn_stage_names_the_rows_that_its_rule_reads(tmp_path):
    from pipeline.unlearn.config import UnlearnConfig
    from pipeline.unlearn.run import UnlearnRows, _probes, _write_selection
    from tests.eval_rows import build_rows

    rows = build_rows()
    stop = {"every": 1, "forget_loss": "holdout", "retain_loss_above_base": 0.1, "retain_rows": 4}
    config = UnlearnConfig.model_validate({"method": "gd", "epochs": 1, "stop": stop, "keep": "closest"})
    made = UnlearnRows(rows, {}, [], [])
    probes = _probes(config, len(rows["forget"]), len(rows["retain"]))
    _write_selection(tmp_path, config, made, probes)
    found = read_selection(tmp_path)
    assert found is not None
    assert found.rows("forget") == {row.row_id for row in rows["forget"]}
    assert found.rows("retain") == {rows["retain"][i].row_id for i in probes.retain}
    assert len(found.rows("retain")) == 4
    some = UnlearnConfig.model_validate({**config.model_dump(), "stop": {**stop, "forget_rows": 3}})
    fewer = _probes(some, len(rows["forget"]), len(rows["retain"]))
    assert fewer.retain == probes.retain  # one draw does not move the other
    _write_selection(tmp_path, some, made, fewer)
    found = read_selection(tmp_path)
    assert found is not None
    assert found.rows("forget") == {rows["forget"][i].row_id for i in fewer.forget}
    assert len(found.rows("forget")) == 3 < len(rows["forget"])
    fixed = UnlearnConfig(method="gd", epochs=1)
    _write_selection(tmp_path, fixed, made, _probes(fixed, len(rows["forget"]), 4))
    found = read_selection(tmp_path)
    assert found is not None
    assert not any(found.rows(split) for split in ("forget", "retain"))
