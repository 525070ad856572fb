"""A recipe: one YAML file with everything that decides a release, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PrivateAttr, field_validator, model_validator

from core.errors import RecipeError
from core.places import user_path
from core.strict import Strict
from core.yaml_source import Tree, did_you_mean, merge, override, read_tree
from datasets_prep.config import DataConfig
from datasets_prep.schema import FORGOTTEN
from eval.catalog import CATALOG, margins
from eval.config import Condition, EvalConfig, Gate, metrics_there_are
from model_card.config import CardConfig
from pipeline.cost.resources import Resources
from pipeline.cost.shape import parameters as count_parameters
from pipeline.publish.config import PublishConfig
from pipeline.recipe_errors import validated
from pipeline.recipe_paths import located
from pipeline.train.config import ModelConfig, TrainConfig, TrainedOrPublished, refuse_no_layer
from pipeline.unlearn.config import UnlearnConfig

RECIPES = Path(__file__).parent / "recipes"
NAME = r"^[a-z0-9][a-z0-9._-]*$"


class Origin(NamedTuple):
    """How a command names a recipe, and its ``--set`` values.

    The name is one of this project's, or ``./`` and a file name; a collection's member is ``COLLECTION:MEMBER``.
    """

    recipe: str
    overrides: tuple[str, ...] = ()


def own_folder(name: str) -> str:
    """A name under which results may lie in the store. Raises ValueError if it is that of a shared folder."""
    if name in ("store", "hub", "keys", "jobs"):
        raise ValueError(f"{name} is the name of a folder that all recipes share; choose another name")
    return name


class Recipe(Strict):
    """One release."""

    name: str = Field(
        pattern=NAME,
        max_length=100,
        description="Name of the folder of results: small letters, digits, `.`, `_` and `-`.",
    )
    model: ModelConfig = Field(description="The start model.")
    data: DataConfig = Field(description="The rows, and which of them are forgotten.")
    base: TrainedOrPublished = Field(description="The model that is trained on the retain and forget rows.")
    gold: TrainedOrPublished | Literal["none"] = Field(
        description="The model that never saw the forget rows; `none` if training one is too expensive."
    )
    novice: TrainedOrPublished | None = Field(
        default=None,
        description="For `csd`, which takes its levels from it: the start model after a short training on retain rows, "
        "which knows how answers are worded and none of the forget rows. The demo's goes over them twice; on FAME's "
        "rows levels were low after two passes, and not after four.",
    )
    unlearn: UnlearnConfig = Field(description="How base unlearns the forget rows.")
    eval: EvalConfig = Field(description="How base, gold and the unlearned model are evaluated.")
    gates: list[Gate] = Field(
        min_length=1, description="Conditions that the unlearned model must meet before it is published."
    )
    equivalence: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=margins,
        description="Margins of `compare` by metric, in the metric's own unit: a difference below its margin does not "
        "matter.",
    )
    card: CardConfig = Field(description="The prose of the card.")
    publish: PublishConfig = Field(description="Where the release is published.")
    resources: Resources = Field(
        default_factory=Resources, description="What jobs get where a stage runs elsewhere (`--on`)."
    )
    _origin: Origin | None = PrivateAttr(default=None)

    @property
    def origin(self) -> Origin:
        """How the command names the recipe. It is not part of the recipe's content, so it is in no dump and no key."""
        return self._origin or Origin(self.name)

    _own_folder = field_validator("name")(own_folder)

    def trainings(self) -> dict[str, TrainConfig]:
        """The trainings by the key of their section."""
        parts = {"base": self.base, "gold": self.gold, "novice": self.novice}
        trained = {name: part.train for name, part in parts.items() if part and not isinstance(part, str)}
        found = {f"{name}.train": train for name, train in trained.items() if train}
        return {**found, "unlearn": self.unlearn}

    @model_validator(mode="after")
    def _is_possible(self) -> Recipe:
        if problem := self.model.rules.name_problem(self.publish.repo):
            raise ValueError(f"publish.repo: {problem}")
        shape, count = self.model.shape, self.model.parameters
        if shape and count and abs(count_parameters(shape) / count - 1) > 0.01:  # some models have biases beside these
            raise ValueError(
                f"model.shape has {count_parameters(shape) / 1e6:,.0f} M parameters, and model.parameters is "
                f"{count / 1e6:,.0f} M; give this model's own shape, or null"
            )
        if shape:
            for name, config in self.trainings().items():
                try:
                    refuse_no_layer(config.train_from_layer, shape.num_hidden_layers)
                except RecipeError as error:
                    raise ValueError(f"{name}.{error}") from error
        for name, part in (("base", self.base), ("novice", self.novice)):
            if part and part.seeds:
                raise ValueError(f"{name}.seeds: only gold can be trained with several seeds; remove them")
        if self.card.dataset and self.data.source.sample:
            raise ValueError("card.dataset is for data of your own, and the sample set has its own name; remove it")
        self._follows_a_release_or_none()
        self._has_the_gold_that_it_reads()  # first: without gold, other messages would ask for more of it
        self._has_a_novice()
        self._has_a_start_that_knows_nothing()
        self._can_be_audited()
        self._suites_are_asked_for()
        self._margins_are_of_metrics()
        return self

    def _follows_a_release_or_none(self) -> None:
        request = self.data.request
        gated = [gate for gate in self.gates if gate.split == FORGOTTEN]
        if not isinstance(self.gold, str) and self.gold.release:
            raise ValueError(
                "gold.release: a release has seen what it forgot, so it is no gold; give train, hub or none"
            )
        if self.base.release is None:
            if gated or (request and request.forgotten):
                what = f"a gate is on {FORGOTTEN}" if gated else "data.request.forgotten is given"
                raise ValueError(
                    f"{what}, and base is no release, which alone can have forgotten rows; give base.release"
                )
            return
        if self.base.release == f"{self.publish.repo}@{self.publish.tag}":
            raise ValueError(
                f"base.release is {self.base.release}, which is to be published; set publish.tag to a new version"
            )
        if request is None or not request.forgotten:
            raise ValueError(
                "base.release needs the rows that it was made to forget, so that they stay forgotten; set data.setting "
                "to request, and give them as data.request.forgotten"
            )
        if isinstance(request.holdout, float):
            raise ValueError(  # noqa: TRY004
                "data.request.holdout is a share, which would draw rows that the release was trained on; give the rows "
                "that it has not seen, for example `{file: runs/RECIPE/data/holdout.jsonl}` of the run that made it"
            )
        if all(gate.at_most is None for gate in gated):
            raise ValueError(
                f"base is a release, and no gate holds what it was made to forget; add one on the split {FORGOTTEN} "
                "with at_most, for example of answer_probability"
            )

    def _has_the_gold_that_it_reads(self) -> None:
        if self.gold != "none":
            return
        for i, gate in enumerate(self.gates):
            if gate.needs_gold:
                raise ValueError(
                    f"gates[{i}] compares with gold, and gold is none; compare with a number, base, start or holdout"
                )
        if "gold" in self.unlearn.named_levels:
            raise ValueError("unlearn uses the level of gold, and gold is none; use holdout or a number")

    def _has_a_novice(self) -> None:
        if self.unlearn.method == "csd" and self.novice is None:
            raise ValueError(
                "unlearn.method: csd takes its levels from a novice; give the section novice, a short training of the "
                "start model, for example base's with two epochs"
            )
        if self.novice and self.novice.release:
            raise ValueError("novice.release: a release has seen what it forgot, so it is no novice; give train or hub")

    def _has_a_start_that_knows_nothing(self) -> None:
        """Only where base is the start model itself can a recipe show that it does not."""
        start, base = self.model.hub, self.base.hub
        if start is None or base is None or (start.id, start.revision) != (base.id, base.revision):
            return
        if self.unlearn.method == "csd":
            raise ValueError(
                "unlearn.method: csd needs a start model that does not know the forget rows, and this one is base "
                "itself; give the model that base was trained from as model.hub, or another method (npo, gd)"
            )
        for i, gate in enumerate(self.gates):
            if gate.needs_start:
                raise ValueError(
                    f"gates[{i}] compares with the start model, which is base itself and knows the forget rows; give "
                    "the model that base was trained from as model.hub, or compare with a number or with holdout"
                )

    def _can_be_audited(self) -> None:
        audit = self.eval.audit_metrics()
        for i, gate in enumerate(self.gates):
            if gate.metric in CATALOG and CATALOG[gate.metric].is_audit and gate.metric not in audit:
                raise ValueError(f"gates[{i}] is on {gate.metric}, which the eval section does not ask for")
            seeds = None if isinstance(self.gold, str) else self.gold.seeds
            if gate.metric in CATALOG and CATALOG[gate.metric].needs_golds and not seeds:
                raise ValueError(f"gates[{i}] is on {gate.metric}, which needs the variance of gold; give gold.seeds")
            if gate.metric == "leak_coordinate_one_gold" and seeds:
                raise ValueError(
                    f"gates[{i}] is on leak_coordinate_one_gold, and gold.seeds gives several golds; gate "
                    "leak_coordinate, or remove the seeds"
                )
        if self.gold == "none" and self.eval.relative:
            raise ValueError("eval.relative places the model between gold and base, and gold is none; remove it")
        if self.gold == "none" and self.eval.patching:
            raise ValueError("eval.robustness.patching puts gold's states into base, and gold is none; remove it")

    def _suites_are_asked_for(self) -> None:
        tasks = [suite.task for suite in self.eval.suites]
        for i, gate in enumerate(self.gates):
            # lm-eval names the tasks of a group after it, and some groups have no value of their own
            if gate.of_suite and not any(gate.split == task or gate.split.startswith(f"{task}_") for task in tasks):
                raise ValueError(
                    f"gates[{i}] is on {gate.metric!r} of {gate.split!r}, which is neither a metric and split of this "
                    f"project nor a suite of the eval section ({', '.join(tasks) or 'it has none'})"
                )

    def _margins_are_of_metrics(self) -> None:
        """Only lm-eval knows the metrics of the suites, so with suites any other name may be one of them."""
        if (unknown := sorted(self.equivalence.keys() - CATALOG)) and not self.eval.suites:
            raise ValueError(
                f"equivalence: no metric is called {unknown[0]!r}, and the eval section has no suites that could have "
                f"it; {metrics_there_are()}"
            )

    @property
    def used_novice(self) -> TrainedOrPublished | None:
        """The novice, if the method takes anything from one."""
        return self.novice if self.unlearn.method == "csd" else None

    def unpinned(self) -> list[str]:
        """The keys that must name a commit before this recipe may be released."""
        refs = {"model.hub.revision": self.model.hub, "base.hub.revision": self.base.hub}
        if not isinstance(self.gold, str):
            refs["gold.hub.revision"] = self.gold.hub
        if self.used_novice:
            refs["novice.hub.revision"] = self.used_novice.hub
        refs["card.compared.revision"] = self.card.compared
        return [key for key, ref in refs.items() if ref is not None and ref.revision is None]


def find_recipe(name_or_path: str, folder: Path = RECIPES, what: str = "recipe") -> Path:
    """The file of a recipe, by its name in ``folder`` or its path. Raises RecipeError that lists the names."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = user_path(name_or_path)
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "no such file"
            raise RecipeError(f"{name_or_path}: {problem}. Give a {what}'s name, or the path of a YAML file.")
        return path
    path = user_path(str(folder / f"{name_or_path}.yaml"))
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        own = user_path(f"{name_or_path}.yaml")
        hint = f" Did you mean ./{own}?" if own.is_file() else did_you_mean(name_or_path, names)
        raise RecipeError(f"No {what} is called {name_or_path!r}.{hint} There are: {', '.join(names)}.")
    return path


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe. Raises RecipeError that lists every problem with its key's path and line."""
    path = find_recipe(name_or_path)
    return checked(recipe_tree(path), overrides, shown_name(path))


def checked(tree: Tree, overrides: Sequence[str], name: str) -> Recipe:
    """The recipe in a tree, with changes by the command line, which calls it ``name``. Raises RecipeError."""
    for assignment in overrides:
        tree = override(tree, assignment)
    if "extends" in tree.values:  # that of a file was taken out when it was read
        raise RecipeError(
            f"{tree.place(('extends',))}: extends can only stand in a recipe's file, on its first level. Give the name "
            "of that recipe, or a file that extends it."
        )
    recipe = validated(Recipe, tree, ["extends"])
    recipe._origin = Origin(name, tuple(overrides))
    return recipe


def shown_name(path: Path) -> str:
    """How a command names a file: by its stem if it is one of this project's."""
    return path.stem if path.resolve().is_relative_to(RECIPES.resolve()) else f"./{path.name}"


class GateFile(Strict):
    """Gates alone, for a table of measured models."""

    gates: list[Condition] = Field(min_length=1, description="Conditions that each model must meet.")


def load_gates(name_or_path: str) -> list[Condition]:
    """The gates of a recipe, or of a YAML file that holds ``gates`` and nothing else. Raises RecipeError."""
    path = find_recipe(name_or_path)
    tree = read_tree(path, shown(path))
    if set(tree.values) == {"gates"}:
        return validated(GateFile, tree).gates
    return list(load_recipe(name_or_path).gates)


def shown(path: Path) -> str:
    """How messages name a file."""
    return f"pipeline/recipes/{path.name}" if path.parent == RECIPES else str(path)


def read_recipe_file(path: Path) -> Tree:
    """The tree of a recipe's or collection's own file, with the paths that it names. Raises RecipeError."""
    return located(read_tree(path, shown(path)), path.parent)


def recipe_beside(path: Path, named: str, where: str) -> Path:
    """The file of the recipe that the file ``path`` names: by a path from its folder, or the name of one there or ours.

    Raises RecipeError that begins with ``where`` it is named.
    """
    is_path = "/" in named or named.endswith((".yaml", ".yml"))
    beside = path.parent / user_path(named if is_path else f"{named}.yaml")
    try:
        return beside if not is_path and beside.is_file() else find_recipe(str(beside) if is_path else named)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def recipe_tree(path: Path) -> Tree:
    """The tree of a recipe, over the one that it extends."""
    tree = read_recipe_file(path)
    if "extends" not in tree.values:
        return tree
    parent = tree.values.pop("extends")
    where = tree.place(("extends",))
    if not isinstance(parent, str):
        raise RecipeError(f"{where}: extends: {parent!r} is not the name of one other recipe.")
    below = read_recipe_file(recipe_beside(path, parent, f"{where}: extends"))
    if "extends" in below.values:
        raise RecipeError(
            f"{where}: extends: {parent} itself extends another recipe. Extend that one, and repeat the other changes."
        )
    return merge(below, tree)
