"""`make faults`: publications with a fault in each request, tampered releases, and canaries; prints three tables.

What is done, and what has to hold, is in docs/measurements/faults.md. Everything is drawn from seeds, so a case that
failed can be run alone: `python -m benchmarks.faults matrix --only "Hub killed, before" --first 17 --seeds 1`.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.canaries import canaries
from benchmarks.faulty_hub import Fault
from benchmarks.publications import World, make_worlds, prepare_processes, requests, with_fault
from benchmarks.tampering import tampering

Kind = dict[str, object]
TABLES = ("matrix", "tampering", "canaries")


def _both(name: str, **fault: object) -> dict[str, Kind]:
    """A fault before the Hub acted, and after."""
    return {f"{name}, before": fault, f"{name}, after": fault | {"acts": True}}


KINDS: dict[str, Kind] = {
    "refused": {"kind": "refuse"},
    **_both("reset", kind="reset"),
    **_both("timeout", kind="hold"),
    **_both("408", kind="answer", status=408),
    **_both("429", kind="answer", status=429),
    **_both("429 with Retry-After", kind="answer", status=429, retry_after=True),
    **{
        name: kind
        for status in (500, 502, 503, 504)
        for name, kind in _both(str(status), kind="answer", status=status).items()
    },
    "truncated body, line cut": {"kind": "cut_body"},
    "truncated body, taken for whole": {"kind": "cut_body", "acts": True},
    "truncated answer": {"kind": "cut_answer"},
    "corrupted stored blob": {"kind": "damage"},
    "slow body": {"kind": "slow"},
    "token expired": {"kind": "expire", "lasting": True},
    **_both("another commit", kind="commit"),
    **_both("repository deleted", kind="delete"),
    **_both("repository made public", kind="show"),
    "disk full, client": {"kind": "fill_client"},
    "disk full, Hub": {"kind": "fill_hub"},
    **_both("client killed", kind="kill_client"),
    **_both("Hub killed", kind="kill_hub"),
}
ALWAYS_ONCE = ("hold", "slow", "damage", "commit", "delete", "show", "kill_client")
# Seconds: longer than the client waits, a slow line, and instants around a request, which takes some milliseconds.
WAITS = {"hold": (2.5,), "slow": (0.01, 0.1, 0.4), "refuse": (0.02, 0.2), "kill_client": (0.03,), "kill_hub": (0.03,)}
WITH_BODY = r"PUT.*upload.*|POST.*(commit|preupload|batch|validate.*yaml|create).*"


def general(request: str) -> str:
    """A pattern for requests of one sort: digests and names of files differ."""
    pattern = re.sub(r"[0-9a-f]{40,64}", "[0-9a-f]+", re.escape(request))
    pattern = re.sub(r"staging\\-[0-9a-f]{12}", "staging-[0-9a-f]+", pattern)
    return re.sub(r"(/resolve/\[0-9a-f\]\+/).+", r"\1.+", pattern)


class Places:
    """Where a fault may happen: each sort of request of each world's publication."""

    def __init__(self, worlds: Sequence[World], folder: Path) -> None:
        recorded = {world: requests(world, folder / "recorded") for world in worlds}
        self._orders = {world: [general(request) for request in order] for world, order in recorded.items()}
        self._places = [(world, sort) for world, order in self._orders.items() for sort in dict.fromkeys(order)]

    def draw(self, name: str, seed: int) -> tuple[World, Fault]:
        """The place of a seed, which takes all in turn, in another order for each fault; the rest is drawn."""
        what, draw = KINDS[name], random.Random(f"{name} {seed}")
        kind = str(what["kind"])
        places = [place for place in self._places if kind != "cut_body" or re.fullmatch(WITH_BODY, place[1])]
        random.Random(name).shuffle(places)
        world, request = places[seed % len(places)]
        at = draw.randint(1, self._orders[world].count(request))
        if kind == "refuse":  # the answer before is the last one
            order = [i for i, sort in enumerate(self._orders[world]) if sort == request]
            request, at = ".*", max(1, order[at - 1])
        lasting, wait = kind not in ALWAYS_ONCE and draw.random() < 0.5, draw.choice(WAITS.get(kind, (0.0,)))
        drawn: Kind = {"request": request, "at": at, "seed": seed, "lasting": lasting, "wait": wait}
        return world, Fault(**drawn | what)  # type: ignore[arg-type]


HEAD = "| fault | seeds | finished / refused / killed | next run: finished / left to a person | did not hold |"


def matrix(folder: Path, kinds: Sequence[str], seeds: Sequence[int]) -> int:
    """Run the faults and print a line for each; in how many cases something did not hold."""
    places = Places(make_worlds(folder), folder)
    print(f"{HEAD}\n|---|--:|--:|--:|--:|")
    wrong = 0
    for name in kinds:
        first, second, broken = Counter[str](), Counter[str](), 0
        for seed in seeds:
            world, fault = places.draw(name, seed)
            outcome = with_fault(world, fault, folder / "case")
            first[outcome.first.end] += 1
            second[outcome.second.end] += 1
            broken += bool(outcome.wrong)
            if outcome.wrong:
                said = f"{outcome.first.said!r}, then {outcome.second.said!r}"
                print(
                    f"{name}, seed {seed}: {outcome.wrong}\n  {world.name}, {fault}: {said}",
                    file=sys.stderr,
                    flush=True,
                )
        ends = " / ".join(str(first[end]) for end in ("finished", "refused", "killed"))
        print(f"| {name} | {len(seeds)} | {ends} | {second['finished']} / {second['refused']} | {broken} |", flush=True)
        wrong += broken
    return wrong


def main() -> int:
    """Print the tables; 1 if something did not hold, was not noticed, or was not seen and is not known not to be."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    options.add_argument("table", nargs="*", help=f"{', '.join(TABLES)} (default: all)")
    options.add_argument("--seeds", type=int, default=50, help="how many for each fault (default: 50)")
    options.add_argument("--changes", type=int, default=1000, help="how many changes of a release (default: 1000)")
    options.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    options.add_argument("--only", nargs="*", default=list(KINDS), metavar="FAULT", help=f"of {', '.join(KINDS)}")
    given = options.parse_args()
    if unknown := {*given.table, *given.only} - {*TABLES, *KINDS}:
        options.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join([*TABLES, *KINDS])}")
    wrong = 0
    for table in given.table or TABLES:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if table == "matrix":
                prepare_processes(folder / "home")
                wrong += matrix(folder, given.only, range(given.first, given.first + given.seeds))
            elif table == "tampering":
                wrong += tampering(folder, range(given.first, given.first + given.changes))
            else:
                wrong += canaries(folder)
        print(f"\n{table}: {time.perf_counter() - began:.0f} seconds\n", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
