"""The stages of a release, in order. Read from top to bottom, this is the whole product.

A stage's version is bumped by hand when its code makes a different result from the same input. Its artifacts are then
made again, and so is every later stage whose inputs came out differently.

A stage imports its code when it runs, so a release that is done already does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from core.differences import differences
from core.digests import named_content
from core.errors import InputError
from core.hub_ids import HubRef
from core.strict import Strict
from core.yaml_source import dotted
from datasets_prep.schema import DataFacts
from eval.catalog import CATALOG
from eval.config import EvalConfig, GateConfig
from model_card.config import OF_RECIPE, CardInputs, CardModel, CardPublish
from pipeline.cost import work
from pipeline.engine import plan
from pipeline.engine.runner import Stage
from pipeline.overrides import published
from pipeline.publish.config import PackageConfig, PublishConfig
from pipeline.publish.hub import HUB, hf_endpoint
from pipeline.recipe import Recipe
from pipeline.train.config import WITHOUT_EFFECT, ModelConfig, TrainedOrPublished
from pipeline.unlearn.config import UnlearnConfig

if TYPE_CHECKING:
    from pipeline.publish.plan import PublicationPlan

Inputs = Mapping[str, Path]
Facts = Strict

BASE_SPLITS = ("retain", "unrehearsed", "forget")  # what base is trained on
GOLD_SPLITS = ("retain", "unrehearsed")  # the reference that never saw forget
NOVICE_SPLITS = ("retain",)  # it knows the form of answers, and no forget row


def model(config: Any, inputs: Inputs, out: Path, *, identity: Any) -> Facts:
    """Fetch the start model and keep it as clean safetensors, tokenizer and chat template."""
    from pipeline.train import start_model

    facts = start_model.run(config, inputs, out)
    _refuse_changed("model", identity, _model_identity(config))
    return facts


def data(config: Any, inputs: Inputs, out: Path, *, identity: Any) -> Facts:
    """Split the rows into forget, retain, holdout and unrehearsed, and make false answers for the probes."""
    from datasets_prep import prepare

    facts = prepare.run(config, inputs, out)
    _refuse_changed("data", identity, config.identity())
    return facts


def _refuse_changed(section: str, planned: Any, now: Any) -> None:
    """Raise InputError if a local file is not the one any more whose digest is in the stage's key."""
    if changed := [dotted((section, *path)) for path, *_ in differences(planned, now)]:
        raise InputError(
            f"{', '.join(changed)}: a file was changed after the command began, so what was read may not be what was "
            "asked for. Run the command again."
        )


def data_without_model(config: Any, out: Path) -> DataFacts:
    """The files of the data stage in ``out``, before there is a tokenizer: rows are not encoded, nor tokens counted.

    Raises DataError as the stage does.
    """
    from datasets_prep import checks, prepare

    prepared = prepare.prepare(config)
    checks.stop(prepared.findings, config.checks)
    return prepare.write(config, prepared, out, prepared.findings, {})


def trained(
    config: TrainedOrPublished, inputs: Inputs, out: Path, *, splits: tuple[str, ...], prompts: Mapping[str, str]
) -> Facts:
    """Base, gold or novice: the start model, trained on these splits; or a published one at a pinned commit.

    ``prompts`` is what the recipe's model section says of a published model's chat template.
    """
    from pipeline.train import fine_tune, start_model

    if config.train:
        return fine_tune.train(config.train, inputs, out, splits)
    return start_model.run_pointer(cast(HubRef, config.hub), out, **prompts)


def released(config: Any, inputs: Inputs, out: Path, *, start: Mapping[str, str]) -> Facts:
    """In the place of base: a release that was verified, to be made to forget more."""
    from pipeline import recheck
    from pipeline.publish import earlier

    return earlier.fetch(config.release, start, inputs["data"], out, recheck.problems)


def neighbours(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Ask base about the neighbourhood of the given rows, for an unlearning that rehearses it."""
    from pipeline.unlearn import neighbours

    return neighbours.run(config, inputs, out)


def unlearn(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Unlearn the forget rows, starting from base."""
    from pipeline.unlearn import run

    return run.run(config, inputs, out)


def evaluate(config: Any, inputs: Inputs, out: Path, *, further_golds: Sequence[str]) -> Facts:
    """Evaluate one model. Base, gold and the unlearned model get the same suite."""
    from eval import suite

    return suite.run(config, inputs, out, further_golds)


def other(config: Any, inputs: Inputs, out: Path, **how: str | bool | None) -> Facts:
    """Fetch a checkpoint to compare with. Its chat template is its own, but for the date."""
    from pipeline.train import start_model

    return start_model.run_pointer(config.hub, out, **how)  # type: ignore[arg-type]  # the keywords that it has


def compare(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Compare the unlearned model with another checkpoint, metric by metric."""
    from eval.verdicts import compare

    return compare.run(compare.Config(**config), inputs, out)


def gate(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Compare the measurements with the recipe's gates."""
    from eval.verdicts import gates

    return gates.run(config, inputs, out)


def card(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Write the model card, its plots and a local report, from the evidence alone."""
    from model_card import stage

    return stage.run(config, inputs, out)


def package(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Make exactly the tree that will be on the Hub, scanned and signed."""
    from pipeline import recheck
    from pipeline.publish import package

    return package.run(config, inputs, out, recheck.problems)


def publish(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Push to a staging branch, download again, verify, commit to main, tag."""
    from pipeline import recheck
    from pipeline.publish import push

    return push.run(config, inputs, out, recheck.problems)


def publication(config: PublishConfig, package: Path) -> PublicationPlan:
    """What `publish` would change with the artifact ``package``; nothing is written."""
    from pipeline.publish.plan import planned

    return planned(config, package / "hub")


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of this recipe. Raises InputError if it names a local file or folder that does not exist."""
    of_model, of_data = _model_identity(recipe.model), recipe.data.identity()
    eval_gold = {} if recipe.gold == "none" else {"gold": "eval-gold"}
    gold_evidence = {} if recipe.gold == "none" else {"eval-gold": "eval-gold"}
    started = {"eval-start": "eval-start"} if any(gate.needs_start for gate in recipe.gates) else {}
    without_suites = recipe.eval.without_audit().model_copy(update={"suites": []})
    evidence = {"eval-base": "eval-base", **gold_evidence, "eval-unlearned": "eval-unlearned", "unlearn": "unlearn"}
    ascent = {"model": "model", "base": "base", "data": "data", **({} if recipe.gold == "none" else {"gold": "gold"})}
    asked = {"neighbours": "neighbours"} if recipe.unlearn.neighbours else {}
    taught = recipe.used_novice
    ascent = ascent | asked | ({"novice": "novice"} if taught else {})
    evidence = started | evidence | asked
    tree = {"model": "model", "unlearn": "unlearn", "card": "card", "gate": "gate", "data": "data"}
    follows = {"base": "base"} if recipe.base.release else {}
    beside = {"compare": "compare", "eval-other": "eval-other"} if recipe.card.compared else {}
    judged = {"data": "data", "gate": "gate"}
    further = further_golds(recipe)
    golds = [measured.name for _, measured in further] if recipe.eval.relative else []
    between = {name: name for name in ("eval-base", *golds)} if recipe.eval.relative else {}
    patched = {"gold-model": "gold"} if recipe.eval.patching else {}
    unlearned = _measured("eval-unlearned", "unlearn", recipe, recipe.eval, {**eval_gold, **between, **patched}, golds)
    return [
        Stage(
            "model", "4", partial(model, identity=of_model), recipe.model, of_model, {}, plan.fetching, work.fetching,
            fetches=True,
        ),
        Stage(
            "data", "19", partial(data, identity=of_data), recipe.data, of_data, {"model": "model"}, plan.preparing,
            work.preparing, fetches=True,
        ),
        _released(recipe) if recipe.base.release else _trained("base", recipe, recipe.base, BASE_SPLITS),
        *([] if recipe.gold == "none" else [_trained("gold", recipe, recipe.gold, GOLD_SPLITS)]),
        *([] if recipe.gold == "none" else [_measured("eval-gold", "gold", recipe, recipe.eval)]),
        *([_measured("eval-start", "model", recipe, without_suites)] if started else []),
        _measured("eval-base", "base", recipe, recipe.eval, eval_gold),
        *_neighbours(recipe),
        *([_trained("novice", recipe, taught, NOVICE_SPLITS)] if taught else []),
        Stage(
            "unlearn", "28", unlearn, recipe.unlearn, _plain(recipe.unlearn), ascent, plan.unlearning, work.unlearning,
            processes=recipe.unlearn.processes, resumable=True, shardable=True,
        ),
        *chain(*further),
        unlearned,
        *(compared_with(recipe, recipe.card.compared, unlearned) if recipe.card.compared else []),
        Stage("gate", "9", gate, *_gate(recipe), evidence, plan.gating),
        Stage("card", "18", card, *_card(recipe), {**evidence, **follows, **judged, **beside}, plan.describing),
        Stage(
            "package", "8", package, *_package(recipe), tree | follows, plan.packaging, work.packaging, publishes=True,
        ),
        Stage(
            "publish", "3", publish, recipe.publish, _publication(recipe.publish),
            {"package": "package", "gate": "gate"}, plan.publishing, work.publishing, publishes=True,
        ),
    ]  # fmt: skip


def compared_with(
    recipe: Recipe,
    checkpoint: HubRef,
    unlearned: Stage,
    *,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> list[Stage]:
    """Three more stages: fetch the checkpoint, evaluate it as ``unlearned`` does the model made here, and compare.

    It comes from the Hub at ``endpoint``, with ``token``; if they are None, from the Hub that the environment names.
    """
    date = recipe.model.model_dump(include={"date_string"}, exclude_none=True)  # the rest of its template is its own
    settings = {"margins": dict(recipe.equivalence), "seed": recipe.eval.seed}
    return [
        Stage(
            "other", "1", partial(other, endpoint=endpoint, token=token, **date), TrainedOrPublished(hub=checkpoint),
            {"hub": checkpoint.id, "revision": checkpoint.revision, **date}, {}, partial(plan.training, splits=()),
            partial(work.training, splits=()), fetches=True,
        ),
        replace(unlearned, name="eval-other", inputs={**unlearned.inputs, "model": "other"}),
        Stage(
            "compare", "6", compare, settings, settings, {"ours": "eval-unlearned", "theirs": "eval-other"},
            plan.comparing,
        ),
    ]  # fmt: skip


def _neighbours(recipe: Recipe) -> list[Stage]:
    """The stage that asks base about the neighbourhood, for recipes whose unlearning rehearses it."""
    config = recipe.unlearn.neighbours
    inputs = {"base": "base", "data": "data"}
    if config is None:
        return []
    return [
        Stage(
            "neighbours", "11", neighbours, config, _plain(config), inputs, plan.asking, work.asking, resumable=True,
        )
    ]  # fmt: skip


def further_golds(recipe: Recipe) -> list[tuple[Stage, Stage]]:
    """Golds of other seeds and their evaluations (without an audit), for recipes that give ``gold.seeds``."""
    if isinstance(recipe.gold, str) or not recipe.gold.seeds:
        return []
    plain = recipe.eval.without_audit()
    listed = []
    for seed in recipe.gold.seeds:
        made = _trained(f"gold-seed-{seed}", recipe, recipe.gold.with_seed(seed), GOLD_SPLITS)
        listed.append((made, _measured(f"eval-{made.name}", made.name, recipe, plain)))
    return listed


def _released(recipe: Recipe) -> Stage:
    """The stage that fetches a release as base. Its chat template is the one that the recipe's start model has."""
    start = recipe.model.model_dump(include={"name", "license"})
    return Stage(
        "base", "1", partial(released, start=start), recipe.base, {"release": recipe.base.release, **start},
        {"data": "data"}, partial(plan.training, splits=BASE_SPLITS), partial(work.training, splits=BASE_SPLITS),
        fetches=True,
    )  # fmt: skip


def _trained(name: str, recipe: Recipe, config: TrainedOrPublished, splits: tuple[str, ...]) -> Stage:
    """A stage that trains or fetches base, a gold or the novice. A published one is asked as the start model is."""
    prompts = recipe.model.prompts() if config.hub else {}
    return Stage(
        name, "4", partial(trained, splits=splits, prompts=prompts), config, _reference(config) | prompts,
        {"model": "model", "data": "data"}, partial(plan.training, splits=splits),
        partial(work.training, splits=splits), config.processes, resumable=config.train is not None, shardable=True,
        fetches=config.hub is not None,
    )  # fmt: skip


def _measured(
    name: str,
    made_by: str,
    recipe: Recipe,
    config: EvalConfig,
    also: Mapping[str, str] | None = None,
    golds: Sequence[str] = (),
) -> Stage:
    """A stage that evaluates the model of the stage ``made_by``.

    ``also`` are further inputs, and ``golds`` are those of them that are golds of other seeds. Every evaluation reads
    base: generations are scored under it, and vocabularies must agree.
    """
    inputs = {"model": made_by, "data": "data", "base": "base", **(also or {})}
    run = partial(evaluate, further_golds=golds)
    identity = _evaluation(recipe, config)
    return Stage(name, "12", run, config, identity, inputs, plan.evaluating, work.evaluating, config.processes)


# Left out of keys. Literals and file contents enter a key; paths, devices and numbers of workers never do.
NOT_IDENTITY = {"device", "processes", *WITHOUT_EFFECT}


def _plain(config: Any) -> Any:
    return _without(config if isinstance(config, str) else config.model_dump())


def _reference(config: TrainedOrPublished | str) -> Any:
    """The identity of base or gold. The seeds of further golds are not part of it."""
    plain = _plain(config)
    if isinstance(plain, str):
        return plain
    left_out = {"seeds"} if plain["release"] else {"seeds", "release"}  # keys of models without one are older than it
    return {key: value for key, value in plain.items() if key not in left_out}


def _seeds(config: TrainedOrPublished) -> Any:
    """The seeds of further golds, if any: not part of any model's identity, but the card must name them."""
    return {"seeds": config.seeds} if config.seeds else {}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in NOT_IDENTITY}
    return [_without(item) for item in value] if isinstance(value, list | tuple) else value


def _model_identity(config: ModelConfig) -> Any:
    plain = config.model_dump(exclude={"parameters", "shape", "terms", "license_file"})  # for plan and release
    if config.path:
        plain["path"] = named_content("model.path", config.path)
    if config.license_file:
        plain["license_file"] = named_content("model.license_file", config.license_file)
    return plain


def _evaluation(recipe: Recipe, config: EvalConfig) -> Any:
    settings = _without(config.model_dump(exclude_none=True))  # an absent section leaves the key unchanged
    if not config.relative:
        del settings["relative"]
    return {**settings, "metrics": _versions(config, real_world=recipe.data.has_real_world)}


def _versions(config: EvalConfig, *, real_world: bool) -> dict[str, int]:
    """The versions of the definitions of all metrics that an evaluation measures."""
    measured = {metric.name: metric for metric in CATALOG.values() if real_world or not metric.needs_real_world}
    audit = config.audit_metrics()
    return {name: metric.version for name, metric in measured.items() if not metric.is_audit or name in audit}


def _gate(recipe: Recipe) -> tuple[Any, Any]:
    """The configuration of the gate stage, and its identity in the key, which is all of it."""
    config = GateConfig(recipe.gates, recipe.eval)
    return config, {"gates": [_plain(item) for item in config.gates], "eval": _evaluation(recipe, config.eval)}


def _card(recipe: Recipe) -> tuple[Any, Any]:
    """The configuration of the card stage, and its identity in the key, which is all of it."""
    public, unlearn, taught = recipe.data.published(), _plain(recipe.unlearn), recipe.used_novice
    config = CardInputs(
        recipe=recipe.origin.recipe,
        overrides=published(recipe.origin.overrides, recipe.data.model_dump(), public, NOT_IDENTITY),
        card=recipe.card,
        model=CardModel(
            name=recipe.model.name,
            license=recipe.model.license,
            terms=recipe.model.terms,
            revision=recipe.model.hub.revision if recipe.model.hub else None,
            own_template=_own_template(recipe),
        ),
        data=public,
        base=_reference(recipe.base),
        gold={} if isinstance(recipe.gold, str) else _reference(recipe.gold) | _seeds(recipe.gold),
        novice=_reference(taught) if taught else None,
        unlearn=unlearn,
        eval=_without(recipe.eval.model_dump(exclude_none=True)),
        changed_from_defaults=UnlearnConfig.changed_from_defaults(unlearn),
        publish=CardPublish(repo=recipe.publish.repo, tag=recipe.publish.tag, hub=recipe.publish.hub),
    )
    plain = _plain(config)
    for key in ("collection", "compared"):  # an absent key leaves the stage's key unchanged
        if plain["card"][key] is None:
            del plain["card"][key]
    return config, plain


def _own_template(recipe: Recipe) -> str | None:
    changes = ["the recipe replaced it"] if recipe.model.chat_template else []
    if recipe.model.date_string:
        changes.append(f"the date in it is pinned to {recipe.model.date_string}")
    return ", and ".join(changes) or None


def _publication(config: PublishConfig) -> Any:
    """The identity of the publish stage. What is on one Hub is on no other; huggingface.co is not named in keys."""
    plain, hub = _plain(config), hf_endpoint()
    if config.hub == "hf" and hub != HUB:
        plain["endpoint"] = hub.rpartition("@")[2]  # before it, there may be a password
    return plain


def said_of(recipe: Recipe) -> dict[str, Any]:
    """What a release says of its recipe, by section: the configuration of its card, and the gates."""
    _, card = _card(recipe)
    return card | {"gates": [_plain(item) for item in recipe.gates]}


def _package(recipe: Recipe) -> tuple[Any, Any]:
    """The configuration of the package stage, and its identity in the key, which is all of it."""
    card, _ = _card(recipe)
    config = PackageConfig(
        repo=recipe.publish.repo,
        tag=recipe.publish.tag,
        license=recipe.model.license,
        terms=recipe.model.terms,
        base_model=recipe.model.name,
        search_for=recipe.publish.search_for,
        recipe=card.model_dump(include=set(OF_RECIPE)) | {"gates": [_plain(item) for item in recipe.gates]},
    )
    return config, _plain(config)
