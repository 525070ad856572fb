"""`python -m benchmarks.scale`: what a collection and a stream of forget requests would take on more machines than one.

Simulated (simpy): the stages of the recipes, with the seconds of the cost model (pipeline/cost) times what the demo's
manifests say of it, on so many GPUs under a queue that starts what is ready, first come, first served. Nothing here was
run on a GPU. ``rates`` prints the measured factors, ``models`` the 28 models of the published collection, ``requests``
the stream; ``store`` is measured: the command line on a store of 10,000 artifacts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import simpy

from benchmarks import synthetic_store
from benchmarks.releases import STORE
from core.artifacts import read_manifest
from datasets_prep.schema import FORGOTTEN
from pipeline.collection import load_collection
from pipeline.cost import devices
from pipeline.cost.work import Planned
from pipeline.engine.graph import Member, graph
from pipeline.engine.plan import planned
from pipeline.engine.runner import Stage, Store
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import stages

RECIPE, DEVICE = "fame-topics-gd-llama32-3b", "H100 80GB"
# Measured seconds over computed ones, by kind of stage: medians of the demo's manifests (`rates`).
FACTORS = {"base": 1.0, "gold": 1.0, "eval": 2.3, "neighbours": 1.5, "novice": 1.0, "unlearn": 1.4}
START = 20.0  # seconds from a job's start to its stage's: the interpreter and its libraries, measured on two busy cores
SMALL = {"model": 22.0, "data": 1.0, "gate": 1.0, "card": 2.0, "package": 8.0, "publish": 8.0}  # what none computes
NO_GPU = SMALL.keys()
PRICE = 3.0  # dollars for a GPU-hour: ours, to be replaced by yours


def kind(stage: str) -> str:
    """The kind of a stage, whose factor holds for it."""
    return stage.split("-")[0]


@dataclass(frozen=True)
class Job:
    """A stage as a job: the seconds that it takes, the GPUs, and the jobs whose results it reads."""

    name: str
    seconds: float
    gpus: int
    needs: tuple[str, ...]


def stage_seconds(stage: Stage, known: Planned, processes: int = 1, start: float = START) -> float:
    """The seconds of a stage on so many GPUs; trainings alone are shared out, and without loss."""
    computed = stage.costs(stage.config, known).seconds
    if computed is None or math.isnan(computed):
        raise SystemExit(f"{stage.name}: its time cannot be computed")
    shared = processes if stage.shardable and known.device.is_gpu else 1
    return start + SMALL.get(stage.name, 0.0) + FACTORS.get(kind(stage.name), 1.0) * computed / shared


def jobs_of(recipes: Sequence[Recipe], processes: int) -> dict[str, Job]:
    """The stages of all recipes, each once: those are one that are asked for alike, of inputs that are one."""
    device = devices.named(DEVICE)
    members = {str(i): Member(r, stages(r), Store(Path(), r.name)) for i, r in enumerate(recipes)}
    known = {name: planned(member.recipe, {}, device) for name, member in members.items()}
    jobs = {}
    for own, node in graph(members).items():
        stage = node.stage
        gpus = 0 if stage.name in NO_GPU else processes if stage.shardable else 1
        seconds = stage_seconds(stage, known[next(iter(node.members))], processes)
        jobs[own] = Job(stage.name, seconds, gpus, tuple(node.inputs.values()))
    return jobs


def makespan(jobs: dict[str, Job], gpus: int) -> float:
    """The seconds until the last job has ended on so many GPUs; other jobs wait for nothing but their inputs."""
    env = simpy.Environment()
    free = simpy.Container(env, capacity=gpus, init=gpus)
    ended = {own: env.event() for own in jobs}

    def run(own: str, job: Job) -> Generator[Any, Any, None]:
        yield env.all_of([ended[other] for other in job.needs])
        if job.gpus:
            yield free.get(job.gpus)
        yield env.timeout(job.seconds)
        if job.gpus:
            yield free.put(job.gpus)
        ended[own].succeed()

    for own, job in jobs.items():
        env.process(run(own, job))
    env.run()
    return float(env.now)


def collection() -> list[Recipe]:
    """The 20 unlearned members of the published collection; with base and gold of each setting and size it has 28."""
    return list(load_collection("fame-topics").members.values())


def models() -> Iterator[str]:
    """The table of the collection."""
    members = collection()
    alone = sum(len(jobs_of([member], 1)) for member in members)
    jobs = jobs_of(members, 1)
    yield f"{len(jobs)} stages for {len(members)} releases, of which {alone - len(jobs)} are shared; on {DEVICE}s."
    yield ""
    yield "| GPUs | of one training | time, h | GPU-hours used | GPUs busy | cost of the used hours, $ |"
    yield "|--:|--:|--:|--:|--:|--:|"
    for gpus, processes in ((1, 1), (8, 1), (8, 8), (64, 1), (64, 8)):
        jobs = jobs_of(members, processes)
        hours = makespan(jobs, gpus) / 3600
        used = sum(job.seconds * job.gpus for job in jobs.values()) / 3600
        busy = f"{100 * used / hours / gpus:.0f} %"
        yield f"| {gpus} | {processes} | {hours:.1f} | {used:.1f} | {busy} | {PRICE * used:,.0f} |"


# Forget requests that keep coming

PER_DAY, ROWS, DAYS = 1000, 4, 3
TENANTS = 50
DAY = 86400.0


def follow_up() -> tuple[list[Stage], Planned]:
    """The stages of a request on a release: no gold, no suites, no attacks. Its rows are put in by the simulation."""
    rows = {"forget": [{"rows": ["a"]}], "holdout": [{"rows": ["b"]}], "forgotten": [{"rows": ["c"]}]}
    stays = {"metric": "answer_probability", "split": "forgotten", "at_most": 0.5, "min_n": 1, "reason": "simulated"}
    sets = {
        "data.setting": "request",
        "data.shares": None,
        "data.request": rows,
        "base": {"release": "your-name/Llama@v1.0.0"},
        "gold": "none",
        "unlearn.min_steps": 50,
        "eval.robustness": None,
        "eval.relative": False,
        "eval.suites": [],
        "gates": [stays],
    }
    recipe = load_recipe("fame-topics-csd-llama32-3b", [f"{key}={json.dumps(value)}" for key, value in sets.items()])
    return stages(recipe), planned(recipe, {}, devices.named(DEVICE))


class Service:
    """How long one release for so many requests takes, after so many rows were forgotten before."""

    def __init__(self) -> None:
        self.stages, self.known = follow_up()

    def known_of(self, requests: int, before: int) -> Planned:
        """What costs are computed from: FAME's other rows, and those of the requests."""
        rows = {"forget": ROWS * requests, "retain": 11_520, "unrehearsed": 1_280, "holdout": 4_000}
        return self.known._replace(rows=rows | {FORGOTTEN: before})

    def seconds(self, requests: int, before: int) -> float:
        """Seconds of all stages, one after the other on one GPU."""
        known = self.known_of(requests, before)
        return sum(stage_seconds(stage, known) for stage in self.stages if stage.name != "model")


@dataclass
class Chain:
    """The models of one base model or tenant, each the start of the next, and the requests that wait for one."""

    waiting: list[float]
    rows: int = 0  # that were forgotten


def stream(chains: int, most: int, gpus: int, service: Service) -> dict[str, float]:
    """So many chains of releases on so many GPUs, each release with at most ``most`` of the requests that wait."""
    env, draw = simpy.Environment(), random.Random(0)
    pool = simpy.Resource(env, gpus)
    all_chains = [Chain([]) for _ in range(chains)]
    wake = [simpy.Store(env) for _ in all_chains]
    took: list[float] = []
    used = [0.0, 0]

    def arrivals() -> Generator[Any, Any, None]:
        while True:
            yield env.timeout(draw.expovariate(PER_DAY / DAY))
            to = draw.randrange(chains)
            all_chains[to].waiting.append(env.now)
            wake[to].put(None)

    def releases(chain: Chain, woken: simpy.Store) -> Generator[Any, Any, None]:
        while True:
            yield woken.get()
            while chain.waiting:
                with pool.request() as turn:
                    yield turn
                    batch, chain.waiting = chain.waiting[:most], chain.waiting[most:]
                    seconds = service.seconds(len(batch), chain.rows)
                    yield env.timeout(seconds)
                chain.rows += ROWS * len(batch)
                took.extend(env.now - came for came in batch)
                used[0] += seconds
                used[1] += 1

    env.process(arrivals())
    for chain, woken in zip(all_chains, wake, strict=True):
        env.process(releases(chain, woken))
    env.run(until=DAYS * DAY)
    return {
        "done": len(took) / DAYS,
        "median": median(took) / 3600,
        "p95": quantiles(took, n=20)[-1] / 3600,
        "left": sum(len(chain.waiting) for chain in all_chains),
        "releases": used[1] / DAYS,
        "hours": used[0] / 3600 / DAYS,
        "batch": len(took) / max(used[1], 1),
    }


def requests() -> Iterator[str]:
    """The table of the stream."""
    service = Service()
    first, later = service.seconds(1, 0), service.seconds(1, PER_DAY * ROWS * 30)
    yield (
        f"{PER_DAY:,} requests of {ROWS} rows a day, {DAYS} days. A release for one request takes {first / 60:.1f} "
        f"minutes of one {DEVICE}, for 100 {service.seconds(100, 0) / 60:.1f}; for one after a month of requests, all "
        f"of whose rows are measured again, {later / 60:.1f}."
    )
    parts = {stage.name: stage_seconds(stage, service.known_of(1, 0)) / 60 for stage in service.stages}
    yield f"Of the first, in minutes: {', '.join(f'{n} {m:.1f}' for n, m in parts.items() if m >= 1 and n != 'model')}."
    yield ""
    yield (
        "| requests | GPUs | done a day | still waiting | hours to be forgotten: median | 95 % | releases a day "
        "| requests of one | GPU-hours a day | $ for a request |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    everything = 10**9
    for label, chains, most, gpus in (
        ("one after the other", 1, 1, 1),
        ("all that wait, one model", 1, everything, 1),
        (f"{TENANTS} tenants, one after the other", TENANTS, 1, 8),
        (f"{TENANTS} tenants, one after the other", TENANTS, 1, 64),
        (f"{TENANTS} tenants, all that wait", TENANTS, everything, 8),
        (f"{TENANTS} tenants, all that wait", TENANTS, everything, 64),
    ):
        found = stream(chains, most, gpus, service)
        cells = [f"{found['done']:.0f}", f"{found['left']:.0f}", f"{found['median']:.1f}", f"{found['p95']:.1f}"]
        cells += [f"{found['releases']:.0f}", f"{found['batch']:.1f}", f"{found['hours']:.0f}"]
        cells.append(f"{PRICE * found['hours'] / found['done']:.2f}")
        yield f"| {label} | {gpus} | {' | '.join(cells)} |"


def rates(store: Path) -> Iterator[str]:
    """What the demo's manifests say of the cost model, by kind of stage."""
    recipe = load_recipe("demo")
    known = planned(recipe, {}, devices.cpu())
    ratios: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for stage in stages(recipe):
        if (store / "demo" / stage.name).is_dir():
            measured = read_manifest(store / "demo" / stage.name).seconds
            computed = stage.costs(stage.config, known).seconds or 0.0
            seconds.setdefault(kind(stage.name), []).append(measured)
            ratios.setdefault(kind(stage.name), []).append(measured / computed if computed else math.nan)
    yield "| stage | manifests | measured, s | measured / computed | used |"
    yield "|---|--:|--:|--:|--:|"
    for name, found in ratios.items():
        used = f"{FACTORS[name]:g} x" if name in FACTORS else f"{SMALL[name]:g} s more"
        yield f"| {name} | {len(found)} | {mean(seconds[name]):.0f} | {median(found):.2f} | {used} |"


def main() -> None:
    """Print the tables that were asked for."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    options.add_argument("tables", nargs="*", default=["rates", "models", "requests", "store"], help="default: all")
    options.add_argument("--store", type=Path, default=STORE, help="with a finished demo, for rates")
    given = options.parse_args()
    tables = {
        "rates": lambda: rates(given.store),
        "models": models,
        "requests": requests,
        "store": synthetic_store.table,
    }
    for name in given.tables:
        if name not in tables:
            options.error(f"{name}: there are {', '.join(tables)}")
        print(f"\n{name}\n", flush=True)
        for line in tables[name]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
