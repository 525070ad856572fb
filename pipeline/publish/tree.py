"""A folder as the Hub sees it: which files may be there, and their digests."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.publish.licence import LICENCE_FILES

SIGNATURE = "model.sig"
RELEASE = "release.json"
MODEL_FILES = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("config.json", "generation_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
CARD_FILES = ("README.md", "results.json", "plots/*.png", ".eval_results/*.yaml")
ALLOWED = (*MODEL_FILES, *CARD_FILES, "gate.json", *LICENCE_FILES, RELEASE, SIGNATURE)
# The Hub writes it into every new repository; it says how files are stored, and is not part of a release.
HUB_FILES = (".gitattributes",)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


@dataclass(frozen=True)
class Digest:
    """A file's bytes: sha256, the id that git gives them, and how many they are."""

    sha256: str
    git: str
    size: int


def read_tree(folder: Path) -> dict[str, Digest]:
    """Every file below ``folder`` by its path with ``/``, sorted."""
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def digest(path: Path) -> Digest:
    """The digests of one file, read once."""
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
    return Digest(sha256.hexdigest(), git.hexdigest(), size)


def is_allowed(path: str, patterns: tuple[str, ...] = ALLOWED) -> bool:
    """Whether a file of this name may be part of a release; ``*`` does not match a ``/``."""
    return any(fnmatch.fnmatchcase(path, p) and path.count("/") == p.count("/") for p in patterns)


def is_pickle(path: Path) -> bool:
    """Whether a file is, or by its name would be read as, something that can run code when loaded."""
    if path.suffix in PICKLES:
        return True
    with path.open("rb") as stream:
        head = stream.read(4)
    # A zip is how torch.save packs its pickle; no file of a release is one.
    return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What differs between two trees (path: digest), in words; empty where nothing does."""
    said = []
    for word, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
        ("different", {name for name in expected.keys() & found.keys() if expected[name] != found[name]}),
    ):
        if names:
            said.append(f"{word}: {', '.join(sorted(names))}")
    return "; ".join(said)
