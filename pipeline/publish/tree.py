"""A folder as the Hub sees it: the files that it may have, and their digests."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from core.digests import hash_file
from pipeline.publish.licence import LICENCE_FILES
from pipeline.publish.schema import BOM, RELEASE

SIGNATURE = "model.sig"
MODEL_FILES = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("config.json", "generation_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
CARD_FILES = ("README.md", "card.json", "results.json", "plots/*.png", ".eval_results/*.yaml")
ALLOWED = (*MODEL_FILES, *CARD_FILES, "gate.json", *LICENCE_FILES, BOM, RELEASE, SIGNATURE)
# The names that any release may have, and which therefore say nothing; the plots are those of the card.
PLOTS = ("results", "truth-ratios", "groups", "robustness", "relative", "training")
NAMES = (*(name for name in ALLOWED if "*" not in name), *(f"plots/{plot}.png" for plot in PLOTS))
# The Hub adds this file to every new repository. It says how files are stored, and is not part of a release.
HUB_FILES = (".gitattributes",)
# What the Hub writes there: endings of files that are large in new repositories, and the names of large files.
_ATTRIBUTES = re.compile(r"(\S+) filter=lfs diff=lfs merge=lfs -text")
_ENDINGS = re.compile(r"\*\.[a-z0-9]{1,11}(\.\*)?|saved_model/\*\*/\*|\*tfevents\*")

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


@dataclass(frozen=True)
class Digest:
    """A file's sha256 and its size in bytes."""

    path: Path = field(compare=False)
    sha256: str
    size: int

    @cached_property
    def git(self) -> str:
        """Its id in git, which nobody asks of large files."""
        content = self.path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    def has_id(self, oid: str) -> bool:
        """Whether the Hub's id of a file, sha256 of a large one and else git's, is that of this content."""
        return oid == (self.sha256 if len(oid) == 64 else self.git)


def read_tree(folder: Path) -> dict[str, Digest]:
    """Every file below ``folder`` by its path with ``/``, sorted."""
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def strange_attributes(attributes: str, is_of_release: Callable[[str], bool]) -> list[str]:
    """The lines of a `.gitattributes` that say more than which files of a release, or of any kind, are large."""

    def is_known(line: str) -> bool:
        match = _ATTRIBUTES.fullmatch(line.strip())
        return match is not None and (is_of_release(match[1]) or _ENDINGS.fullmatch(match[1]) is not None)

    return [line for line in attributes.splitlines() if line.strip() and not is_known(line)]


def take_hub_files(folder: Path) -> str:
    """The text of the files that the Hub added, which are then removed."""
    present = [folder / name for name in HUB_FILES if (folder / name).is_file()]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in present)
    for path in present:
        path.unlink()
    return text


def digest(path: Path) -> Digest:
    """The digests of one file."""
    return Digest(path, hash_file(path), path.stat().st_size)


def is_allowed(path: str, patterns: tuple[str, ...] = ALLOWED) -> bool:
    """Whether a file of this name may be part of a release; ``*`` does not match a ``/``."""
    return any(fnmatch.fnmatchcase(path, p) and path.count("/") == p.count("/") for p in patterns)


def is_pickle(path: Path) -> bool:
    """Whether a file can run code when it is loaded, by its content or by its name."""
    if path.suffix in PICKLES:
        return True
    with path.open("rb") as stream:
        head = stream.read(9)
    if path.suffix == ".safetensors" and head[4:] == b"\0\0\0\0{":
        return False  # it begins with the length of its header, which may be that of 0x80 0x02; the rest is checked
    # torch.save packs its pickle in a zip; no file of a release is a zip.
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> str:
    """What differs between two trees (path: digest), in words; empty if nothing does."""
    listed = []
    for word, names in (
        ("missing", expected.keys() - actual.keys()),
        ("unexpected", actual.keys() - expected.keys()),
        ("different", {name for name in expected.keys() & actual.keys() if expected[name] != actual[name]}),
    ):
        if names:
            listed.append(f"{word}: {', '.join(sorted(names))}")
    return "; ".join(listed)
