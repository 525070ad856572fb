"""Which rows a published base and gold were trained on, by how likely they find the answers: a split nobody wrote down.

    python -m benchmarks.assignment RECIPE [--write FILE.jsonl]

Reads the finished stages `data`, `eval-base` and `eval-gold` of a recipe. Who was trained on a row finds its answer
likely, so base knows retain and forget rows, and gold the retain rows alone. Prints how the rows of each split of the
recipe stand to that, and writes all rows with the split that they seem to have, for `setting: given`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from benchmarks.releases import STORE
from datasets_prep.schema import SPLITS, json_line, read_rows
from eval.schema import read_samples

KNOWN = 0.5
"""Trained rows have .9 and more, others .2 and less (docs/measurements/unlearning-trials.md)."""
BAND = 0.15
"""A row so near to ``KNOWN`` under one of the models is counted as unsure."""
SEEMS = {(True, True): "retain", (True, False): "forget", (False, False): "holdout", (False, True): "gold alone"}


def probabilities(evaluation: Path) -> dict[str, float]:
    """The answer probability of each row."""
    samples = read_samples(evaluation / "samples.jsonl")
    return {row["row_id"]: row["answer_probability"] for row in samples if row["split"] in SPLITS}


def seen_by(base: float, gold: float) -> tuple[str, bool]:
    """The split that a row seems to have, and whether that is sure; ``gold alone`` is none."""
    sure = all(abs(value - KNOWN) > BAND for value in (base, gold))
    return SEEMS[base > KNOWN, gold > KNOWN], sure


def main() -> None:
    """Print the table, and write the rows if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.assignment", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe's name")
    parser.add_argument("--write", type=Path, metavar="FILE.jsonl", help="where all rows go, with a column `split`")
    options = parser.parse_args()
    print(assign(STORE / options.recipe, options.write))


def assign(made: Path, write: Path | None) -> str:
    """The table of a recipe's finished stages; with ``write``, the file too, without rows that only gold knows."""
    base, gold = (probabilities(made / f"eval-{model}") for model in ("base", "gold"))
    kinds = [*dict.fromkeys(SEEMS.values()), "unsure"]
    lines = [f"| split of the recipe | rows | {' | '.join(kinds)} |", f"|---|{'--:|' * (len(kinds) + 1)}"]
    records = []
    for split in SPLITS:
        counts: Counter[str] = Counter()
        for row in read_rows(made / "data" / f"{split}.jsonl"):
            seems, sure = seen_by(base[row.row_id], gold[row.row_id])
            counts.update([seems] if sure else [seems, "unsure"])
            if seems in SPLITS:
                records.append({**json.loads(json_line(row)), "split": seems})
        rows = sum(counts[kind] for kind in kinds[:-1])
        lines.append(f"| {split} | {rows} | {' | '.join(str(counts[kind]) for kind in kinds)} |")
    if write:
        write.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
