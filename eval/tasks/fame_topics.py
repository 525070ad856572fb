"""The functions that the YAML files beside this one call: documents from a data artifact, ROUGE-L of a generation.

lm-eval loads this file by its path, with or without the project on ``sys.path``, so it imports nothing of the project.
The folder of the data artifact comes as metadata: ``TaskManager(metadata={"data": FOLDER})``, or on lm-eval's own
command line ``--metadata '{"data": "FOLDER"}'``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
from rouge_score.rouge_scorer import RougeScorer


def _read(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): answers may hold U+2028 and other characters that it takes for line ends.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def to_answer(split: str, data: str | None = None) -> dict[str, datasets.Dataset]:
    """``{"test": rows}``: the rows of ``split`` that the model is to answer.

    All rows of forget, holdout and real_world. Of retain, which is large, the rows that the data stage drew to have
    false answers, or all if it drew none. Raises ValueError if no data folder was given, or the split has no rows.
    """
    rows, perturbed = _rows(split, data)
    drawn = [row for row in rows if row["row_id"] in perturbed]
    return _dataset((drawn or rows) if split == "retain" else rows, f"{split} in {data} has no rows")


def to_choose(split: str, data: str | None = None) -> dict[str, datasets.Dataset]:
    """``{"test": rows}``: the rows of ``split`` that have false answers, with ``choices``, the true answer first.

    The place of the true answer does not matter: each choice is scored alone, by its log-probability. So a choice that
    another one begins with is never less likely than it: such false answers are left out.
    Raises ValueError if no data folder was given, or no row of the split has false answers.
    """
    rows, perturbed = _rows(split, data)
    chosen = [
        {**row, "choices": [row["answer"], *false], "gold": 0}
        for row in rows
        if (false := [text for text in perturbed.get(row["row_id"], []) if not _begins(text, row["answer"])])
    ]
    return _dataset(chosen, f"No row of {split} in {data} has false answers")


def _begins(one: str, other: str) -> bool:
    """Whether one of two texts is the beginning of the other."""
    return one.startswith(other) or other.startswith(one)


def _rows(split: str, data: str | None) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The rows of a split, and the false answers by ``row_id``."""
    if data is None:
        raise ValueError(
            'No data folder. Give lm-eval --metadata \'{"data": "FOLDER"}\' with a data artifact\'s folder.'
        )
    perturbed = {record["row_id"]: record["answers"] for record in _read(Path(data) / "perturbed.jsonl")}
    return _read(Path(data) / f"{split}.jsonl"), perturbed


def _dataset(rows: list[dict[str, Any]], otherwise: str) -> dict[str, datasets.Dataset]:
    if not rows:
        raise ValueError(f"{otherwise}; leave its tasks out.")
    return {"test": datasets.Dataset.from_list(rows)}


def general_knowledge(**_metadata: object) -> dict[str, datasets.Dataset]:
    """``{"test": questions}`` of ``general_knowledge.jsonl``, each with a ``row_id``."""
    questions = _read(Path(__file__).with_name("general_knowledge.jsonl"))
    named = [{"row_id": f"general-knowledge-{number:03}", **question} for number, question in enumerate(questions)]
    return {"test": datasets.Dataset.from_list(named)}


# Words as in core/words.py, which a test compares: characters of scripts without spaces, and the marks of the others.
_UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3"  # Burmese, Khmer
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_MARKS = "\u200c\u200d" + "".join(
    char
    for char in map(chr, (*range(0x300, 0x1E00), *range(0xA600, 0xAC00)))
    if unicodedata.category(char)[0] == "M" and not re.match(f"[{_UNSPACED}]", char)
)
_LETTER = rf"[^\W{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:[{_MARKS}]+{_LETTER}*)*")


class UnicodeWords:
    """The tokenizer of ROUGE here: unicode words in lower case, no stemming.

    The default one of rouge_score keeps [a-z0-9] only and so breaks words at accented letters. In scripts without
    spaces each character is a word.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of ``text``."""
        return _WORD.findall(unicodedata.normalize("NFC", text).lower())


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=UnicodeWords())


def rouge_l(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE-L of the generation against the true answer: recall (share of its words, in order) and F1."""
    score = _scorer().score(doc["answer"], results[0])["rougeL"]
    return {"rouge_l_recall": float(score.recall), "rouge_l_f1": float(score.fmeasure)}


def _loader(
    documents: Callable[..., dict[str, datasets.Dataset]], split: str
) -> Callable[..., dict[str, datasets.Dataset]]:
    def load(**metadata: Any) -> dict[str, datasets.Dataset]:
        return documents(split, metadata.get("data"))

    return load


forget, retain, holdout, real_world = (
    _loader(to_answer, split) for split in ("forget", "retain", "holdout", "real_world")
)
forget_choice, retain_choice, holdout_choice = (_loader(to_choose, split) for split in ("forget", "retain", "holdout"))
