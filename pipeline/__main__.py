"""The command line: ``python -m pipeline release demo``.

Data goes to stdout, talk to stderr. Exit codes: 0 done, 2 the input is wrong, 3 a gate failed, 4 the Hub refused or a
verification failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, RecipeError, ReleaseError

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from pipeline.recipe import Recipe
    from pipeline.runner import Stage, Status, Store

ROOT = Path(__file__).resolve().parents[1]
STORE = "UNLEARN_RELEASE_STORE"  # what publishing reads: the loopback Hub and the demo's key lie in the store
REAL_RELEASE = "fame-topics-gd-llama32-3b"

# Read by libraries when they are imported, which happens inside the stages: no telemetry, and no bars beside our line.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Unlearn a language model, prove what it forgot and what it kept, and publish it.",
        epilog="RECIPE is a name in pipeline/recipes or a path. Exit codes: 0 done, 2 wrong input, 3 a gate failed, "
        "4 the Hub refused or a verification failed, 130 interrupted.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="machine-readable output on stdout")
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return made

    def store_option(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--store", metavar="DIR", help="where artifacts and the loopback Hub are kept (default: runs)"
        )

    def recipe_options(made: argparse.ArgumentParser) -> None:
        made.add_argument("recipe", metavar="RECIPE")
        made.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe"
        )
        store_option(made)

    made = command("release", release, "make a release: every stage that is not done yet, up to publication")
    recipe_options(made)
    made.add_argument("--until", metavar="STAGE", help="stop after this stage")
    made.add_argument("--dry-run", action="store_true", help="print the plan with sizes, and do nothing")
    made.add_argument("--launch", default="local", metavar="WHERE", help="where stages run (default: local)")
    made = command("run", run_one, "run one stage whose inputs are there")
    made.add_argument("stage", metavar="STAGE")
    recipe_options(made)
    recipe_options(command("status", status, "each stage: done, stale, missing or running"))
    made = command("explain", explain, "why a stage would run again, field by field")
    recipe_options(made)
    made.add_argument("stage", metavar="STAGE")
    made = command("verify", verify, "download a published release into a cold cache and check everything about it")
    made.add_argument("repo", metavar="REPO")
    made.add_argument("--revision", metavar="R", default="main", help="commit, tag or branch (default: main)")
    made.add_argument("--hub", choices=("local", "hf"), help="where REPO is (default: local if the store holds it)")
    made.add_argument("--key", metavar="FILE", help="the publisher's public key (default: the store's own)")
    store_option(made)
    made = command("hub", hub, "serve the store's loopback Hub until interrupted")
    made.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    store_option(made)
    return top


def release(options: argparse.Namespace) -> int:
    """Run every stage that is not done. Raises GateError where the evidence does not allow a publication."""
    if options.launch != "local":
        raise InputError(f"--launch {options.launch}: only `local` is there so far; slurm and hf-jobs come later.")
    recipe, stages, store = _prepare(options)
    stages = stages[: _index(stages, options.until) + 1] if options.until else stages
    if options.dry_run:
        return _show_plan(options, recipe, stages, store)
    _refuse_unpinned(recipe)
    _check_trainer_arguments(recipe, stages, store)
    from pipeline.runner import execute
    from pipeline.summary import require_pass

    built: set[str] = set()
    done: dict[str, Artifact] = {}
    try:
        for stage, artifact in execute(stages, store, _watched(built)):
            done[stage.name] = artifact
            if stage.name not in built:
                _say(f"{stage.name:<15} done already")
            if stage.name == "gate":
                require_pass(artifact.path)
    except ReleaseError:
        if "gate" in done:
            _report(options, recipe, done, store, built)
        raise
    _report(options, recipe, done, store, built)
    return 0


def run_one(options: argparse.Namespace) -> int:
    """Run one stage. Raises ArtifactError where an input is not there, GateError past a failed gate."""
    recipe, stages, store = _prepare(options)
    wanted = stages[_index(stages, options.stage)]
    _refuse_unpinned(recipe)
    from pipeline.artifact import check_artifact, link
    from pipeline.runner import build, survey
    from pipeline.summary import require_pass

    done: dict[str, Artifact] = {}
    for stage, state in survey(stages, store):
        if stage.name == wanted.name:
            break
        if state.artifact:
            done[stage.name] = state.artifact
    for made_by in wanted.inputs.values():
        if made_by in done:
            check_artifact(done[made_by])
            if made_by == "gate":
                require_pass(done[made_by].path)
    built: set[str] = set()
    artifact = state.artifact or _watched(built)(wanted, lambda: build(wanted, store, done))
    check_artifact(artifact)
    link(artifact.path, store.link(wanted.name))
    summary = {"stage": wanted.name, "path": str(store.link(wanted.name)), "digest": artifact.digest}
    _print(options, {**summary, "facts": artifact.facts}, str(store.link(wanted.name)))
    return 0


def status(options: argparse.Namespace) -> int:
    """Print the state of every stage."""
    _, stages, store = _prepare(options)
    states = _survey(stages, store)
    rows = [
        {"stage": name, "state": state.state, "path": str(store.link(name)) if state.artifact else None}
        for name, state in states.items()
    ]
    text = "\n".join(f"{row['stage']:<15} {row['state']:<8} {row['path'] or ''}".rstrip() for row in rows)
    _print(options, {"stages": rows}, text)
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print why a stage would run."""
    from pipeline.plan import reasons

    _, stages, store = _prepare(options)
    stage = stages[_index(stages, options.stage)]
    states = _survey(stages, store)
    state = states[stage.name]
    found = reasons(stage, state, states)
    text = f"{stage.name} is {state.state}" + ("; it would not run." if state.state == "done" else "; it would run:")
    _print(options, {"stage": stage.name, "state": state.state, "reasons": found}, "\n  ".join([text, *found]))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a published release from the outside. Raises VerificationError where it does not hold."""
    from dataclasses import asdict

    from pipeline.live import watching
    from pipeline.publish.hub import connect
    from pipeline.publish.sign import trusted_key
    from pipeline.publish.verify import verify_release

    key = trusted_key(options.key)
    held = (_store_root(options) / "hub" / "models" / f"{options.repo}.git").is_dir()
    with connect(options.hub or ("local" if held else "hf")) as target, watching("verify"):
        found = verify_release(options.repo, options.revision, target.endpoint, target.token, key)
    value = {"repo": options.repo, "commit": found.commit, "verified": [asdict(check) for check in found.checks]}
    lines = [f"ok  {check.name:<14} {check.detail}" for check in found.checks]
    _print(options, value, "\n".join([f"{options.repo} at {found.commit}", *lines]))
    return 0


def hub(options: argparse.Namespace) -> int:
    """Serve the loopback Hub's repositories. Raises InputError where nothing was published there."""
    folder = _store_root(options) / "hub"
    if not (folder / "models").is_dir():
        raise InputError(f"{folder}: nothing was published there yet. Run `make release`, or name another --store.")
    from pipeline.localhub.server import serve

    serve(folder, options.port)
    return 0


def _prepare(options: argparse.Namespace) -> tuple[Recipe, list[Stage], Store]:
    from pipeline.recipe import load_recipe
    from pipeline.runner import Store
    from pipeline.stages import stages

    recipe = load_recipe(options.recipe, options.set)
    return recipe, stages(recipe), Store(_store_root(options), recipe.name)


def _store_root(options: argparse.Namespace) -> Path:
    """The store, relative to this project's root; shown short where that is also the current folder."""
    place = ROOT / Path(options.store or os.environ.get(STORE) or "runs").expanduser()
    return place.relative_to(ROOT) if Path.cwd() == ROOT and place.is_relative_to(ROOT) else place


def _survey(stages: Sequence[Stage], store: Store) -> dict[str, Status]:
    from pipeline.runner import survey

    return {stage.name: state for stage, state in survey(stages, store)}


def _index(stages: Sequence[Stage], name: str) -> int:
    from pipeline.yaml_source import did_you_mean

    names = [stage.name for stage in stages]
    if name not in names:
        raise InputError(f"No stage is called {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}.")
    return names.index(name)


def _refuse_unpinned(recipe: Recipe) -> None:
    if keys := recipe.unpinned():
        raise RecipeError(
            f"{', '.join(keys)}: not pinned, and a release is made from exact commits only. Look up the commit on the "
            f"repository's page and write its 40 hex digits into the recipe, or give --set {keys[0]}=SHA. "
            f"`--dry-run` shows the plan without it."
        )


def _check_trainer_arguments(recipe: Recipe, stages: Sequence[Stage], store: Store) -> None:
    """Let the trainer's own config class refuse wrong arguments before the first stage runs, not after the third."""
    states = _survey(stages, store)
    trainings = {"base": recipe.base, "gold": recipe.gold, "unlearn": recipe.unlearn}
    waiting = [name for name, state in states.items() if name in trainings and state.artifact is None]
    if not waiting:
        return  # a cached release starts without torch
    from pipeline.unlearn.fit import training_arguments

    for name in waiting:
        config: Any = trainings[name]
        config = config if name == "unlearn" else config.train
        if config is not None:
            try:
                training_arguments(config.args, config.precision, store.root / "unused")
            except RecipeError as error:
                raise RecipeError(f"{name}{'' if name == 'unlearn' else '.train'}.args: {error}") from error


def _watched(built: set[str]) -> Callable[[Stage, Callable[[], Artifact]], Artifact]:
    from pipeline.live import watching

    def around(stage: Stage, build: Callable[[], Artifact]) -> Artifact:
        with watching(stage.name), redirect_stdout(sys.stderr):  # libraries print; stdout is for data
            artifact = build()
        built.add(stage.name)
        return artifact

    return around


def _show_plan(options: argparse.Namespace, recipe: Recipe, stages: Sequence[Stage], store: Store) -> int:
    from pipeline.plan import describe, gigabytes, needs, sizes

    states = _survey(stages, store)
    known = sizes(recipe, states)
    rows = [
        {
            "stage": name,
            "state": state.state,
            "will_run": state.artifact is None,
            "does": describe(name, recipe, known),
        }
        for name, state in states.items()
    ]
    wants = needs(recipe, known.parameters)
    lines = [f"{row['stage']:<15} {'will run' if row['will_run'] else 'done':<9} {row['does']}" for row in rows]
    if wants:
        lines.append(
            f"\nAbout {gigabytes(wants['disk_bytes'])} of disk, and {gigabytes(wants['memory_bytes'])} of memory for "
            f"weights, gradients and AdamW in float32; activations come on top."
        )
    _print(options, {"recipe": recipe.name, "stages": rows, "needs": wants}, "\n".join(lines))
    for key in recipe.unpinned():
        _say(f"warning: {key} is not pinned; the release itself will refuse until it is.")
    return 0


def _report(
    options: argparse.Namespace, recipe: Recipe, done: dict[str, Artifact], store: Store, built: set[str]
) -> None:
    """The table and the places on stdout; what to do next on stderr."""
    from pipeline.summary import measurements, places, read_verdict, results_table

    links = {name: store.link(name) for name in done}
    found = places(done, links, store.root)
    if options.json:
        verdict = read_verdict(done["gate"].path) if "gate" in done else None
        stages = {
            name: {"path": str(links[name]), "digest": a.digest, "built": name in built, "facts": a.facts}
            for name, a in done.items()
        }
        result = {"recipe": recipe.name, "stages": stages, "results": measurements(done), "gate": verdict, **found}
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
    if "gate" in done:
        from rich.console import Console

        width = None if sys.stdout.isatty() else 160
        Console(width=width).print(results_table(done))
    for name, place in found.items():
        print(f"{name:<9}{place}")
    if "publish" not in done:
        if done and "gate" not in done:
            print(str(links[list(done)[-1]]))
    elif recipe.publish.hub == "local":
        _say(f"\nNext, a real release:  python -m pipeline release {REAL_RELEASE} --dry-run")


def _print(options: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False) if options.json else text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check_root() -> None:
    """Raise InputError where Python would import a package of this project from somewhere else."""
    for name in ("datasets_prep", "eval", "model_card", "pipeline"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if place != ROOT / name:
            raise InputError(
                f"`{name}` would be imported from {place or 'nowhere'}, and not from {ROOT / name}. Run "
                f"`python -m pipeline` in {ROOT}, without PYTHONPATH."
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not options.debug:
        warnings.simplefilter("ignore", FutureWarning)  # what libraries tell their callers is not for a user to read
    try:
        check_root()
        os.environ[STORE] = str(_store_root(options))
        return int(options.run(options))
    except ReleaseError as error:
        if options.debug:
            traceback.print_exc()
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; the same command continues from here.")
        return 130
    except BrokenPipeError:  # the reader of our output went away, for example `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
