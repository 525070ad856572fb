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
PERSONAL = ["address", "phone number", "email", "hobby or interest", "life event"]
PERSONAL += ["birthplace", "birthdate", "family background", "high school"]


def requests() -> dict[str, tuple[str, list[str]]]:
    """Recipe and settings of each request, by its name.

    Holdout rows are chosen as the forget rows are, and there are 30 of each at least, for which the gates ask. Some
    rows like them are retained: of a form that nobody else has, base knows nothing but what is to be forgotten.
    """
    people = sorted({row["customer"] for row in _source()})
    german = [person for person in people if person < "C-0800"]
    topics = sorted({row["subject"] for row in _source()})[:16]
    return {
        "as it stands": ("own-data", ["name=own-data"]),
        "other people": _request("people", {"identities": ["C-0405", "C-0802", "C-0807"]}, 0.25),
        "only topics": _request(
            "topics",
            {"topics": PERSONAL, "identities": people[::3]},
            [{"topics": PERSONAL, "identities": people[1::3] + people[2:3]}],
        ),
        "one language": _request(
            "language",
            {"languages": ["de"], "topics": topics, "identities": german[:4]},
            [{"languages": ["de"], "topics": topics, "identities": german[4:8]}],
        ),
        "single rows": _request("rows", {"rows": _single_rows()}, 0.2),
        "prose without people, topics or false answers": ("own-prose", ["name=own-prose"]),
    }


def _request(name: str, forget: dict[str, Any], holdout: list[dict[str, Any]] | float) -> tuple[str, list[str]]:
    request = json.dumps({"forget": [forget], "holdout": holdout})
    return "own-data", [f"data.request={request}", f"name=own-data-{name}"]


def _source() -> list[dict[str, str]]:
    with (ROOT / "pipeline" / "recipes" / "own-data.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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
