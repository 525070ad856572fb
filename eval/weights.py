"""Which weights were measured: the digest that ties an evaluation, a gate and a release together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.errors import ArtifactError, ModelError

FILE = "weights.json"


def checkpoint_folder(artifact: Path) -> Path:
    """Where an artifact keeps its checkpoint: ``model/`` in what a training stage wrote, else the folder itself."""
    return artifact / "model" if (artifact / "model").is_dir() else artifact


def weights_sha256(checkpoint: Path) -> str:
    """The digest of a checkpoint's safetensors.

    For one file its sha256; for several shards the sha256 of the JSON object {name: sha256}, sorted and without spaces.
    Raises ModelError where there is none.
    """
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{checkpoint} has no safetensors file. Give a folder with a saved checkpoint.")
    digests = {file.name: _sha256(file) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_measured(evaluation: Path, digest: str) -> None:
    """Say in an evaluation's artifact which weights it measured."""
    (evaluation / FILE).write_text(json.dumps({"weights_sha256": digest}) + "\n", encoding="utf-8")


def read_measured(evaluation: Path) -> str | None:
    """The digest that an evaluation says it measured, or None where it says nothing. Raises ArtifactError."""
    file = evaluation / FILE
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error!r}). Run the evaluation again.") from error
