"""The stages of a release, in order. Read from top to bottom, this is the whole product.

A stage's version is bumped by hand when its code would make something else of the same input; every artifact of it, and
whatever depends on a result that came out differently, is then made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from core.digests import content_digest
from core.errors import InputError
from pipeline.engine.runner import Stage
from pipeline.overrides import published
from pipeline.recipe import HubRef, Recipe, TrainedOrPublished
from pipeline.train.config import WITHOUT_EFFECT

if TYPE_CHECKING:
    from eval.config import EvalConfig

Inputs = Mapping[str, Path]
Facts = dict[str, Any]


def model(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Fetch the start model and keep it as clean safetensors, tokenizer and chat template."""
    from pipeline.train import start_model

    return start_model.run(config, inputs, out)


def data(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Rows in, splits out: forget, retain, holdout, and false answers for the probes."""
    from datasets_prep import prepare

    return prepare.run(config, inputs, out)


def base(config: Any, inputs: Inputs, out: Path) -> Facts:
    """The model that knows forget and retain: trained here, or a published one at a pinned commit."""
    return _trained_or_published(config, inputs, out, ("retain", "forget"))


def gold(config: Any, inputs: Inputs, out: Path) -> Facts:
    """The reference that never saw forget: trained on retain alone, or a published one at a pinned commit."""
    return _trained_or_published(config, inputs, out, ("retain",))


def _trained_or_published(config: TrainedOrPublished, inputs: Inputs, out: Path, splits: tuple[str, ...]) -> Facts:
    from pipeline.train import fine_tune, start_model

    if config.train:
        return fine_tune.train(config.train, inputs, out, splits)
    return start_model.run_pointer(cast(HubRef, config.hub), inputs, out)


def unlearn(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Base unlearns the forget rows."""
    from pipeline.unlearn import run

    return run.run(config, inputs, out)


def evaluate(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Measure one model on everything; the same suite for base, gold and the unlearned model."""
    from eval import suite

    return suite.run(config, inputs, out)


def gate(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Compare what was measured with what the recipe demands."""
    from eval.verdicts import gates

    return gates.run(config, inputs, out)


def card(config: Any, inputs: Inputs, out: Path) -> Facts:
    """The model card, its plots and a local report, from the evidence alone."""
    from model_card import render

    return render.run(config, inputs, out)


def package(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Exactly the tree that will be on the Hub, scanned and signed."""
    from pipeline.publish import package

    return package.run(config, inputs, out)


def publish(config: Any, inputs: Inputs, out: Path) -> Facts:
    """Push, download again, verify, land, tag."""
    from pipeline.publish import push

    return push.run(config, inputs, out)


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of this recipe. Raises InputError where a local file or folder that it names is not there."""
    eval_gold = {} if recipe.gold == "none" else {"gold": "eval-gold"}
    gold_evidence = {} if recipe.gold == "none" else {"eval-gold": "eval-gold"}
    evidence = {"eval-base": "eval-base", **gold_evidence, "eval-unlearned": "eval-unlearned", "unlearn": "unlearn"}
    ascent = {"base": "base", "data": "data", **({} if recipe.gold == "none" else {"gold": "gold"})}
    tree = {"model": "model", "unlearn": "unlearn", "card": "card", "gate": "gate", "data": "data"}
    start = {"model": "model", "data": "data"}
    measured = _evaluation(recipe.eval)
    with_base = {"data": "data", "base": "base"}  # generations are scored under base, and vocabularies must agree
    listed = [
        Stage("model", "1", model, recipe.model, _model_identity(recipe)),
        Stage("data", "3", data, recipe.data, _data_identity(recipe), {"model": "model"}),
        Stage("base", "3", base, recipe.base, _reference(recipe.base), start, resumable=True),
        Stage("gold", "3", gold, recipe.gold, _reference(recipe.gold), start, resumable=True),
        Stage("eval-gold", "4", evaluate, recipe.eval, measured, {"model": "gold", **with_base}),
        Stage("eval-base", "4", evaluate, recipe.eval, measured, {"model": "base", **with_base, **eval_gold}),
        Stage("unlearn", "4", unlearn, recipe.unlearn, _plain(recipe.unlearn), ascent, resumable=True),
        *further_golds(recipe, start, with_base),
        Stage(
            "eval-unlearned",
            "4",
            evaluate,
            recipe.eval,
            measured,
            {"model": "unlearn", **with_base, **eval_gold, **_between(recipe)},
        ),
        Stage("gate", "3", gate, recipe.gates, [_plain(item) for item in recipe.gates], evidence),
        Stage("card", "1", card, *_card(recipe), {**evidence, "data": "data", "gate": "gate"}),
        Stage("package", "1", package, *_package(recipe), tree),
        Stage("publish", "1", publish, recipe.publish, _plain(recipe.publish), {"package": "package", "gate": "gate"}),
    ]
    return [stage for stage in listed if recipe.gold != "none" or stage.name not in ("gold", "eval-gold")]


def further_golds(recipe: Recipe, start: dict[str, str], with_base: dict[str, str]) -> list[Stage]:
    """Golds of other seeds and their evaluations (without an audit), for recipes that give ``gold.seeds``."""
    if isinstance(recipe.gold, str) or not recipe.gold.seeds:
        return []
    plain = recipe.eval.model_copy(update={"robustness": None, "sampling": None, "relative": None})
    listed = []
    for seed in recipe.gold.seeds:
        config, name = recipe.gold.with_seed(seed), f"gold-seed-{seed}"
        listed += [
            Stage(name, "3", gold, config, _reference(config), start, resumable=True),
            Stage(f"eval-{name}", "4", evaluate, plain, _evaluation(plain), {"model": name, **with_base}),
        ]
    return listed


def _between(recipe: Recipe) -> dict[str, str]:
    """What the relative test reads beside gold's evaluation."""
    if not recipe.eval.relative:
        return {}
    seeds = [] if isinstance(recipe.gold, str) else recipe.gold.seeds or []
    return {name: name for name in ("eval-base", *(f"eval-gold-seed-{seed}" for seed in seeds))}


# What enters a key: literals and contents, never a path, a device or a number of workers.
NOT_IDENTITY = {"device", "processes", *WITHOUT_EFFECT}


def _plain(config: Any) -> Any:
    return _without(config if isinstance(config, str) else config.model_dump())


def _reference(config: TrainedOrPublished | str) -> Any:
    """What base or gold is; how many others are trained beside it is not part of that."""
    plain = _plain(config)
    return plain if isinstance(plain, str) else {key: value for key, value in plain.items() if key != "seeds"}


def _seeds(config: TrainedOrPublished) -> Any:
    """The seeds of further golds, where there are some: no part of any model, and what a card must say."""
    return {"seeds": config.seeds} if config.seeds else {}


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in NOT_IDENTITY}
    return [_without(item) for item in value] if isinstance(value, list | tuple) else value


def _content(path: str, key: str) -> str:
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(f"{key}: there is no file or folder {path}. Give one that exists.")
    return f"sha256:{content_digest(place)}"


def _model_identity(recipe: Recipe) -> Any:
    plain = recipe.model.model_dump(exclude={"parameters"})  # only for the plan
    if recipe.model.path:
        plain["path"] = _content(recipe.model.path, "model.path")
    return plain


def _data_identity(recipe: Recipe) -> Any:
    """The data part of the recipe, with the contents of the files that it names in the place of their paths."""
    plain = recipe.data.model_dump()
    for holder, key, at in _local_files(plain):
        holder[key] = _content(holder[key], at)
    return plain


def _local_files(data: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    """Where a dumped data part names local files: the mapping, the key in it, and the path for messages."""
    source, request = data["source"], data["request"] or {}
    found = [(source, "file", "data.source.file")] if source["file"] else []
    found += [
        (source["files"], name, f"data.source.files.{name}") for name, value in (source["files"] or {}).items() if value
    ]
    for part in ("forget", "holdout"):
        listed = request.get(part)
        for index, selection in enumerate(listed if isinstance(listed, list) else []):
            if selection["file"]:
                found.append((selection, "file", f"data.request.{part}[{index}].file"))
    return found


def _public(data: dict[str, Any]) -> dict[str, Any]:
    """A dumped data part as a release may show it: without this machine's folders and those whom a request names."""
    for holder, key, _ in _local_files(data):
        holder[key] = Path(holder[key]).name
    for part in (data["request"] or {}).values():
        for selection in part if isinstance(part, list) else []:
            selection.update({key: len(selection[key]) for key in ("identities", "rows") if selection[key]})
    return data


def _evaluation(config: EvalConfig) -> Any:
    from eval.config import ALL_METRICS, METRICS

    asked = _without(config.model_dump(exclude_none=True))  # a section that is absent leaves the key as it is
    return {**asked, "metrics": {name: ALL_METRICS[name].version for name in [*METRICS, *config.audit_metrics()]}}


def _card(recipe: Recipe) -> tuple[Any, Any]:
    """The configuration of the card stage, and what of it enters the key: all of it."""
    from model_card.config import CardInputs, CardModel, CardPublish

    source = _public(recipe.data.model_dump())
    config = CardInputs(
        recipe=recipe.origin.recipe,
        overrides=published(recipe.origin.overrides, recipe.data.model_dump(), source, NOT_IDENTITY),
        card=recipe.card,
        model=CardModel(
            name=recipe.model.name,
            license=recipe.model.license,
            revision=recipe.model.hub.revision if recipe.model.hub else None,
            own_template=_own_template(recipe),
        ),
        data=source,
        base=_reference(recipe.base),
        gold={} if isinstance(recipe.gold, str) else _reference(recipe.gold) | _seeds(recipe.gold),
        unlearn=_plain(recipe.unlearn),
        publish=CardPublish(repo=recipe.publish.repo, tag=recipe.publish.tag, hub=recipe.publish.hub),
    )
    return config, _plain(config)


def _own_template(recipe: Recipe) -> str | None:
    changes = ["the recipe replaced it"] if recipe.model.chat_template else []
    if recipe.model.date_string:
        changes.append(f"the date in it is pinned to {recipe.model.date_string}")
    return ", and ".join(changes) or None


def _package(recipe: Recipe) -> tuple[Any, Any]:
    """The configuration of the package stage, and what of it enters the key: all of it."""
    from pipeline.publish.config import PackageConfig

    card, _ = _card(recipe)
    config = PackageConfig(
        repo=recipe.publish.repo,
        license=recipe.model.license,
        base_model=recipe.model.name,
        recipe=card.model_dump(include={"recipe", "overrides", "model", "data", "base", "gold", "unlearn"}),
    )
    return config, _plain(config)
