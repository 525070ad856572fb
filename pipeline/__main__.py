"""The command line: ``python -m pipeline release demo``.

Results go to stdout, messages to stderr. Exit codes: 0 done, 2 the input is wrong, 3 a gate failed, 4 the Hub refused
or a verification failed, 130 interrupted.
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
from core.places import ROOT, STORE, check_endpoint
from pipeline.commands.shared import REAL_RELEASE, ignoring_broken_pipes, say, store_root

PROGRAM = "python -m pipeline"
LONGEST = 4000  # characters of an error message
# Command: its module in pipeline.commands, imported when the command is chosen, and its function there.
COMMANDS = {
    "new": ("new", "new"),
    "release": ("release", "release"),
    "collection": ("collection", "collection"),
    "run": ("release", "run_one"),
    "status": ("state", "status"),
    "gate": ("gate", "gate"),
    "explain": ("state", "explain"),
    "doctor": ("doctor", "doctor"),
    "data inspect": ("data", "inspect"),
    "eval from-logs": ("evaluation", "from_logs"),
    "verify": ("published", "verify"),
    "revoke": ("published", "revoke"),
    "compare": ("compare", "compare"),
    "card lint": ("card", "lint_card"),
    "hub": ("published", "hub"),
    "env": ("env", "env"),
    "--version": ("env", "version"),
}

# Libraries read these when a stage imports them: no telemetry, and no progress bars beside our own line. Threads that
# wait do not spin: a step takes a quarter longer so alone, and less than half as long beside one busy process
# (docs/measurements/time-and-memory.md). The memory of a GPU grows in place, so that batches of many lengths leave no
# gaps in it. Of the products that oneDNN compiles for each number of tokens it keeps enough for one step: its own
# 1,024 take gigabytes.
SETTINGS = {
    "OMP_WAIT_POLICY": "passive",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "100",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
OLD_NAMES = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}  # a user may have set these, which the new ones override

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


class _Version(argparse.Action):
    """Like argparse's own action, but it looks the version up only when it is asked for."""

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
    _add_new(commands)
    _add_stage_commands(commands)
    _add_data_commands(commands)
    _add_evaluation_commands(commands)
    _add_publication_commands(commands)
    _add_card_commands(commands)
    text = "print versions, device, memory, disk and settings for a bug report; a token is never printed"
    _store_option(_command(commands, "env", text))
    return top


def _add_new(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "write a recipe for your own model and forget request, from six answers, and plan its release"
    command = _command(commands, "new", text)
    command.add_argument("name", metavar="NAME", help="the recipe is written into NAME.yaml; no file is overwritten")
    command.add_argument(
        "--model", metavar="MODEL", help="a folder, or OWNER/NAME@COMMIT on the Hub (default: the demo's)"
    )
    command.add_argument("--license", metavar="ID", help="the licence of that model")
    command.add_argument("--rows", metavar="FILE", help="all rows, with the columns question and answer")
    command.add_argument(
        "--language", metavar="CODE", help="the language of all rows, if no column says it, such as EN"
    )
    text = "a file with the rows to forget; or names, topics or words, separated by commas (default: a trial)"
    command.add_argument("--forget", metavar="WHAT", help=text)
    command.add_argument("--repo", metavar="OWNER/NAME", help="the repository of the release")
    text = "a column of FILE that has another name than ours, for example question=Frage"
    command.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help=text)
    _store_option(command)


def _add_stage_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "make a release: every stage that is not done yet, up to publication"
    _release_options(_command(commands, "release", text))
    text = "make all releases of a collection, compare them, and publish them; those whose gates fail are left out"
    _release_options(_command(commands, "collection", text), "COLLECTION")
    text = "check, before anything is downloaded or trained, what a release would fail at later"
    _recipe_options(_command(commands, "doctor", text))
    command = _command(commands, "run", "run one stage, whose inputs must be done")
    command.add_argument("stage", metavar="STAGE")
    _recipe_options(command)
    _remote_option(command)
    _recipe_options(_command(commands, "status", "show the state of each stage: done, stale, missing or running"))
    text = "judge what was measured and say why, without running a stage (`gate replay FILE`: a table of models)"
    command = _command(commands, "gate", text)
    _recipe_options(command)
    command.add_argument(
        "file", metavar="FILE", nargs="?", help="with `replay` as RECIPE: a JSON table of measured models"
    )
    command.add_argument(
        "--gates",
        metavar="GATES",
        default=REAL_RELEASE,
        help="for replay: a recipe, or a YAML file with gates only (default: %(default)s)",
    )
    command = _command(commands, "explain", "show why a stage would run again, field by field")
    _recipe_options(command)
    command.add_argument("stage", metavar="STAGE")


def _add_data_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("data", help="look at a recipe's data", description="look at a recipe's data")
    below = command.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    text = "show counts, checks and three rows of each split, before anything is trained"
    command = _command(below, "inspect", text)
    _recipe_options(command)
    command.add_argument("--show-forget", action="store_true", help="show the answers of the forget rows too")


def _add_evaluation_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "compute metrics from existing measurements"
    actions = commands.add_parser("eval", help=text, description=text).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    text = "compute forget quality and model utility from two logs in TOFU's format"
    command = _command(actions, "from-logs", text)
    command.add_argument("full", metavar="FULL.json", help="log of the model")
    command.add_argument("retain", metavar="RETAIN.json", help="log of gold, trained on the retain rows only")


def _add_card_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "check a model card, ours or another's"
    below = commands.add_parser("card", help=text, description=text).add_subparsers(
        dest="card_command", required=True, metavar="COMMAND"
    )
    text = "list what is missing, wrong, unfinished or without a source on a card"
    command = _command(below, "lint", text)
    command.add_argument("card", metavar="PATH|REPO", help="a README.md, its folder, or a repository")
    command.add_argument("--revision", metavar="R", default="main", help="commit, tag or branch (default: main)")
    command.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    _store_option(command)


def _add_publication_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    text = "download a published release into an empty folder and check its files, signature, licence and model"
    command = _command(commands, "verify", text)
    command.add_argument("repo", metavar="REPO")
    command.add_argument("--revision", metavar="R", default="main", help="commit, tag or branch (default: main)")
    command.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    text = "the publisher's public key (default: the signer that trust.yaml names, or the store's own key)"
    command.add_argument("--key", metavar="FILE", help=text)
    command.add_argument("--ca", metavar="FILE", help="the authority that certified the publisher, in PEM")
    text = "who must have signed: the name in the certificate of --ca, or the one that --issuer knows (Sigstore)"
    command.add_argument("--identity", metavar="NAME", help=text)
    command.add_argument("--issuer", metavar="URL", help="the OpenID Connect issuer that knows the identity")
    _store_option(command)
    text = "replace a published release by a card that says why it was revoked; verify refuses it from then on"
    command = _command(commands, "revoke", text)
    command.add_argument("repo", metavar="REPO")
    command.add_argument("--tag", metavar="T", required=True, help="the release; earlier ones are revoked with it")
    command.add_argument(
        "--reason", metavar="TEXT", required=True, help="why, in a few sentences, for everybody to read"
    )
    command.add_argument("--successor", metavar="REPO", help="the repository that replaces it (the card's new_version)")
    command.add_argument("--hide", action="store_true", help="make the repository private")
    command.add_argument("--purge", action="store_true", help="delete old commits and weights from the Hub for good")
    command.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    command.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    _store_option(command)
    text = "evaluate another checkpoint with the recipe's suite and test whether it is equivalent"
    command = _command(commands, "compare", text)
    _recipe_options(command)
    command.add_argument("--to", metavar="REPO[@R]", required=True, help="the checkpoint, at a commit, tag or branch")
    command.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    command = _command(commands, "hub", "serve the store's loopback Hub until interrupted")
    command.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    text = "answer 429 to a token's requests beyond N in 5 minutes, as the real Hub does (default: no limit)"
    command.add_argument("--rate", type=int, metavar="N", help=text)
    _store_option(command)


def _command(commands: Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(chosen=command.prog.removeprefix(f"{PROGRAM} "))
    command.add_argument("--json", action="store_true", help="machine-readable output on stdout")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _function(name: str) -> Callable[[argparse.Namespace], int]:
    module, function = COMMANDS[name]
    run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(f"pipeline.commands.{module}"), function)
    return run


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _store_option(command: argparse.ArgumentParser) -> None:
    text = "where artifacts and the loopback Hub are kept (default: the folder runs of this project)"
    command.add_argument("--store", metavar="DIR", help=text)


def _remote_option(command: argparse.ArgumentParser) -> None:
    text = "a store on S3 that machines share, s3://BUCKET/PREFIX: what is there is fetched, what is made is handed on"
    command.add_argument("--remote-store", metavar="URL", help=text)


def _release_options(command: argparse.ArgumentParser, what: str = "RECIPE") -> None:
    _recipe_options(command, what)
    _remote_option(command)
    command.add_argument("--until", metavar="STAGE", help="stop after this stage")
    text = "print the plan with estimated time, memory, disk and download, and run nothing"
    command.add_argument("--dry-run", action="store_true", help=text)
    text = 'for --dry-run: a device of pipeline/cost/devices.py, such as "H100 80GB" (default: this machine\'s)'
    command.add_argument("--device", metavar="NAME", help=text)
    text = "where each stage runs: local (here, the default), slurm or hf-jobs"
    command.add_argument("--on", choices=("local", "slurm", "hf-jobs"), default="local", help=text)
    text = (
        "how many stages run at once here (default: on a processor one for each core that has the memory, up to four)"
    )
    command.add_argument("--jobs", type=_count, metavar="N", help=text)
    command.add_argument(
        "--launch",
        default="local",
        metavar="HOW",
        help="how processes share a training: local (same as ddp), ddp, fsdp2, zero3, or an accelerate configuration",
    )


def _recipe_options(command: argparse.ArgumentParser, what: str = "RECIPE") -> None:
    command.add_argument("recipe", metavar=what)
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    _store_option(command)


def check_root() -> None:
    """Raise InputError if Python would import a package of this project from somewhere else."""
    for name in ("core", "datasets_prep", "eval", "model_card", "pipeline"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if place != ROOT / name:
            raise InputError(
                f"`{name}` would be imported from {place or 'nowhere'} instead of {ROOT / name}. Run "
                f"`python -m pipeline` in {ROOT}, without PYTHONPATH."
            )


def _shortened(message: str) -> str:
    """A message that quotes megabytes of a user's input, without its middle."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} […] {message[-LONGEST // 2 :]}"


@ignoring_broken_pipes()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    try:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, os.environ.get(OLD_NAMES.get(name, name), value))
        if not options.debug:
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it; it misses optional kernels
            warnings.simplefilter("ignore", FutureWarning)  # meant for the callers of libraries, not for users
        check_root()
        check_endpoint()
        os.environ[STORE] = str(store_root(options).absolute())
        return _function(options.chosen)(options)
    except ReleaseError as error:
        if options.debug:
            traceback.print_exc()
        say(f"error: {_shortened(str(error))}")
        leave_error(error)
        return error.exit_code
    except OSError as error:
        if error.filename is None or options.debug:
            raise
        say(f"error: {error.filename}: {error.strerror}. Make it a path that can be read and written, or give --store.")
        return InputError.exit_code
    except KeyboardInterrupt:
        continues = options.chosen in ("release", "collection", "run")
        say("interrupted; the same command continues from here." if continues else "interrupted.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
