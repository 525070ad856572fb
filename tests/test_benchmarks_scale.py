"""The simulator keeps to what has to hold of any schedule; the requests in a row are recipes that follow each other."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import requests_in_a_row, scale, synthetic_store
from benchmarks.scale import Job
from pipeline.commands.prepare import surveyed
from pipeline.engine.graph import Member
from pipeline.engine.runner import Store
from pipeline.recipe import load_recipe
from pipeline.stages import stages


def longest_path(jobs: dict[str, Job], own: str) -> float:
    return jobs[own].seconds + max((longest_path(jobs, other) for other in jobs[own].needs), default=0.0)


@pytest.fixture(scope="module")
def jobs() -> dict[str, Job]:
    return scale.jobs_of(scale.collection()[:6], 1)


def test_every_stage_of_the_demo_has_a_rate() -> None:
    kinds = {scale.kind(stage.name) for stage in stages(load_recipe("demo"))}
    assert kinds == {scale.kind(name) for name in (*scale.FACTORS, *scale.SMALL)}


def test_members_share_what_is_asked_for_alike(jobs: dict[str, Job]) -> None:
    made = Counter(job.name for job in jobs.values())
    assert {made[name] for name in ("model", "data", "base", "gold", "eval-base")} == {2}  # 1B and 3B
    assert {made[name] for name in ("unlearn", "eval-unlearned", "card", "publish")} == {6}


def test_a_schedule_lies_between_its_longest_path_and_its_work(jobs: dict[str, Job]) -> None:
    work = sum(job.seconds for job in jobs.values() if job.gpus)
    others = sum(job.seconds for job in jobs.values() if not job.gpus)
    path = max(longest_path(jobs, own) for own in jobs)
    spans = [scale.makespan(jobs, gpus) for gpus in (1, 2, 8, 1000)]
    assert spans[-1] == pytest.approx(path)
    assert work <= spans[0] <= work + others
    assert spans == sorted(spans, reverse=True)
    for gpus, span in zip((1, 2, 8), spans, strict=False):
        assert max(path, work / gpus) <= span + 1e-6 <= path + work / gpus + others + 1  # Graham's bound for a list


def test_requests_are_forgotten_once_and_a_slow_chain_is_left_behind() -> None:
    class Hourly(scale.Service):
        def __init__(self) -> None:
            pass

        def seconds(self, requests: int, before: int) -> float:
            return 3600.0

    one, every = (scale.stream(1, most, 1, Hourly()) for most in (1, 10**9))
    assert one["releases"] == every["releases"] == pytest.approx(24, abs=1)
    assert one["batch"] == 1
    assert every["done"] == pytest.approx(scale.PER_DAY, rel=0.1)
    assert one["left"] + one["done"] * scale.DAYS == pytest.approx(every["left"] + every["done"] * scale.DAYS, abs=60)
    assert 0.5 < every["median"] < 2  # on average half an hour of waiting, and an hour of work


def test_a_synthetic_store_is_what_the_engine_takes_for_done(tmp_path: Path) -> None:
    recipes = synthetic_store.fill(tmp_path, 30)
    assert [recipe.name for recipe in recipes] == ["demo", "synthetic-1"]
    for recipe in recipes:
        member = Member(recipe, stages(recipe), Store(tmp_path, recipe.name))
        assert {state.state for state in surveyed(member).values()} == {"done"}


def test_five_requests_in_a_row_take_the_rows_of_the_one(tmp_path: Path) -> None:
    listed = requests_in_a_row.recipes()
    assert len(listed) == 6
    seen: list[str] = []
    for name, content in listed.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
        recipe = load_recipe(str(tmp_path / f"{name}.yaml"))
        request = recipe.data.request
        assert request
        assert request.forget[0].rows
        if name.endswith("-all"):
            every = request.forget[0].rows
            continue
        assert sorted(seen) == (request.forgotten[0].rows if request.forgotten else [])
        assert recipe.base.release == (f"demo/requests-in-a-row-{len(seen) // 8}@v1.0.0" if seen else None)
        seen += request.forget[0].rows
    assert sorted(seen) == every
    assert len(seen) == 40
