"""Every error that a user can cause, with the exit code that the command line gives it.

A message says what was given, what is allowed and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations


class ReleaseError(Exception):
    """Base of all expected errors; ``exit_code`` is what ``python -m pipeline`` returns."""

    exit_code = 2


class InputError(ReleaseError):
    """Something the user gave is wrong; nothing was written."""


class RecipeError(InputError):
    """A recipe cannot be read, or says something impossible; the message names the key's path and its line."""


class DataError(InputError):
    """Rows cannot be used: a missing column, an empty answer, a contradiction, a set that is too small."""


class ModelError(InputError):
    """A model cannot be fetched or used: a wrong checksum, no tokenizer, no chat template."""


class ArtifactError(InputError):
    """An artifact is missing, locked by another process, or no longer what its manifest says."""


class SystemLimitError(InputError):
    """The machine cannot do it: no disk space, no memory, a package that is missing."""


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
    """What was downloaded is not what was published: a digest, the signature, or the model does not hold."""

    exit_code = 4
