"""Every error that a user can cause, with the exit code that the command line gives it.

A message says what was given, what is allowed and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

ERROR_FILE = "UNLEARN_RELEASE_ERROR_FILE"  # where a launched process leaves its error for the one that launched it


class ReleaseError(Exception):
    """Base of all expected errors; ``exit_code`` is what ``python -m pipeline`` returns."""

    exit_code = 2


class InputError(ReleaseError):
    """Something the user gave is wrong; nothing was written."""


class RecipeError(InputError):
    """A recipe cannot be read, or says something impossible; the message names the key's path and its line."""


class DataError(InputError):
    """Rows cannot be used: a missing column, an empty answer, a contradiction, or too few rows."""


class ModelError(InputError):
    """A model cannot be fetched or used: a wrong checksum, no tokenizer, no chat template."""


class ArtifactError(InputError):
    """An artifact is missing, locked by another process, or no longer what its manifest says."""


class SystemLimitError(InputError):
    """The machine lacks something: disk space, memory, a GPU, or a package."""


class TrainingError(ReleaseError):
    """A guard stopped the training, for example at a non-finite loss."""

    exit_code = 3


class GateError(ReleaseError):
    """A gate failed, or has no evidence; nothing may be published."""

    exit_code = 3


class HubError(ReleaseError):
    """The Hub refused, or cannot be reached."""

    exit_code = 4


class VerificationError(ReleaseError):
    """What was downloaded is not what was published: a digest differs, the signature is wrong, or the model fails."""

    exit_code = 4


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of a library in Rust, such as tokenizers at a damaged file, into a RuntimeError.

    Python sees it as no Exception, but as what is like an interrupt, of a class that cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error


def let_go(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and of what caused it: they hold all that a failed stage had in memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def left_error(place: Path) -> ReleaseError | None:
    """The error that a process left at ``place``; None if there is none, or it is being written."""
    try:
        left = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    error: ReleaseError = globals()[left["kind"]](left["message"])
    return error


def leave_error(error: ReleaseError) -> None:
    """Leave an error for the process that launched this one, if one did. The first of several errors is kept."""
    place = os.environ.get(ERROR_FILE)
    if place:
        with contextlib.suppress(FileExistsError), Path(place).open("x", encoding="utf-8") as file:
            json.dump({"kind": type(error).__name__, "message": str(error)}, file)
