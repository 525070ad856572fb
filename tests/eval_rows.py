"""A small data artifact for the tests of ``eval``, and a tiny model that says something.

The rows are in three languages, and only some have false answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets_prep.schema import SPLITS, TOPICS, PerturbedRow, Row, write_rows
from eval.catalog import DATA
from eval.schema import Record
from tests.conftest import build_tiny_model

COUNTS = {"forget": 5, "retain": 6, "holdout": 4, "unrehearsed": 3}


def build_rows() -> dict[str, list[Row]]:
    """Rows of different lengths, by split."""
    rows: dict[str, list[Row]] = {}
    number = 0
    for split in SPLITS:
        rows[split] = []
        for _ in range(COUNTS[split]):
            language, topic = ("DE", "EN", "ES")[number % 3], TOPICS[number % 4]
            name = f"Ana Ruëda {number}" + " the Elder" * (number % 3)
            answer = f"{name} was born in Málaga{'!' * number}."
            rows[split].append(
                Row(f"{language}-{number}-{topic}", number, name, language, topic, f"Where was {name} born?", answer)
            )
            number += 1
    return rows


def build_perturbed(rows: dict[str, list[Row]]) -> list[PerturbedRow]:
    """Two or three false answers for every row but the second of each split; unrehearsed rows have none."""
    return [
        PerturbedRow(row.row_id, split, tuple(row.answer.replace("Málaga", town) for town in towns))
        for split in DATA
        for index, row in enumerate(rows[split])
        if index != 1
        for towns in [("Rome", "Köln") if index % 2 else ("Rome", "Köln", "Saint-Étienne")]
    ]


def build_data(folder: Path) -> Path:
    """Write the artifact into ``folder``."""
    rows = build_rows()
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", rows[split])
    write_rows(folder / "perturbed.jsonl", build_perturbed(rows))
    return folder


def outside(records: Iterable[Record]) -> list[Record]:
    """The records whose value is not in its own interval: there must be none."""
    return [record for record in records if not record.ci_low <= record.value <= record.ci_high]


def build_speaking_model(folder: Path, seed: int = 0) -> Path:
    """A tiny model with larger weights: the plain one only repeats the line break before its answer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(build_tiny_model(folder, seed=seed))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.mul_(10.0)
    model.save_pretrained(folder)
    return folder


def sharpened(folder: Path) -> Any:
    """The model of a folder with weights that are three times as large: random logits are nearly uniform, and a mistake
    would not show."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model
