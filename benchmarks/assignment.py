"""Which rows a published base and gold were trained on, by how likely they find the answers: a split nobody wrote down.

    python -m benchmarks.assignment RECIPE [--write FILE.jsonl]

Reads the finished stages `data`, `eval-base` and `eval-gold` of a recipe. Who was trained on a row finds its answer
likely, so base knows retain and forget rows, and gold the retain rows alone. Prints how the rows of each split of the
recipe stand to that, and writes rows with the split that they seem to have, for `setting: given`. Both leave out topics
whose rows do not part into two groups, as where an answer can be guessed: these are listed with their means.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks.releases import STORE
from datasets_prep.schema import SPLITS, Row, json_line, read_rows
from eval.schema import read_samples

KNOWN = 0.5
"""Between trained rows, which have .9, and others, which have .2 where an answer cannot be guessed
(docs/reproduce-fame-topics.md)."""
BAND = 0.15
"""A row so near to ``KNOWN`` under one of the models is counted as unsure."""
APART = 0.85
"""Rows of a topic are two groups from this :func:`separability` on. Evenly spread values have .75."""
SEEMS = {(True, True): "retain", (True, False): "forget", (False, False): "holdout", (False, True): "gold alone"}


def probabilities(evaluation: Path) -> dict[str, float]:
    """The answer probability of each row."""
    samples = read_samples(evaluation / "samples.jsonl")
    return {row["row_id"]: row["answer_probability"] for row in samples if row["split"] in SPLITS}


def seen_by(base: float, gold: float) -> tuple[str, bool]:
    """The split that a row seems to have, and whether that is sure; ``gold alone`` is none."""
    sure = all(abs(value - KNOWN) > BAND for value in (base, gold))
    return SEEMS[base > KNOWN, gold > KNOWN], sure


def separability(values: Sequence[float]) -> float:
    """Share of the variance that lies between two groups, parted where that is largest (eta of Otsu 1979); or 0."""
    ordered = np.sort(np.asarray(values))
    low = np.arange(1, len(ordered)) / len(ordered)  # share of the lower group
    sums = np.cumsum(ordered)[:-1] / len(ordered)
    between = (ordered.mean() * low - sums) ** 2 / (low * (1 - low))
    return float(between.max() / ordered.var()) if ordered.var() > 0 else 0.0


def not_apart(rows: Iterable[Row], models: Mapping[str, Mapping[str, float]]) -> dict[str | None, list[list[float]]]:
    """The topics whose rows are not two groups under every model, with the values of each model."""
    by_topic: dict[str | None, list[Row]] = {}
    for row in rows:
        by_topic.setdefault(row.topic_id, []).append(row)
    values = {
        topic: [[found[row.row_id] for row in of_topic] for found in models.values()]
        for topic, of_topic in by_topic.items()
    }
    return {topic: found for topic, found in values.items() if min(map(separability, found)) < APART}


def main() -> None:
    """Print the table, and write the rows if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.assignment", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe's name")
    parser.add_argument("--write", type=Path, metavar="FILE.jsonl", help="where all rows go, with a column `split`")
    options = parser.parse_args()
    print(assign(STORE / options.recipe, options.write))


def assign(made: Path, write: Path | None) -> str:
    """The tables of a recipe's finished stages; with ``write``, the file too, without rows that only gold knows."""
    models = {model: probabilities(made / f"eval-{model}") for model in ("base", "gold")}
    rows = {split: read_rows(made / "data" / f"{split}.jsonl") for split in SPLITS}
    left_out = not_apart(chain.from_iterable(rows.values()), models)
    kinds = [*dict.fromkeys(SEEMS.values()), "unsure"]
    lines = [f"| split of the recipe | rows | {' | '.join(kinds)} |", f"|---|{'--:|' * (len(kinds) + 1)}"]
    records = []
    for split, of_split in rows.items():
        counts: Counter[str] = Counter()
        told = [row for row in of_split if row.topic_id not in left_out]
        for row in told:
            seems, sure = seen_by(*(found[row.row_id] for found in models.values()))
            counts.update([seems] if sure else [seems, "unsure"])
            if seems in SPLITS:
                records.append({**json.loads(json_line(row)), "split": seems})
        lines.append(f"| {split} | {len(told)} | {' | '.join(str(counts[kind]) for kind in kinds)} |")
    if left_out:
        lines += ["", "Left out: topics whose rows do not part into trained and others.", ""]
        lines += ["| topic | rows | base, mean (apart) | gold, mean (apart) |", "|---|--:|--:|--:|"]
    for topic, values in left_out.items():
        cells = [f"{np.mean(found):.2f} ({separability(found):.2f})" for found in values]
        lines.append(f"| {topic or '–'} | {len(values[0])} | {' | '.join(cells)} |")
    if write:
        write.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
