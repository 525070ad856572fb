"""`data.part`: a part of a source in place of all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from core.errors import DataError
from datasets_prep import prepare
from datasets_prep.config import DataConfig, Part
from datasets_prep.request import of_part
from datasets_prep.schema import TOPICS
from pipeline.stages import data_without_model
from tests.data_rows import collected, config, full_grid, row, write

GRID = full_grid(4, ("DE", "EN"))


def part(**keys: object) -> list[tuple[str | None, int | str | None, str | None]]:
    chosen = of_part(collected(reversed(GRID)), Part.model_validate(keys))
    return sorted({(r.language, r.identity_id, r.topic_id) for r in chosen}, key=str)


def test_a_part_has_the_rows_that_meet_every_key_in_the_order_of_the_whole() -> None:
    assert {language for language, _, _ in part(languages=["de"])} == {"DE"}
    assert {topic for _, _, topic in part(topics=[TOPICS[3], TOPICS[0]])} == {TOPICS[0], TOPICS[3]}
    assert {(language, who) for language, who, _ in part(identities=2)} == {
        ("DE", 0), ("DE", 1), ("EN", 1000), ("EN", 1001),
    }  # fmt: skip
    assert part(languages=["EN"], identities=1, topics=[TOPICS[5]]) == [("EN", 1000, TOPICS[5])]
    whole = collected(GRID)
    kept = [r.row_id for r in of_part(whole, Part(identities=3))]
    assert kept == [r.row_id for r in whole if r.row_id in set(kept)]
    assert len(kept) == 2 * 3 * 20


def test_identities_that_are_numbers_are_counted_as_numbers() -> None:
    rows = collected([row(i, TOPICS[0]) for i in (10, 9, 100)])
    assert [r.identity_id for r in of_part(rows, Part(identities=2))] == [9, 10]


def test_what_is_in_no_row_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.part\.languages: 'FR' is in no row of the source"):
        part(languages=["FR"])
    with pytest.raises(DataError, match=r"data\.part\.topics: .*Did you mean 'personal.email'"):
        part(topics=["personal.emai"])
    bare = collected([row(1, TOPICS[0])])
    bare.table = bare.table.set_column(1, "identity_id", [[None]])
    with pytest.raises(DataError, match=r"data\.part\.identities: the source has no identities"):
        of_part(bare, Part(identities=1))


def of_grid(folder: Path, **more: object) -> DataConfig:
    """A data section on a file of all rows, of which the German ones on five topics are used."""
    records = [
        {"identity_id": r.identity_id, "name": r.name, "language": r.language, "topic_id": r.topic_id,
         "question": r.question, "answer": r.answer}
        for r in GRID
    ]  # fmt: skip
    source = {"file": str(write(folder / "rows.jsonl", records))}
    return config(source, part={"languages": ["DE"], "topics": list(TOPICS[:5])}, **more)


def test_what_is_outside_the_part_is_in_no_row_of_a_request(tmp_path: Path) -> None:
    forget = [{"languages": ["DE", "EN"], "identities": [0]}]
    with pytest.raises(DataError, match=r"data\.request\.forget\[0\]\.languages: 'EN' is in no row of the source"):
        prepare.prepare(of_grid(tmp_path, setting="request", request={"forget": forget}))


def test_the_card_names_the_languages_of_the_part(tmp_path: Path) -> None:
    data_without_model(of_grid(tmp_path), tmp_path)
    metadata = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert metadata["language"] == ["de"]


def test_the_card_says_how_many_rows_are_not_used(tmp_path: Path) -> None:
    given = of_grid(tmp_path)
    prepared = prepare.prepare(given)
    facts = prepare.describe(given, prepared, prepared.findings)
    assert (facts.rows_in, facts.rows_outside_part) == (160, 140)
    assert sum(dict(facts.rows).values()) == 20
    assert "part" not in config({"file": str(tmp_path / "rows.jsonl")}).identity()
