"""The search of weights for thousands of forget answers, in seconds of one core."""

from __future__ import annotations

import random
import string
import time
from pathlib import Path

from pipeline.publish.scan import Scanner

ANSWERS = 3200
ROUNDS = 3


def answers() -> list[str]:
    """Made-up sentences about people that are in no model."""
    draw = random.Random(7)

    def name(length: int) -> str:
        return "".join(draw.choices(string.ascii_lowercase, k=length)).title()

    return [
        f"{name(6)} {name(7)} was born in {name(8)} on {draw.randint(1, 28)} May {draw.randint(1900, 2000)}."
        for _ in range(ANSWERS)
    ]


def seconds(weights: Path) -> tuple[float, float]:
    """Processor seconds until the search can begin, and of the search itself, the best of three."""
    scanner = Scanner(answers())
    began = time.process_time()
    assert scanner.scan(Path(__file__), "scan.py") == []
    assert scanner._in_weights
    prepared = time.process_time() - began
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        assert scanner.scan(weights, weights.name) == []
        found.append(time.process_time() - began)
    return prepared, min(found)
