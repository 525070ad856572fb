"""The command line: ``python -m pipeline release demo``.

Data goes to stdout, talk to stderr. Exit codes: 0 done, 2 the input is wrong, 3 a gate failed, 4 the Hub refused or a
verification failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.errors import InputError, ReleaseError, leave_error
from pipeline.commands.shared import REAL_RELEASE, ROOT, STORE, say, store_root

PROGRAM = "python -m pipeline"
# What runs a command: a module of pipeline.commands, imported when its command is chosen, and a function in it.
COMMANDS = {
    "release": ("release", "release"),
    "run": ("release", "run_one"),
    "status": ("state", "status"),
    "gate": ("gate", "gate"),
    "explain": ("state", "explain"),
    "data inspect": ("data", "inspect"),
    "eval from-logs": ("evaluation", "from_logs"),
    "verify": ("published", "verify"),
    "compare": ("compare", "compare"),
    "hub": ("published", "hub"),
    "env": ("env", "env"),
    "--version": ("env", "version"),
}

# Read by libraries when they are imported, which happens inside the stages: no telemetry, and no bars beside our line.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


class _Version(argparse.Action):
    """As argparse's own, but the version is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        parser.exit(_function("--version")(namespace))


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Unlearn a language model, prove what it forgot and what it kept, and publish it.",
        epilog="RECIPE is a name in pipeline/recipes or a path. Exit codes: 0 done, 2 wrong input, 3 a gate failed, "
        "4 the Hub refused or a verification failed, 130 interrupted.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and the commit")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stage_commands(commands)
    _add_data_commands(commands)
    _add_evaluation_commands(commands)
    _add_publication_commands(commands)
    text = "versions, device, memory, disk and settings, for a bug report; no token is printed"
    _store_option(_command(commands, "env", text))
    return top


def _add_stage_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    made = _command(commands, "release", "make a release: every stage that is not done yet, up to publication")
    _recipe_options(made)
    made.add_argument("--until", metavar="STAGE", help="stop after this stage")
    made.add_argument("--dry-run", action="store_true", help="print the plan with sizes, and do nothing")
    made.add_argument(
        "--launch",
        default="local",
        metavar="WHERE",
        help="how processes share a training: local (as ddp), ddp, fsdp2, zero3, or a file for accelerate",
    )
    made = _command(commands, "run", "run one stage whose inputs are there")
    made.add_argument("stage", metavar="STAGE")
    _recipe_options(made)
    _recipe_options(_command(commands, "status", "each stage: done, stale, missing or running"))
    text = "judge what was measured and say why, without running anything (`gate replay FILE`: a table of models)"
    made = _command(commands, "gate", text)
    _recipe_options(made)
    made.add_argument(
        "file", metavar="FILE", nargs="?", help="with `replay` as RECIPE: a JSON table of measured models"
    )
    made.add_argument(
        "--gates",
        metavar="GATES",
        default=REAL_RELEASE,
        help="for replay: a recipe, or a YAML file of gates alone (default: %(default)s)",
    )
    made = _command(commands, "explain", "why a stage would run again, field by field")
    _recipe_options(made)
    made.add_argument("stage", metavar="STAGE")


def _add_data_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    made = commands.add_parser("data", help="look at a recipe's data", description="look at a recipe's data")
    below = made.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    text = "counts, checks and three rows of each split, before anything is trained"
    made = _command(below, "inspect", text)
    _recipe_options(made)
    made.add_argument("--show-forget", action="store_true", help="show the answers of the forget rows too")


def _add_evaluation_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "metrics from measurements that are there already"
    actions = commands.add_parser("eval", help=text, description=text).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    text = "forget quality and model utility from two logs of TOFU's shape"
    made = _command(actions, "from-logs", text)
    made.add_argument("full", metavar="FULL.json", help="log of the model")
    made.add_argument("retain", metavar="RETAIN.json", help="log of gold, trained on retain alone")


def _add_publication_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "download a published release into a cold cache and check everything about it"
    made = _command(commands, "verify", text)
    made.add_argument("repo", metavar="REPO")
    made.add_argument("--revision", metavar="R", default="main", help="commit, tag or branch (default: main)")
    made.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    made.add_argument("--key", metavar="FILE", help="the publisher's public key (default: the store's own)")
    _store_option(made)
    text = "evaluate another checkpoint with the recipe's suite, side by side, with a verdict of equivalence"
    made = _command(commands, "compare", text)
    _recipe_options(made)
    made.add_argument("--to", metavar="REPO[@R]", required=True, help="the checkpoint, at a commit, tag or branch")
    made.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    made = _command(commands, "hub", "serve the store's loopback Hub until interrupted")
    made.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    _store_option(made)


def _command(commands: Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=text, description=text)
    made.set_defaults(chosen=made.prog.removeprefix(f"{PROGRAM} "))
    made.add_argument("--json", action="store_true", help="machine-readable output on stdout")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def _function(command: str) -> Callable[[argparse.Namespace], int]:
    module, function = COMMANDS[command]
    found: Callable[[argparse.Namespace], int] = getattr(
        importlib.import_module(f"pipeline.commands.{module}"), function
    )
    return found


def _store_option(made: argparse.ArgumentParser) -> None:
    made.add_argument("--store", metavar="DIR", help="where artifacts and the loopback Hub are kept (default: runs)")


def _recipe_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("recipe", metavar="RECIPE")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    _store_option(made)


def check_root() -> None:
    """Raise InputError where Python would import a package of this project from somewhere else."""
    for name in ("core", "datasets_prep", "eval", "model_card", "pipeline"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if place != ROOT / name:
            raise InputError(
                f"`{name}` would be imported from {place or 'nowhere'}, and not from {ROOT / name}. Run "
                f"`python -m pipeline` in {ROOT}, without PYTHONPATH."
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        options = parser().parse_args(argv)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if not options.debug:
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it misses optional kernels
            warnings.simplefilter("ignore", FutureWarning)  # what libraries tell their callers is not for users
        check_root()
        os.environ[STORE] = str(store_root(options))
        return _function(options.chosen)(options)
    except ReleaseError as error:
        if options.debug:
            traceback.print_exc()
        say(f"error: {error}")
        leave_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; the same command continues from here.")
        return 130
    except BrokenPipeError:  # the reader of our output went away, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
