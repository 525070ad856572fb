"""Stages side by side on one machine: what begins when, how many, and what is left of them at the end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from core import host
from core.errors import DataError, ReleaseError, SystemLimitError
from core.host import cores
from pipeline.__main__ import main
from pipeline.commands import building
from pipeline.commands.building import schedule
from pipeline.cost.devices import Device
from pipeline.engine.artifact import Artifact, link
from pipeline.engine.graph import Graph, Member, Node, chains, execute, graph, survey
from pipeline.engine.launch import Children
from pipeline.engine.runner import Stage, Store, build
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train.fit import memory_limits
from tests import processes
from tests.conftest import PATIENCE, ROOT
from tests.data_rows import GOOD, write
from tests.test_runner import Length, toy
from tests.walk import member


def walked(nodes: Graph, at_once: int) -> list[tuple[str, Artifact | ReleaseError | None]]:
    ends = execute(nodes, lambda _, build: build(), at_once=at_once)
    return [(node.stage.name, outcome) for node, outcome in ends]


def test_two_that_need_nothing_of_each_other_run_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=PATIENCE)

    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        together.wait()
        (out / "text").touch()
        return Length(length=0)

    two = [toy("a"), toy("b", run=run, inputs={"x": "a"}), toy("c", run=run, inputs={"x": "a"}), toy("d")]
    nodes = graph({"": member(two, Store(tmp_path, "demo"))})
    ends = walked(nodes, 2)
    assert sorted(name for name, _ in ends) == ["a", "b", "c", "d"]
    assert all(isinstance(outcome, Artifact) for _, outcome in ends)
    assert walked(nodes, 1) == [(node.stage.name, dict(ends)[node.stage.name]) for node in nodes.values()]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_what_reads_a_failed_one_is_not_made_and_the_rest_is(tmp_path: Path, at_once: int) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        raise DataError("no rows")

    some = [toy("a"), toy("b", run=run), toy("c", inputs={"x": "b"}), toy("d", inputs={"x": "c", "y": "a"})]
    some += [toy("e", inputs={"x": "a"})]
    ends = dict(walked(graph({"": member(some, Store(tmp_path, "demo"))}), at_once))
    assert {name: type(outcome) for name, outcome in ends.items()} == {
        "a": Artifact, "b": DataError, "c": type(None), "d": type(None), "e": Artifact,
    }  # fmt: skip


def test_whoever_goes_on_after_an_error_has_the_memory_of_what_failed(tmp_path: Path) -> None:
    """As a collection does, which keeps the error of a failed training to report it at its end."""
    held: list[Any] = []

    def fails(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        model = frozenset([1, 2])  # takes weak references
        held.append(weakref.ref(model))
        with memory_limits():
            raise MemoryError

    def looks(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        held.append(held[0]())
        (out / "text").touch()
        return Length(length=0)

    some = [toy("a", run=fails), toy("b", run=looks)]
    ends = dict(walked(graph({"": member(some, Store(tmp_path, "demo"))}), 1))
    assert isinstance(ends["a"], SystemLimitError)
    assert held[1] is None


def test_of_those_that_are_ready_the_first_begins_first(tmp_path: Path) -> None:
    nodes = graph({"": member([toy(name) for name in "abcd"], Store(tmp_path, "demo"))})
    turned = dict(reversed(nodes.items()))
    assert [name for name, _ in walked(turned, 1)] == ["d", "c", "b", "a"]
    begun: list[str] = []

    def around(node: Node, build: Any) -> Artifact:
        begun.append(node.stage.name)
        time.sleep(0.05)
        return build()

    nodes = graph({"": member([toy(name, 2) for name in "abcd"], Store(tmp_path, "demo"))})
    list(execute(dict(reversed(nodes.items())), around, at_once=2))
    assert set(begun[:2]) == {"c", "d"}


def test_a_chain_is_what_a_node_and_those_after_it_take(tmp_path: Path) -> None:
    """a before b and c, c before d: 1 + max(2, 4 + 8)."""
    some = [toy("a"), toy("b", inputs={"x": "a"}), toy("c", inputs={"x": "a"}), toy("d", inputs={"x": "c"})]
    nodes = graph({"": member(some, Store(tmp_path, "demo"))})
    found = chains(nodes, dict(zip(nodes, [1.0, 2.0, 4.0, 8.0], strict=True)))
    assert [found[key] for key in nodes] == [13.0, 2.0, 12.0, 8.0]


def planned(
    monkeypatch: pytest.MonkeyPatch, sets: Sequence[str] = (), *, cores: int = 2, memory: float = 16e9, **changes: Any
) -> tuple[list[str], int]:
    """The order of the demo's stages on such a processor, and how many run at once."""
    device = Device("CPU", int(memory), 3e11, 3e11, 2e10, changes.pop("is_gpu", False))
    monkeypatch.setattr(building.devices, "here", lambda: device)
    monkeypatch.setattr(building, "cores", lambda: cores)
    recipe = load_recipe(changes.pop("recipe", "demo"), sets)
    nodes = graph({"": Member(recipe, stages(recipe), Store(Path("nowhere"), recipe.name))})
    options = argparse.Namespace(jobs=changes.pop("jobs", None), on="local", device=None)
    in_order, at_once = schedule(options, nodes, survey(nodes))
    assert in_order.keys() == nodes.keys()
    return [node.stage.name for node in in_order.values()], at_once


def test_the_unlearning_and_what_it_waits_for_begin_before_what_only_the_gates_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_order, at_once = planned(monkeypatch)
    assert at_once == 2
    assert in_order[:4] == ["model", "data", "base", "gold"]
    assert in_order.index("neighbours") < in_order.index("unlearn") < in_order.index("eval-gold")
    alone, _ = planned(monkeypatch, cores=1)
    assert alone == [stage.name for stage in stages(load_recipe("demo"))]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cores": 1}, 1),
        ({"cores": 3}, 3),
        ({"cores": 16}, building.MOST_AT_ONCE),
        ({"memory": 6e9}, 1),
        ({"memory": 6e9, "jobs": 2}, 2),
        ({"is_gpu": True}, 1),
        ({"is_gpu": True, "jobs": 3}, 3),
        ({"recipe": "own-data"}, 2),
        ({"recipe": "own-data", "sets": ["data.source={hub: {id: a/b, revision: '" + "0" * 40 + "'}}"]}, 1),  # unread
        ({"sets": ["unlearn.processes=2"]}, 1),
    ],
)
def test_one_for_each_core_that_has_the_memory(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: int
) -> None:
    assert planned(monkeypatch, **changes)[1] == expected


def test_long_rows_leave_room_for_fewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for answer, expected in (("short", 2), ("word " * 300, 1)):
        rows = [fact | {"identity_id": str(fact["identity_id"]), "answer": answer} for fact in GOOD]
        file = write(tmp_path / f"{expected}.jsonl", rows)
        request = "{forget: [{identities: ['0']}], holdout: [{identities: ['1']}]}"
        sets = [f"data.source={{file: {file}}}", f"data.request={request}"]
        assert planned(monkeypatch, sets, recipe="own-data")[1] == expected


@pytest.mark.parametrize(("asked", "expected"), [("", 8), ("3", 3), ("20", 8), ("0", 8), ("4,2", 8)])
def test_cores_are_those_of_the_process_and_no_more_than_it_was_told(
    monkeypatch: pytest.MonkeyPatch, asked: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cores() == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, (4, 16e9)),
        ({"pod": ("max 100000", "max")}, (4, 16e9)),
        ({"pod": ("250000 100000", "8000000000")}, (3, 8e9)),
        ({"pod": ("max 100000", "max"), "": ("50000 100000", "4000000000")}, (1, 4e9)),
        ({"pod": ("unlimited", "-1")}, (4, 16e9)),
    ],
)
def test_a_container_has_what_its_control_groups_allow(
    limits: dict[str, tuple[str, str]], expected: tuple[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups" / "pod" / "job").mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/pod/job\n")
    for group, (cpu, memory) in limits.items():
        (tmp_path / "groups" / group / "cpu.max").write_text(f"{cpu}\n")
        (tmp_path / "groups" / group / "memory.max").write_text(f"{memory}\n")
    monkeypatch.setattr(host, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    has = psutil.virtual_memory()._replace(total=16 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: has)
    assert (host.cores(), host.memory()) == expected
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "nowhere")
    assert host.cores() <= 4


def test_a_child_has_its_share_of_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv >{seen}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    options = argparse.Namespace(recipe="demo", set=[], debug=False)
    stage = Stage("a", "1", toy("a").run, None, None)
    for threads, expected in ((None, "8"), (3, "3")):
        with Children(threads) as children:
            children.launch(Path("ddp.yaml"), stage, options, Store(tmp_path, "demo"))
        assert f"\nOMP_NUM_THREADS={expected}\n" in f"\n{seen.read_text()}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--jobs", "2", "--on", "slurm"], "Leave it out with --on slurm"),
        (["--jobs", "0"], "'0' is not a whole number of 1 or more"),
        (["--jobs", "two"], "'two' is not a whole number"),
    ],
)
def test_a_number_that_means_nothing_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["release", "demo", "--store", str(tmp_path), *words])
    except SystemExit as error:  # argparse's way
        code = int(error.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err


def heeding(argv: list[str]) -> None:
    """Tests that a shell runs in the background have SIGINT ignored, and so would the command."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processes.main(argv)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stages_end_with_the_command(tiny_model: Path, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """The signal reaches the command alone, as that of a service manager does."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        f"extends: {ROOT / 'pipeline' / 'recipes' / 'demo.yaml'}\n"
        f"model: {{pypi: null, path: {tiny_model}, parameters: null, chat_template: null, date_string: null}}\n"
    )
    argv = ["release", str(recipe), "--store", str(tmp_path / "store"), "--jobs", "2"]
    for section in ("base.train", "gold.train", "novice.train", "unlearn"):
        argv += ["--set", f"{section}.train_from_layer=0"]
    said = tmp_path / "said"
    command = processes.start(heeding, argv, said=said)
    stages_run: list[psutil.Process] = []
    while not stages_run:
        time.sleep(0.05)
        assert command.is_alive(), said.read_text()
        if said.exists() and "model           …" in said.read_text():
            stages_run = psutil.Process(command.pid).children(recursive=True)
    os.kill(command.pid, sent)
    command.join(PATIENCE)
    assert command.exitcode == code, said.read_text()
    assert not psutil.wait_procs(stages_run, timeout=PATIENCE)[1]
    assert "Traceback" not in said.read_text()


def test_the_first_error_of_a_release_ends_what_runs_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of Python a script: stage a fails when b runs, which would take for ever."""
    python, running = tmp_path / "python", tmp_path / "running"
    python.write_text(
        f"#!/bin/sh\nif [ $4 = b ]; then echo $$ >{running}.part; mv {running}.part {running}; exec sleep 600; fi\n"
        f"while [ ! -e {running} ]; do sleep 0.05; done; exit 1\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    options = argparse.Namespace(launch="local", set=[], debug=False)
    nodes = graph({"": member([toy("a"), toy("b")], Store(tmp_path, "demo"))})
    ends = building.build_here(options, nodes, lambda _: "demo", lambda *_: None, set(), 2)
    node, outcome = next(ends)
    assert (node.stage.name, type(outcome)) == ("a", SystemLimitError)
    beside = psutil.Process(int(running.read_text()))
    ends.close()
    assert not psutil.wait_procs([beside], timeout=PATIENCE)[1]


def test_a_run_judges_what_it_has_built_though_another_moves_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of a recipe with other settings on one store: the link of a stage is the other's when this one reads."""
    store = Store(tmp_path, "demo")
    mine, other = toy("gate", "mine"), toy("gate", "other")

    def launch(children: Children, config: Path, stage: Stage, options: argparse.Namespace, store: Store) -> None:
        for each in (mine, other):
            link(build(each, store, {}).path, store.link("gate"))

    monkeypatch.setattr(Children, "launch", launch)
    options = argparse.Namespace(launch="local", set=[], debug=False)
    judged: list[str] = []
    nodes = graph({"": member([mine], store)})

    def judge(_: Node, artifact: Artifact) -> None:
        judged.append((artifact.path / "text").read_text())

    (end,) = building.build_here(options, nodes, lambda _: "demo", judge, set(), 2)
    assert judged == ["mine {}"]
    assert isinstance(end[1], Artifact)
    assert (store.link("gate") / "text").read_text() == "mine {}"


def test_what_a_process_did_not_leave_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Children, "launch", lambda *_: None)
    options = argparse.Namespace(launch="local", set=[], debug=False)
    nodes = graph({"": member([toy("a")], Store(tmp_path, "demo"))})
    (end,) = building.build_here(options, nodes, lambda _: "demo", lambda *_: None, set(), 2)
    assert "was built, but is gone. Run the command again" in str(end[1])
