"""`python -m benchmarks.requests`: forget requests of many kinds, as a user would make them, up to their gates.

``own-data`` as it stands, the same data with four other requests, and ``own-prose``, which has questions and answers
and nothing else. Prints one line a request; the artifacts stay in the store, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from typing import Any

from benchmarks.releases import ROOT, print_verdicts

ROWS = 32  # of the request for single rows


def requests() -> dict[str, tuple[str, list[str]]]:
    """Recipe and settings of each request, by its name."""
    return {
        "as it stands": ("own-data", ["name=own-data"]),
        "other people": _forget("people", {"identities": ["C-0405", "C-0802", "C-0807"]}),
        "only topics": _forget("topics", {"topics": ["address", "phone number", "email"]}),
        "one language": _forget("language", {"languages": ["de"], "topics": _german_topics()}),
        "single rows": _forget("rows", {"rows": _single_rows()}),
        "prose without people, topics or false answers": ("own-prose", ["name=own-prose"]),
    }


def _forget(name: str, selection: dict[str, Any]) -> tuple[str, list[str]]:
    return "own-data", [f"data.request.forget={json.dumps([selection])}", f"name=own-data-{name}"]


def _source() -> list[dict[str, str]]:
    with (ROOT / "pipeline" / "recipes" / "own-data.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _german_topics() -> list[str]:
    """Six topics, 30 German rows: enough for the gates."""
    return sorted({row["subject"] for row in _source() if row["language"] == "de"})[:6]


def _single_rows() -> list[str]:
    """Ids of rows of all people, drawn at random."""
    ids = [f"{row['language']}-{row['customer']}-{row['subject']}".lower() for row in _source()]
    return sorted(random.Random(0).sample(ids, ROWS))


def main() -> None:
    """Print the table."""
    listed = requests()
    options = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__)
    options.add_argument("--only", nargs="+", choices=list(listed), default=list(listed), help="these alone")
    print_verdicts("request", ((label, *listed[label]) for label in options.parse_args().only))


if __name__ == "__main__":
    main()
