"""The base of all models of configurations and files: unknown keys and wrong types are errors, values cannot change."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Strict(BaseModel):
    """A frozen pydantic model that refuses unknown keys and does not convert types."""

    model_config = STRICT

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked as the original was; ``model_copy`` would take whatever it is given."""
        return type(self).model_validate({**dict(self), **changes})
