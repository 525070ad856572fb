"""The data stage: rows in, splits out.

Everything is loaded, checked, split and encoded before the first file is written: bad rows leave nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets_prep import card, checks, sources, splits
from datasets_prep.chat import encode_rows, load_tokenizer
from datasets_prep.config import DataConfig
from datasets_prep.perturb import perturb
from datasets_prep.schema import SPLITS, Encoded, Row, write_rows
from pipeline.progress import report


def run(config: DataConfig, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the split files, ``perturbed.jsonl``, ``guides.jsonl``, ``checks.json`` and the dataset card into ``out``.

    ``inputs["model"]`` is a folder with a tokenizer: every row must fit its chat template, and its tokens are counted.
    Raises DataError for rows that cannot be used and ModelError for a tokenizer that cannot; then nothing is written.
    """
    report("loading rows")
    given = config.setting == "given"
    loaded = sources.load(config)
    counts = checks.check_source(loaded.rows, given=given, allow_contradictions=config.allow_contradictions)
    rows = [placed.row for placed in loaded.rows]
    if config.shares is None:
        own = {placed.row.row_id: placed.split for placed in loaded.rows if placed.split}
        split = splits.split_as_given(rows, own)
    else:
        split = splits.split_by_topic(rows, config.shares, config.seed)
    counts |= checks.check_splits(split)
    false, guides, perturbed_counts = perturb(split, loaded.held_back, config.perturbed, config.seed)
    report("counting tokens")
    tokenizer = load_tokenizer(inputs["model"])
    tokens = {name: _tokens(encode_rows(tokenizer, split[name])) for name in SPLITS}
    found = {
        "source": {**loaded.description, "rows_sha256": sources.rows_sha256(rows)},
        "counts": counts,
        "identities": len({row.identity_id for row in rows}),
        "mixed_identities": splits.mixed_identities(split),
        "rows": {name: len(split[name]) for name in SPLITS},
        "perturbed": perturbed_counts,
        "tokens": tokens,
    }
    _write(out, split, found, card.render(config, split, found))
    write_rows(out / "perturbed.jsonl", false)
    write_rows(out / "guides.jsonl", guides)
    return found


def _tokens(encoded: Sequence[Encoded]) -> dict[str, float]:
    """Token counts of the chat rows: mean and longest row, and the mean of the answers with their end of turn."""
    lengths = [len(row.input_ids) for row in encoded]
    answers = [len(row.input_ids) - row.completion_start for row in encoded]
    return {
        "total": sum(lengths),
        "mean": round(sum(lengths) / len(lengths), 2),
        "longest": max(lengths),
        "mean_answer": round(sum(answers) / len(answers), 2),
    }


def _write(out: Path, split: Mapping[str, Sequence[Row]], found: Mapping[str, Any], text: str) -> None:
    for name in SPLITS:
        write_rows(out / f"{name}.jsonl", split[name])
    (out / "checks.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "README.md").write_text(text, encoding="utf-8")
