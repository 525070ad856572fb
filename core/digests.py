"""Names for content: one JSON text for a value, one sha256 for a file, a folder, a request."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from core.errors import InputError, ModelError
from core.places import user_path

MANIFEST = "manifest.json"  # the one file of an artifact that its content digest leaves out


def canonical(value: object) -> str:
    """The one JSON text of a value: keys sorted, whole floats as integers. Raises TypeError if it is not JSON."""
    return json.dumps(
        _plain(value, "config"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: object, where: str) -> object:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if type(value) in (list, tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(cast("list[object]", value))]
    if type(value) is dict:
        if wrong := [key for key in value if type(key) is not str]:
            raise TypeError(f"{where}: the key {wrong[0]!r} is not a string; an artifact's key takes JSON values only")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where}: a {type(value).__name__} cannot be in an artifact's key; give JSON values only")


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def artifact_key(stage: str, version: str, config: object, inputs: Mapping[str, str]) -> str:
    """sha256 of a stage, its config and its inputs; ``inputs`` maps an input's name to its content digest."""
    return digest_of({"stage": stage, "version": version, "config": config, "inputs": dict(inputs)})


def list_files(folder: Path) -> dict[str, Path]:
    """All files below a folder by their POSIX path relative to it, sorted, without the manifest."""
    files = {
        (Path(parent) / name).relative_to(folder).as_posix(): Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
    }
    files.pop(MANIFEST, None)
    return dict(sorted(files.items()))


# The digests of this process's files by device, inode, size and times of change. A large file is read many times while
# it is published, and its time of change cannot be set by hand.
_KNOWN: dict[tuple[int, ...], str] = {}
_SETTLED = 1_000_000_000  # nanoseconds since the last change, from which on another one has another time


def hash_file(path: Path, *, sync: bool = False) -> str:
    """sha256 of a file's bytes, which are read once as long as they don't change; ``sync`` forces them to the disk."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        facts = os.fstat(file.fileno())
        state = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        if state not in _KNOWN:
            settled = time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not settled:
                return digest
            _KNOWN[state] = digest
    return _KNOWN[state]


def content_digest(folder: Path) -> str:
    """The digest of a file's or folder's content, independent of its location: that of {relative path: sha256}.

    Raises InputError for what is no file: a pipe would be read for ever, and a link may lead nowhere.
    """
    files = list_files(folder) if folder.is_dir() else {folder.name: folder}
    if others := [path for path in files.values() if not path.is_file()]:
        raise InputError(
            f"{others[0]} is no file that can be read, but a pipe, a device or a link that leads nowhere. Name another "
            "file or folder."
        )
    return digest_of({name: hash_file(path) for name, path in files.items()})


def named_content(key: str, path: str) -> str:
    """``sha256:`` and the content digest of a file or folder; a stage's key holds this in place of the path.

    ``key`` is the recipe's key that names the path. Only a model's may be a folder. Raises InputError if the path does
    not exist or cannot be read.
    """
    place = user_path(path)
    if not place.exists():
        raise InputError(f"{key}: there is no file or folder {place.absolute()}. Give one that exists.")
    if place.is_dir() and key != "model.path":
        raise InputError(f"{key}: {place.absolute()} is a folder. Name a file.")
    try:
        return f"sha256:{content_digest(place)}"
    except OSError as error:
        raise InputError(
            f"{key}: {error.filename or place.absolute()} cannot be read ({error.strerror}). Give yourself the right "
            "to read it (`chmod u+r`), or name another file."
        ) from error


def checkpoint_folder(artifact: Path) -> Path:
    """The folder of an artifact's checkpoint: ``model/`` if a training stage wrote it, else the artifact itself."""
    return artifact / "model" if (artifact / "model").is_dir() else artifact


def weights_sha256(checkpoint: Path) -> str:
    """The digest of a checkpoint's safetensors, which ties an evaluation, a gate and a release together.

    A single file gives its sha256. Several shards give the sha256 of the JSON object {name: sha256}, sorted and without
    spaces. Raises ModelError if there is no safetensors file.
    """
    digests = {file.name: hash_file(file) for file in checkpoint.glob("*.safetensors")}
    if not digests:
        raise ModelError(f"{checkpoint} has no safetensors file. Give a folder with a saved checkpoint.")
    return next(iter(digests.values())) if len(digests) == 1 else digest_of(digests)
