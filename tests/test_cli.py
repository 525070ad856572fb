"""The command line, as a user calls it. Releases here are of toy artifacts; real ones are in the end-to-end test."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from core.artifacts import write_file
from core.errors import TrainingError
from core.progress import report
from core.strict import Strict
from datasets_prep.schema import CHECKS, write_facts
from eval.schema import Record, write_records, write_verdict
from pipeline.__main__ import COMMANDS, PROGRAM, parser
from pipeline.engine.live import clock, watching
from pipeline.engine.runner import Store
from pipeline.publish.schema import RECEIPT
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train.facts import ModelFacts, Products
from tests.artifacts import demo_data_facts, judged_gate, receipt, verdict_of
from tests.conftest import PATIENCE, ROOT, Call
from tests.walk import make

GOLDEN = Path(__file__).parent / "goldens" / "help.txt"
UPDATE = "UPDATE_GOLDENS"
HEAVY = re.compile(r"\b(torch|transformers|trl|datasets|lm_eval|matplotlib|scipy|sklearn)$", re.MULTILINE)


def command(*words: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, *python, "-m", "pipeline", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def fill(root: Path, *, passed: bool = True, until: str = "publish", overrides: tuple[str, ...] = ()) -> Store:
    """A store with a finished demo whose stages wrote no more than the command line reads."""

    def toy(name: str) -> Callable[[Any, Mapping[str, Path], Path], Strict]:
        def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
            (out / "name").write_text(name)
            if name == "data":
                write_facts(out / CHECKS, demo_data_facts())
            if name.startswith("eval-"):
                records = [Record("answer_probability", "forget", 0.125, 0.1, 0.2, 40, None, 1)]
                write_records(out / "results.json", records)
            if name == "gate":
                write_verdict(out, verdict_of(judged_gate(rule="at most 0.25 [gold]", passed=passed)))
            if name == "publish":
                write_file(out / RECEIPT, receipt())
            return ModelFacts(
                name="demo/x",
                license="apache-2.0",
                parameters=134515008,
                dtypes=["F32"],
                products=Products.unmeasured("fp32"),
            )

        return run

    recipe = load_recipe("demo", overrides)
    store = Store(root, recipe.name)
    toys = [dataclasses.replace(stage, run=toy(stage.name)) for stage in stages(recipe)]
    last = [stage.name for stage in toys].index(until)
    make(toys[: last + 1], store)
    return store


def listed(made: argparse.ArgumentParser) -> str:
    """What the help of a command says, a line an argument: argparse's own lines break differently in each Python."""
    lines = [made.prog, f"  {made.description}"]
    lines += [f"  {made.epilog}"] if made.epilog else []
    for action in made._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            lines += [f"    {choice.dest}: {choice.help}" for choice in action._choices_actions]
            continue
        choices = f"{{{','.join(action.choices)}}}" if action.choices else None
        value = "" if action.nargs == 0 else action.metavar or choices or action.dest
        words = " ".join(filter(None, [", ".join(action.option_strings), str(value)]))
        lines.append(f"    {words if action.required else f'[{words}]'}: {said_of(action)}".removesuffix(": "))
    return "\n".join(lines)


def said_of(action: argparse.Action) -> str:
    return (action.help or "") % vars(action)


def _with_below(made: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [p for a in made._actions if isinstance(a, argparse._SubParsersAction) for p in a.choices.values()]
    return [made, *(deeper for parser in below for deeper in _with_below(parser))]


def test_the_help_is_the_golden_one() -> None:
    text = "\n\n".join(map(listed, _with_below(parser()))) + "\n"
    if os.environ.get(UPDATE):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), f"run the test with {UPDATE}=1 and read the difference"


@pytest.mark.parametrize("made", _with_below(parser()), ids=lambda made: made.prog)
def test_argparse_prints_what_the_golden_file_holds(
    made: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # so that no value is broken at a hyphen
    monkeypatch.setenv("NO_COLOR", "1")
    printed = " ".join(made.format_help().split())
    for action in made._actions:
        assert all(word in printed for word in (*action.option_strings, said_of(action)))
    assert made.prog in printed
    assert made.description is not None
    assert made.description in printed


def test_every_command_has_its_function() -> None:
    typed = {made.prog.removeprefix(f"{PROGRAM} ") for made in _with_below(parser()) if made.get_default("chosen")}
    assert typed | {"--version"} == COMMANDS.keys()
    for module, function in COMMANDS.values():
        assert callable(getattr(importlib.import_module(f"pipeline.commands.{module}"), function))


def test_help_imports_next_to_nothing() -> None:
    done = command("--help", python=("-X", "importtime"))
    assert done.returncode == 0
    assert "release" in done.stdout
    assert not HEAVY.search(done.stderr)
    assert not re.search(r"\b(pydantic|yaml|rich)$", done.stderr, re.MULTILINE)


def test_the_heavy_pattern_finds_an_import() -> None:
    loud = subprocess.run([sys.executable, "-X", "importtime", "-c", "import scipy"], capture_output=True, text=True)
    assert HEAVY.search(loud.stderr)


def test_a_cached_release_says_all_and_loads_no_torch(tmp_path: Path) -> None:
    fill(tmp_path)
    done = command("release", "demo", "--store", str(tmp_path), python=("-X", "importtime"))
    assert done.returncode == 0, done.stderr
    assert not HEAVY.search(done.stderr)
    for words in ("answer_probability", "0.125 [0.100, 0.200]", "pass: at most 0.25 [gold]"):
        assert words in done.stdout
    assert re.search(rf"card +{tmp_path}/demo/card/README.md", done.stdout)
    assert re.search(rf"repo +{tmp_path}/hub/models/demo/x.git \(private, tag v1\)", done.stdout)
    assert "publish         done already" in done.stderr
    assert "release fame-topics-csd-llama32-3b" in done.stderr


def test_json_is_json_and_nothing_else(call: Call, tmp_path: Path) -> None:
    fill(tmp_path)
    value = json.loads(call("release", "demo", "--store", str(tmp_path), "--json").stdout)
    assert value["gate"]["passed"] is True
    assert value["results"][0]["unlearned"] == {"value": 0.125, "ci_low": 0.1, "ci_high": 0.2, "n": 40}
    assert value["stages"]["unlearn"]["built"] is False
    states = json.loads(call("status", "demo", "--store", str(tmp_path), "--json").stdout)["stages"]
    assert {state["state"] for state in states} == {"done"}
    plan = json.loads(call("release", "demo", "--store", str(tmp_path), "--dry-run", "--json").stdout)
    assert not any(stage["will_run"] for stage in plan["stages"])
    assert plan["needs"] == {"seconds": 0, "memory_bytes": 0, "disk_bytes": 0, "download_bytes": 0}
    (unlearn,) = [stage for stage in plan["stages"] if stage["stage"] == "unlearn"]
    assert unlearn["memory_bytes"] == sum(unlearn["memory"].values()) > 2e9


def test_a_store_is_named_from_the_current_folder_and_is_else_the_checkouts(call: Call, tmp_path: Path) -> None:
    fill(tmp_path / "mine" / "runs")
    done = call("status", "demo", "--store", "mine/runs", cwd=tmp_path)
    assert re.search(r"^publish +done +mine/runs/demo/publish$", done.stdout, re.MULTILINE)
    elsewhere, here = (json.loads(call("env", "--json", cwd=folder).stdout)["disk"] for folder in (tmp_path, ROOT))
    assert (elsewhere["store"], here["store"]) == (str(ROOT / "runs"), "runs")


def test_an_error_does_not_repeat_megabytes_of_input(call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: demo\nname: mine\nunlearn: {{method: {'x' * 10**6}}}\n")
    done = call("release", str(recipe), "--dry-run")
    assert done.returncode == 2
    assert "unlearn.method is 'xxx" in done.stderr
    assert "input should be 'ft'" in done.stderr
    assert len(done.stderr) < 5000


def test_a_failed_gate_shows_the_table_and_nothing_after_it_runs(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, passed=False, until="gate")
    done = call("release", "demo", "--store", str(tmp_path))
    assert done.returncode == 3
    assert "FAIL: at most 0.25 [gold]" in done.stdout
    assert "gate            done already" in done.stderr
    assert "answer_probability on forget: 0.125 is measured." in done.stderr
    assert "nothing was published" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store" / "card").exists()
    for stage in ("card", "package", "publish"):
        one = call("run", stage, "demo", "--store", str(tmp_path))
        assert one.returncode in (2, 3)  # no input, or no pass
        assert not (tmp_path / "demo" / stage).exists()
    assert call("run", "card", "demo", "--store", str(tmp_path)).returncode == 3


def test_a_failed_gate_holds_even_where_everything_after_it_is_there(call: Call, tmp_path: Path) -> None:
    fill(tmp_path, passed=False)
    assert call("release", "demo", "--store", str(tmp_path)).returncode == 3
    assert call("run", "publish", "demo", "--store", str(tmp_path)).returncode == 3


def test_the_first_error_ends_a_release(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        raise TrainingError("loss is nan")

    fill(tmp_path, until="data")
    failing = [dataclasses.replace(stage, run=fail) for stage in stages(load_recipe("demo"))]
    monkeypatch.setattr("pipeline.commands.prepare.stages", lambda _: failing)
    monkeypatch.setattr("pipeline.preflight.examine", lambda *_, **__: [])
    done = call("release", "demo", "--store", str(tmp_path))
    assert (done.returncode, done.stdout) == (3, "")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["model", "data", "base", "error:"]
    assert not (tmp_path / "store" / "gold").exists()  # which does not read base


def test_status_and_explain_after_a_change(call: Call, tmp_path: Path) -> None:
    fill(tmp_path)
    change = ("--set", "unlearn.epochs=3", "--store", str(tmp_path))
    lines = dict(line.split()[:2] for line in call("status", "demo", *change).stdout.splitlines())
    assert lines["base"] == lines["eval-base"] == "done"
    assert lines["unlearn"] == lines["publish"] == "stale"
    said = call("explain", "demo", "unlearn", *change).stdout
    assert "unlearn is stale" in said
    assert re.search(r"config epochs: \d+ -> 3", said)
    assert "it would not run" in call("explain", "demo", "base", *change).stdout


def test_a_changed_file_is_named(call: Call, tmp_path: Path) -> None:
    store = fill(tmp_path)
    (store.link("base") / "name").write_text("other")
    done = call("release", "demo", "--store", str(tmp_path))
    assert done.returncode == 2
    assert "changed: name" in done.stderr
    assert f"Delete the folder {tmp_path}/store/base/" in done.stderr


H100 = ("--device", "H100 80GB")


def test_a_dry_run_of_every_recipe_writes_nothing(call: Call, tmp_path: Path) -> None:
    for name in ("demo", "demo-overforget", "fame-topics-gd-llama32-3b"):
        done = call("release", name, "--dry-run", *H100, "--store", str(tmp_path / "runs"))
        assert done.returncode == 0, done.stderr
        assert re.search(
            r"On H100 80GB: about [\d.]+ (min|h), an estimate; at the fullest [\d.]+ GB of the", done.stdout
        )
    assert "11,520 retain, 3,200 forget, 4,000 holdout, 1,280 unrehearsed" in done.stdout
    assert re.search(r"^model +will run +2 min +6.4 GB +6.4 GB  meta-llama/\S+: 3,213 M parameters", done.stdout, re.M)
    assert "warning: the release itself would refuse to start. model.hub.revision: not pinned" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_cannot_fit_is_refused_by_a_dry_run_and_before_the_first_stage(call: Call, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "runs"))
    done = call("release", "fame-topics-gd-llama32-3b", "--dry-run", "--device", "A100 40GB", *store)
    assert done.returncode == 2
    assert re.search(r"^base +will run +\d+ min +5\d\.\d GB", done.stdout, re.M)
    assert re.search(
        r"base, gold, gold-seed-43, gold-seed-44: 5\S+ GB \(weights 12.9, moments 25.7, .*A100.*adamw_bnb_8bit",
        done.stderr,
    )
    assert re.search(
        r"eval-gold, eval-base, eval-unlearned: .*What helps: eval.robustness.relearn.rank: 16; ", done.stderr
    )
    large = tuple(f"--set=model.shape.{key}" for key in ("num_hidden_layers=90000", "hidden_size=576"))
    done = call("release", "demo", *large, "--set=model.parameters=null", *store)
    assert done.returncode == 2
    assert "do not fit into" in done.stderr
    assert "Set eval.device: cpu" in call("release", "demo", "--dry-run", "--set=eval.device=cuda", *store).stderr
    done = call("release", "demo", *H100, *store)
    assert (done.returncode, "Give it with --dry-run" in done.stderr) == (2, True)
    assert "Did you mean H100 80GB?" in call("release", "demo", "--dry-run", "--device", "H100 80", *store).stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("release", "dmo"), "Did you mean demo?"),
        (("release", "demo", "--set", "unlearn.epoch=3"), "Did you mean epochs?"),
        (("release", "demo", "--until", "unlaern"), "Did you mean unlearn?"),
        (("run", "unlaern", "demo"), "Did you mean unlearn?"),
        (("explain", "demo", "x"), "There are: model, data"),
        (("release", "demo", "--launch", "slurm"), "Give local, ddp, fsdp2, zero3"),
        (("release", "fame-topics-gd-llama32-3b"), "--set model.hub.revision=SHA"),
        (("run", "data", "fame-topics-gd-llama32-3b"), "not pinned"),
        (
            ("run", "unlearn", "demo"),
            "unlearn reads model, base, data, gold, neighbours, novice, not done yet. Run `release demo",
        ),
        (("release", "demo", "--set", "unlearn.args.learning_rat=1"), "Did you mean learning_rate?"),
        (("release", "demo", "--set", "gold.train.args.bf16=true"), "gold.train.args"),
        (("release", "demo", "--set", "model.parameters=3212749824"), "model.shape has 135 M parameters, and"),
        (("release", "demo", "--set", "model.pypi=null", "--set", "model.path=nowhere"), "model.path"),
        (("verify", "a--b/c"), "verify: 'a--b/c' is not the id of a Hub repository; give owner/name"),
        (("compare", "demo", "--to", "gpt2"), "--to gpt2: 'gpt2' is not the id of a Hub repository; give owner/name"),
        (("release",), "RECIPE"),
        (("fly",), "invalid choice"),
        ((), "COMMAND"),
    ],
)
def test_wrong_input_is_one_message_and_exit_2(call: Call, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    store = ("--store", str(tmp_path / "runs")) if len(words) > 1 else ()
    done = call(*words, *store)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_recipe_of_this_project_runs_from_every_folder(call: Call, tmp_path: Path) -> None:
    assert call("status", "own-data", cwd=tmp_path).returncode == 0
    said = call("status", "own-data", "--set", "data.source.file=own-data.csv", cwd=tmp_path).stderr
    assert f"there is no file or folder {tmp_path}/own-data.csv" in said


COMMANDS_ON_ROWS = ("status", "doctor", "release", "release --dry-run", "gate", "explain", "run", "data inspect")


@pytest.mark.parametrize("words", COMMANDS_ON_ROWS)
def test_rows_that_may_not_be_read_are_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    rows = tmp_path / "rows.csv"
    rows.touch()
    real = Path.open

    def denied(path: Path, *how: Any, **more: Any) -> Any:  # root may read everything
        if path == rows:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *how, **more)

    monkeypatch.setattr(Path, "open", denied)
    stage = {"explain": ("own-data", "data"), "run": ("data", "own-data")}.get(words, ("own-data",))
    done = call(*words.split(), *stage, "--set", f"data.source.file={rows}")
    assert done.returncode == 2
    assert "data.source.file" in done.stderr
    assert "rows.csv" in done.stderr
    assert "Permission denied" in done.stderr


def test_a_model_folder_without_its_parts_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    change = ("--set", "model.pypi=null", "--set", f"model.path={tmp_path / 'model'}")
    done = call("run", "model", "demo", *change, "--store", str(tmp_path / "runs"))
    assert done.returncode == 2
    for part in ("safetensors", "tokenizer.json", "chat_template.jinja"):
        assert part in done.stderr
    assert not list((tmp_path / "runs").rglob("config.json"))


def test_debug_shows_the_traceback_and_keeps_the_exit_code(call: Call) -> None:
    done = call("release", "dmo", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_a_package_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "status", "demo"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"`eval` would be imported from {tmp_path / 'eval'}" in done.stderr
    assert str(ROOT) in done.stderr


def test_an_interrupt_is_exit_130_and_continues_later(tmp_path: Path) -> None:
    slow = (  # ready where main() is in the command
        "import sys, time, pipeline.__main__ as m, pipeline.commands.state as chosen\n"
        f"chosen.status = lambda options: print('ready', flush=True) or time.sleep({PATIENCE})\n"
        "sys.exit(m.main(['status', 'demo']))"
    )
    begun = subprocess.Popen(
        [sys.executable, "-c", slow],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background jobs ignore interrupts, and so would their children: tests may be such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert begun.stdout
    assert begun.stdout.readline() == "ready\n"
    begun.send_signal(signal.SIGINT)
    _, said = begun.communicate(timeout=PATIENCE)
    assert begun.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m pipeline status demo --store {tmp_path} | head -1", shell=True, cwd=ROOT,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.split() == ["model", "missing"]
    assert done.stderr == ""


def test_a_failed_gate_is_exit_3_though_the_reader_went_away(tmp_path: Path) -> None:
    fill(tmp_path, passed=False, until="gate")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "release", "demo", "--store", str(tmp_path)], cwd=ROOT,
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 3
    assert "nothing was published" in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_moved_store_is_still_done(call: Call, tmp_path: Path) -> None:
    fill(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", symlinks=True)
    shutil.rmtree(tmp_path / "one")
    assert call("release", "demo", "--store", str(tmp_path / "two")).returncode == 0


class Terminal:
    def __init__(self, *, tty: bool) -> None:
        self.text, self.tty = "", tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize("tty", [True, False])
def test_progress_shows_step_loss_and_time_left(tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.live.PLAIN_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal(tty=tty)
    with watching("unlearn", stream):  # type: ignore[arg-type]
        for step in range(6):
            report("step", step, 5, forget_loss=1.25, retain_loss=0.5)
            time.sleep(0.1)
    assert "unlearn" in stream.text
    assert "3/5" in stream.text
    assert "forget loss 1.25" in stream.text
    assert re.search(r"[\d.]+/s", stream.text)
    assert "0:00 left" in stream.text
    assert re.search(r"built in 0:\d\d", stream.text)


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(tty=False)
    with watching("base", stream):  # type: ignore[arg-type]
        for step in range(1000):
            report("step", step, 1000, loss=1.0)
    assert len(stream.text.splitlines()) <= 4


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3600, -1)] == ["0:00", "1:00", "59:59", "1:00:00", "0:00"]


def test_verify_wants_a_key_of_the_readers_own(call: Call, tmp_path: Path) -> None:
    done = call("verify", "someone/model", "--store", str(tmp_path))
    assert done.returncode == 2
    assert "--key FILE" in done.stderr
    assert not list(tmp_path.iterdir())  # no key is made up to check with
    done = call("verify", "someone/model", "--store", str(tmp_path), "--key", str(tmp_path / "absent.pub"))
    assert done.returncode == 2
    assert "absent.pub" in done.stderr


def test_hub_has_nothing_to_serve_before_the_first_release(call: Call, tmp_path: Path) -> None:
    done = call("hub", "--store", str(tmp_path))
    assert done.returncode == 2
    assert "make release" in done.stderr
