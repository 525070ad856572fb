"""What a repository's owner can set: who may see it, and whether its files are gated. Kept in its ``hub.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.localhub.refusal import Refusal

VISIBILITIES = ("private", "public")
GATES = ("auto", "manual", False)
FILE = "hub.json"
Access = Literal["accepted", "pending", "rejected"]


@dataclass(frozen=True)
class Settings:
    """``access`` holds who asked to read a gated repository: user to accepted, pending or rejected."""

    visibility: str
    gated: str | bool = False
    access: dict[str, Access] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.visibility not in VISIBILITIES:
            raise Refusal(400, f"visibility {self.visibility!r}: use private or public.")
        if self.gated not in GATES or self.gated is True:
            raise Refusal(400, f"gated {self.gated!r}: use auto, manual or false.")

    @property
    def is_private(self) -> bool:
        """Whether only its owner may see it."""
        return self.visibility == "private"

    def with_access(self, user: str, state: Access) -> Settings:
        """The same with another answer to a user's request."""
        return replace(self, access={**self.access, user: state})


def read_settings(path: Path) -> Settings | None:
    """The settings of the repository at ``path``, or None if there is no repository."""
    try:
        values: dict[str, Any] = json.loads((path / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Settings(**values)


def write_settings(path: Path, settings: Settings) -> None:
    """Replace the settings, all at once."""
    write_json(path / FILE, asdict(settings))


def write_json(path: Path, value: Any) -> None:
    """Replace a file by one with this value; a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
