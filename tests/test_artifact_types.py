"""What stages write for each other is read as it was written, or refused with the name of the file and the key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from core.artifacts import (
    FileEntry,
    Git,
    Manifest,
    Versioned,
    json_text,
    parse,
    read_facts,
    read_lines,
    read_manifest,
    write_file,
)
from core.errors import ArtifactError
from core.lineage import EarlierRelease, Forgotten, Lineage
from core.strict import Strict
from core.unlearning import (
    Bounds,
    CheckpointSelection,
    DualFacts,
    NeighbourFacts,
    PairedRows,
    ReadRows,
    UnlearnFacts,
    pairing_bytes,
    read_pairing,
    read_selection,
    write_selection,
)
from core.yaml_source import dotted
from datasets_prep.schema import CheckFacts, DataFacts, TokenFacts, read_data_facts, write_facts
from eval.schema import (
    ComparedMetric,
    Comparison,
    MeasuredWeights,
    OnOtherRows,
    OnPart,
    OtherPrompts,
    PublishedResults,
    Record,
    Verdict,
    read_records,
    read_verdict,
    write_records,
    write_verdict,
)
from pipeline.publish.schema import Release
from tests.artifacts import (
    Place,
    data_facts,
    fields,
    judged_gate,
    part_at,
    receipt,
    renamed,
    unlearn_facts,
    verdict_of,
    write_manifest,
)

RECORD = Record("fluency", "forget", 0.9, 0.8, 1.0, 40, True, 2, {"language": "DE"}, "of 40 rows", 20)
OTHERS = OnOtherRows(n=20, says="x", measured=0.1, ci_low=0.0, ci_high=0.2, at_least=0.0, at_most=0.3, passed=True)
PART = OnPart(n=20, says="x", measured=0.8, ci_low=0.7, ci_high=0.9, references={"base": 0.85})
GATE = judged_gate(confirmed=OTHERS, parts=[PART], limits="x", at_least=0.0)
COMPARED = ComparedMetric(
    metric="fluency",
    split="forget",
    ours=0.9,
    theirs=0.8,
    n=40,
    paired=True,
    difference=0.1,
    ci_low=0.0,
    ci_high=0.2,
    margin=0.05,
    p_value=0.2,
    smallest_margin=0.1,
    verdict="not shown",
)
MANIFEST = Manifest(
    stage="a",
    version="1",
    key="k",
    config={"x": [1, None]},
    inputs={"b": "d"},
    facts={"rows": 3},
    seconds=1.5,
    peak_memory_bytes=10,
    git=Git(commit=None, dirty=True),
    packages={"torch": "2"},
    device="cpu",
    argv=["x"],
    digest="d",
    files={"f": FileEntry(sha256="s", size=1, mtime_ns=1, ctime_ns=1, inode=1)},
)
EARLIER = EarlierRelease(
    repo="a/b", tag="v0.9.0", commit="c" * 40, weights_sha256="ab", forgotten=Forgotten(rows=3, sha256="ab")
)
CONTENTS: list[Strict] = [
    verdict_of(GATE, selection="20 of 40 rows"),
    CheckpointSelection(rule="the closest", read=ReadRows(forget=["a"], retain=["b"])),
    PairedRows(epoch=0, forget="a", retain=["b"], refusal="No."),
    unlearn_facts(
        levels={"gold": 3.1},
        forget_cap=5.0,
        bounds=Bounds(retain_loss=0.4, forget_loss=3.1),
        dual=DualFacts(retain_bound=0.3, last_weight=1.7),
    ),
    NeighbourFacts(asked=9, kept=6, empty=2, stating_a_forgotten_fact=1, continued=3, of_unrehearsed=["en-1-x"]),
    data_facts({"sample": {"seed": 1, "identities": 2, "topics": 20}}).changed(
        splits_left_out={"validation": 3},
        paraphrases_without_row=1,
        checks={"duplicates_within": CheckFacts(action="warn", count=1, first=["a"])},
        tokens={"forget": TokenFacts(total=9, mean=4.5, longest=5, mean_answer=2.0)},
    ),
    MeasuredWeights(weights_sha256="ab"),
    OtherPrompts(rows=3, compared=4, own="<a>Who?", base="<b>Who?"),
    PublishedResults(models={"base": [RECORD]}),
    Comparison(metrics=[COMPARED]),
    Release(
        repo="a/b",
        tag="v1.0.0",
        base_model="c/d",
        license="apache-2.0",
        weights_sha256="ab",
        recipe={"name": "x"},
        data={"forget.jsonl": "ab"},
        gate_sha256="ab",
        forgotten=EARLIER.forgotten,
        lineage=[EARLIER],
        source=Git(commit="c" * 40, dirty=True),
        packages={"torch": "2"},
        files={"README.md": "ab"},
    ),
    Lineage(releases=[EARLIER]),
    receipt(),
    MANIFEST,
]
PLACES = [(content, place, needed) for content in CONTENTS for place, needed in fields(content)]
every_field = pytest.mark.parametrize(
    ("content", "place", "needed"), PLACES, ids=[f"{type(c).__name__}.{dotted(p)}" for c, p, _ in PLACES]
)


def _read(value: object, content: Strict) -> Strict:
    return parse(json_text(value), type(content), "folder/file.json", "Run the x stage again.")


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: type(content).__name__)
def test_what_was_written_is_read(content: Strict) -> None:
    assert _read(content.model_dump(mode="json"), content) == content


@every_field
def test_a_key_of_another_name_is_refused_with_its_name(content: Strict, place: Place, needed: bool) -> None:
    with pytest.raises(ArtifactError) as caught:
        _read(renamed(content.model_dump(mode="json"), place), content)
    said = str(caught.value)
    assert said.startswith("folder/file.json: ")
    assert said.endswith(" Run the x stage again.")
    if place == ("version",) and isinstance(content, Versioned):
        assert f"made by no version of {type(content).__name__}, and only version {content.version} is read" in said
    else:
        assert f"{dotted(place)}_ is not known" in said
        assert (f"{dotted(place)} is missing" in said) == needed


@every_field
def test_a_key_that_is_missing_is_refused_unless_it_may_be(content: Strict, place: Place, needed: bool) -> None:
    value = content.model_dump(mode="json")
    del part_at(value, place[:-1])[place[-1]]
    if needed:
        with pytest.raises(ArtifactError, match=r"folder/file\.json: .*(is missing|made by no version)"):
            _read(value, content)
    else:
        _read(value, content)


@pytest.mark.parametrize(("content", "place"), [(c, p) for c, p, _ in PLACES if p != ("config",)])  # that is any JSON
def test_a_value_of_another_type_is_refused_with_its_key(content: Strict, place: Place) -> None:
    value = content.model_dump(mode="json")
    part_at(value, place[:-1])[place[-1]] = [[{"no": "such"}]]
    with pytest.raises(ArtifactError, match=re.escape(dotted(place)) if place != ("version",) else "version"):
        _read(value, content)


@pytest.mark.parametrize("content", [c for c in CONTENTS if isinstance(c, Versioned)], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("version", [0, 9, "1", None])
def test_another_version_is_refused_by_name_whatever_else_is_there(content: Versioned, version: object) -> None:
    known = f"only version {content.version} is"
    for value in ({"version": version, "other": 1}, content.model_dump(mode="json") | {"version": version}):
        given = "no version" if version is None else f"version {version!r}"
        with pytest.raises(ArtifactError, match=f"made by {given} of {type(content).__name__}, and {known}"):
            _read(value, content)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '{"version": 1}', "\udcff", pytest.param("[" * 100_000, id="deep")]
)
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=r"gate\.json: .* Run the gate stage again\."):
        read_verdict(tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gate\.json: cannot be read .*Run the gate stage again"):
        read_verdict(tmp_path)
    with pytest.raises(ArtifactError, match=r"pairing\.jsonl: cannot be read .*Run the unlearn stage again"):
        read_pairing(tmp_path)


def test_of_many_problems_three_are_told() -> None:
    with pytest.raises(ArtifactError) as caught:
        _read({"version": 1}, CONTENTS[0])
    assert str(caught.value).count("is missing") == 3
    assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    text = json_text(unlearn_facts(forget_cap=5.0).model_dump(mode="json")).replace("5.0", number)
    with pytest.raises(ArtifactError, match=r"forget_cap is -?(nan|inf)"):
        parse(text, UnlearnFacts, "f", "")
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"x": float("nan")})


def test_each_writer_and_reader_has_one_file(tmp_path: Path) -> None:
    verdict, selection, pair, _, _, facts, *_ = CONTENTS
    assert isinstance(verdict, Verdict)
    assert isinstance(selection, CheckpointSelection)
    assert isinstance(pair, PairedRows)
    assert isinstance(facts, DataFacts)
    write_verdict(tmp_path, verdict)
    write_selection(tmp_path, selection)
    write_facts(tmp_path / "checks.json", facts)
    (tmp_path / "pairing.jsonl").write_bytes(pairing_bytes([pair, pair.changed(refusal=None)]))
    assert read_verdict(tmp_path) == verdict
    assert read_selection(tmp_path) == selection
    assert read_data_facts(tmp_path) == facts
    assert read_pairing(tmp_path) == [pair, pair.changed(refusal=None)]
    assert "refusal" not in (tmp_path / "pairing.jsonl").read_text().splitlines()[1]
    names = {"gate.json", "selection.json", "checks.json", "pairing.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_line_that_is_wrong_is_named_with_its_number(tmp_path: Path) -> None:
    line = json.dumps({"epoch": 0, "forget": None, "retain": ["one\u2028line"]}, ensure_ascii=False)
    (tmp_path / "pairing.jsonl").write_text(f"{line}\n{line}\n{line.replace('epoch', 'pass')}\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"pairing\.jsonl: line 3: epoch is missing; pass is not known"):
        read_lines(tmp_path / "pairing.jsonl", PairedRows, "")


def test_records_are_read_as_written_and_refused_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    bare = Record("fluency", "retain", 1.0, 1.0, 1.0, 3, None, 2)
    write_records(path, [RECORD, bare])
    assert read_records(path) == [RECORD, bare]
    plain = [RECORD.plain(), bare.plain()]
    for place, _ in fields([RECORD]):
        path.write_text(json.dumps(renamed(plain, place)))
        with pytest.raises(ArtifactError, match=rf"results\.json: .*{re.escape(dotted(place))}_ is not known"):
            read_records(path)
    path.write_text(json.dumps([bare.plain() | {"n": "3"}]))
    with pytest.raises(ArtifactError, match=r"results\.json: \[0\]\.n is '3'.* Run the evaluation again"):
        read_records(path)


def test_the_records_of_a_release_stand_in_its_file_as_in_those_of_the_evaluations() -> None:
    results = PublishedResults(models={"base": [RECORD, Record("fluency", "retain", 1.0, 1.0, 1.0, 3, None, 2)]})
    plain = results.plain()
    assert plain["models"]["base"][1].keys() == Record("a", "b", 1.0, 1.0, 1.0, 3, None, 2).plain().keys()
    assert _read(plain, results) == results


def test_facts_are_read_from_the_manifest_and_name_the_stage(tmp_path: Path) -> None:
    facts = unlearn_facts(levels={"gold": 3.1})
    write_manifest(tmp_path, "unlearn", facts)
    assert read_facts(tmp_path, UnlearnFacts) == facts
    value = facts.model_dump(mode="json")
    for changed, said in (
        (value | {"levls": {}}, "levls is not known"),
        ({"levels": {}, "steps": 3}, "made by no version of UnlearnFacts"),
    ):
        write_file(tmp_path / "manifest.json", read_manifest(tmp_path).changed(facts=changed))
        with pytest.raises(ArtifactError, match=rf"manifest\.json: facts: {said}.* Run the unlearn stage again\."):
            read_facts(tmp_path, UnlearnFacts)


def test_a_copy_with_changes_is_checked() -> None:
    assert receipt().changed(tag="v2").tag == "v2"
    with pytest.raises(ValueError, match="tga"):
        receipt().changed(tga="v2")
    with pytest.raises(ValueError, match="tag"):
        receipt().changed(tag=2)


def test_a_file_has_one_form(tmp_path: Path) -> None:
    class Note(Strict):
        text: str
        value: float

    write_file(tmp_path / "note.json", Note(text="é", value=1e-07))
    assert (tmp_path / "note.json").read_text(encoding="utf-8") == '{\n "text": "é",\n "value": 1e-07\n}\n'
