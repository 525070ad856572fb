"""The models of a release, before it begins: whether they can be read, and hold what the stages need."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from core.errors import ModelError, RecipeError, SystemLimitError
from core.hub_access import access_errors
from core.hub_ids import HubRef
from core.places import user_path
from pipeline.cost.shape import config_file
from pipeline.preflight.access import readable
from pipeline.publish.hub import hf_endpoint
from pipeline.publish.licence import has_text, licence_text
from pipeline.train import start_model
from pipeline.train.config import Lora, ModelConfig

if TYPE_CHECKING:
    from pipeline.preflight import Check, Preflight


def checks(release: Preflight) -> Iterator[Check]:
    """Those of repositories, of the start model's folder or package, and of the licence's text."""
    recipe = release.recipe
    refs = {"model": recipe.model.hub, "base": recipe.base.hub}
    refs |= {} if isinstance(recipe.gold, str) else {"gold": recipe.gold.hub}
    refs |= {"novice": recipe.novice.hub} if recipe.novice else {}
    refs["other"] = recipe.card.compared
    for stage, ref in refs.items():
        if ref is not None and ref.revision is not None and release.first(stage):
            with_licence = stage == "model" and _needs_text(release) and recipe.model.license_file is None
            yield f"access to {ref.id}", stage, partial(_model, ref, with_licence=with_licence)
    if release.first("model") and recipe.model.path:
        yield "start model", "model", partial(_folder, recipe.model)
    if release.first("model") and recipe.model.pypi:
        yield "start model", "model", partial(package, "gguf", "model.pypi: a GGUF file is read")
    if _needs_text(release) and (source := _text_at_hand(release)):
        yield "licence", "package", partial(_licence, recipe.model, source)


def _model(ref: HubRef, *, with_licence: bool) -> str:
    """The pinned commit can be read, and holds what a release needs."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        files = [path.name for path in start_model.cached(ref).iterdir()]
    else:
        files = list(filter(start_model.is_read, readable(ref.id, ref.revision, "model", ModelError)))
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise ModelError(
            f"hub {ref.id} at {ref.revision}: holds no config.json with safetensors that transformers reads, and other "
            "weights are not read here. Name a repository that has them."
        )
    if with_licence and not any(name.startswith("LICENSE") for name in files):
        raise ModelError(
            f"hub {ref.id} at {ref.revision}: holds no LICENSE file, and its licence has to be part of the release "
            "(package would stop). Name a file with its text in model.license_file."
        )
    return "in the cache" if is_offline_mode() else "can be read"


def _needs_text(release: Preflight) -> bool:
    """Whether there will be a package, for which the text of the licence has to come from elsewhere."""
    return release.first("package") is not None and not has_text(release.recipe.model)


def _text_at_hand(release: Preflight) -> Path | None:
    """The file or folder that the licence's text will come from, if it is here already."""
    model, done = release.recipe.model, release.states["model"].artifact
    if model.license_file or model.path:
        return user_path(str(model.license_file or model.path))
    return done.path if done else None


def _licence(model: ModelConfig, source: Path) -> str:
    """Without it the package would be refused, hours later."""
    licence_text(model, model.name, [source])
    return f"its text is in {source}"


def _folder(model: ModelConfig) -> str:
    folder = user_path(str(model.path))
    start_model.check_model_folder(folder)
    return "complete"


def package(name: str, why: str) -> str:
    """Raise SystemLimitError if a package is not installed; ``why`` begins the message."""
    if importlib.util.find_spec(name) is None:
        raise SystemLimitError(f"{why}, which needs the package {name}. Run pip install {name}.")
    return f"{name} is installed"


def layers(release: Preflight, key: str = "", lora: Lora | None = None) -> str:
    """The start model's attention takes packed rows, and adapters their layers, if its configuration can be had."""
    from core.loading import skeleton
    from pipeline.train.attention import ROWS_SDPA
    from pipeline.train.lora import add_adapters

    with TemporaryDirectory(prefix="unlearn-doctor-") as folder:
        file = _configuration(release, Path(folder))
        if file is None:
            return "looked at when the model is here"
        model = skeleton(file, attn_implementation=ROWS_SDPA)
    try:
        if lora:
            add_adapters(model, lora, seed=0)
    except RecipeError as error:
        raise RecipeError(f"{key}.{error}") from error
    return "they take packed rows"


def _configuration(release: Preflight, folder: Path) -> Path | None:
    """The start model's ``config.json``; from the Hub it comes into ``folder``.

    None for a model of a package, and if there is no access to it, which another check says.
    """
    from huggingface_hub import HfApi, is_offline_mode

    fetched, hub = release.states["model"].artifact, release.recipe.model.hub
    file = config_file(release.recipe.model, fetched.path if fetched else None)
    if file is None and hub and not is_offline_mode():
        with suppress(ModelError), access_errors(ModelError, hub.id, hub.revision):
            readable(hub.id, hub.revision, "model", ModelError)  # a download is tried again and again
            api = HfApi(endpoint=hf_endpoint())
            return Path(api.hf_hub_download(hub.id, "config.json", revision=hub.revision, local_dir=folder))
    return file
