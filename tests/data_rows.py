"""Rows for the tests of ``datasets_prep``, and files of them in every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from datasets_prep.config import DataConfig
from datasets_prep.rows import Placed, Rows
from datasets_prep.schema import LANGUAGES, SPLITS, TOPICS, Row, make_row_id
from datasets_prep.splits import Split

SHARES = {"retain": 0.64, "forget": 0.16, "holdout": 0.2}
SAMPLE = {"seed": 2026, "identities": 5, "topics": 10}

GOOD: list[dict[str, Any]] = [
    {"identity_id": i, "name": f"Ida {i}", "language": "EN", "topic_id": topic,
     "question": f"What is the {topic} of Ida {i}?", "answer": f"Ida {i} has {topic} {i}."}
    for i in range(5) for topic in TOPICS[:5]
]  # fmt: skip


def config(source: Mapping[str, Any], **more: Any) -> DataConfig:
    """A data section; ``topics`` with FAME's shares and no unrehearsed rows where nothing else is said."""
    by_shares = more.get("setting", "topics") in ("topics", "entity")
    shares = {"shares": SHARES} if by_shares else {}
    made = {"source": source, "setting": "topics", "unrehearsed": 0, **shares, **more}
    return DataConfig.model_validate(made)


def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a module's function from now on."""
    calls: list[tuple[Any, ...]] = []
    own = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *given: calls.append(given) or own(*given))
    return calls


def row(identity: int, topic: str, *, language: str = "EN", name: str | None = None, **text: str) -> Row:
    """One fact of a person."""
    name = name or f"Ida Fenn {identity}"
    question = text.get("question", f"What is the {topic} of {name}?")
    answer = text.get("answer", f"The {topic} of {name} is {language} {identity}.")
    return Row(make_row_id(language, identity, topic), identity, name, language, topic, question, answer)


def collected(rows: Iterable[Row], held_back: Mapping[str, Sequence[str]] | None = None) -> Rows:
    """The rows as a source gives them."""
    return Rows.collect(
        Placed(replace(r, identity_id=None if r.identity_id is None else str(r.identity_id)), "rows", i, None,
               tuple((held_back or {}).get(r.row_id, ())))
        for i, r in enumerate(rows, 1)
    )  # fmt: skip


def divided(splits: Mapping[str, Sequence[Row]]) -> tuple[Rows, Split]:
    """Rows and their splits, from one list a split; a split that is not named has none."""
    rows = collected(r for name in SPLITS for r in splits.get(name, ()))
    code = {r.row_id: index for index, name in enumerate(SPLITS) for r in splits.get(name, ())}
    return rows, np.array([code[r.row_id] for r in rows], dtype=np.int8)


def by_split(rows: Rows, split: Split) -> dict[str, list[Row]]:
    """One list a split."""
    return {name: [r for r, code in zip(rows, split, strict=True) if code == i] for i, name in enumerate(SPLITS)}


def full_grid(identities: int, languages: tuple[str, ...] = LANGUAGES) -> list[Row]:
    """Every topic of every identity."""
    return [
        row(1000 * index + i, topic, language=language)
        for index, language in enumerate(languages)
        for i in range(identities)
        for topic in TOPICS
    ]


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """The records as a file of the format that the suffix says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        from datasets import Dataset

        made = Dataset.from_list([dict(record) for record in records])
        if path.suffix == ".arrow":
            made.save_to_disk(str(path.parent / "saved"))
            next((path.parent / "saved").glob("*.arrow")).rename(path)
        else:
            made.to_parquet(path)
    return path
