"""`make faults`: publications with a fault in each request, tampered releases, and canaries; prints three tables.

What is done, and what has to hold, is in docs/measurements/faults.md. Everything is drawn from seeds, so a case that
failed can be run alone: `python -m benchmarks.faults matrix --only "Hub killed" --first 17 --seeds 1`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faulty_hub import Fault
from benchmarks.publications import Outcome, World, make_worlds, prepare_processes, requests, with_fault

Kind = dict[str, object]


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
        name: kind for status in (500, 502, 503, 504) for name, kind in _both(str(status), kind="answer", status=status).items()
    },
    "truncated PUT, line cut": {"kind": "cut_body"},
    "truncated PUT, taken for whole": {"kind": "cut_body", "acts": True},
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
ALWAYS_ONCE = ("hold", "damage", "commit", "delete", "show", "kill_client")
WITH_BODY = r"PUT .*/upload/.*|POST .*/(commit|preupload|batch|validate-yaml|create).*"


def general(request: str) -> str:
    """A pattern for requests of one sort: digests and names of files differ."""
    pattern = re.sub(r"[0-9a-f]{40,64}", "[0-9a-f]+", re.escape(request))
    pattern = re.sub(r"staging\\-[0-9a-f]{12}", "staging-[0-9a-f]+", pattern)
    return re.sub(r"(/resolve/\[0-9a-f\]\+/).+", r"\1.+", pattern)


class Places:
    """The sorts of requests of each world's publication, in order, and how often each comes."""

    def __init__(self, worlds: Sequence[World], folder: Path) -> None:
        self.worlds = worlds
        self.recorded = [requests(world, folder / "recorded") for world in worlds]
        self.sorts = [Counter(general(request) for request in recorded) for recorded in self.recorded]

    def draw(self, what: Kind, seed: int) -> tuple[World, Fault]:
        """The place of a seed: worlds in turn, then sorts of requests in turn; the rest is drawn."""
        draw = random.Random(seed)
        turn = seed % len(self.worlds)
        sorts = {s: n for s, n in self.sorts[turn].items() if what["kind"] != "cut_body" or re.fullmatch(WITH_BODY, s.replace("\\", ""))}
        sort = list(sorts)[seed // len(self.worlds) % len(sorts)]
        at = draw.randint(1, sorts[sort])
        lasting = what["kind"] not in ALWAYS_ONCE and draw.random() < 0.5
        wait = {"hold": 2.5, "slow": draw.choice((0.01, 0.1, 0.6)), "refuse": draw.choice((0.02, 0.2))}.get(str(what["kind"]), 0.03)
        if what["kind"] == "refuse":  # the answer before is the last one
            order = [i for i, r in enumerate(self.recorded[turn]) if general(r) == sort]
            sort, at = ".*", max(1, order[at - 1])
        return self.worlds[turn], Fault(**{"request": sort, "at": at, "seed": seed, "lasting": lasting, "wait": wait} | what)  # type: ignore[arg-type]


def matrix(folder: Path, kinds: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Run the faults and print a line for each; what did not hold."""
    worlds = make_worlds(folder)
    places = Places(worlds, folder)
    print("| fault | seeds | run with it: finished / refused / killed | next run: finished / left to a person | did not hold |")
    print("|---|--:|--:|--:|--:|")
    wrong: list[str] = []
    for name in kinds:
        outcomes: list[Outcome] = []
        for seed in seeds:
            world, fault = places.draw(KINDS[name], seed)
            outcome = with_fault(world, fault, folder / "case")
            outcomes.append(outcome)
            wrong += [f"{name}, seed {seed}, {world.name} release, {fault}: {what}" for what in outcome.wrong]
            for what in outcome.wrong:
                print(f"{name}, seed {seed}: {fault}: {what}\n    it said: {outcome.first.said}", file=sys.stderr, flush=True)
        first, second = (Counter(run.end for run in runs) for runs in zip(*((o.first, o.second) for o in outcomes)))
        broken = sum(bool(outcome.wrong) for outcome in outcomes)
        ends = " / ".join(str(first[end]) for end in ("finished", "refused", "killed"))
        print(f"| {name} | {len(seeds)} | {ends} | {second['finished']} / {second['refused']} | {broken} |", flush=True)
    return wrong


def main() -> int:
    """Print the tables; 1 if something did not hold."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    options.add_argument("--seeds", type=int, default=50, help="how many for each fault (default: 50)")
    options.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    options.add_argument("--only", nargs="*", default=list(KINDS), metavar="FAULT", help=f"of {', '.join(KINDS)}")
    given = options.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_processes(folder / "home")
        wrong = matrix(folder, given.only, range(given.first, given.first + given.seeds))
    print(f"{time.perf_counter() - began:.0f} seconds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
