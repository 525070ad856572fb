"""Room on the device for a second model: the measured one waits in the host's memory meanwhile.

A device that is just large enough for a model cannot hold an attacked copy, or base, beside it. On a CPU both are in
the host's memory anyway.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from core.memory import give_back


@contextmanager
def aside(model: PreTrainedModel) -> Iterator[None]:
    """Inside the ``with`` block ``model`` is in the host's memory; afterwards it is on its device again."""
    device = model.device
    model.to("cpu")  # type: ignore[arg-type]
    give_back()
    try:
        yield
    finally:
        give_back()
        model.to(device)  # type: ignore[arg-type]


@contextmanager
def stand_in(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A copy of ``model`` to be attacked, on its device. It is gone at the end of the ``with`` block."""
    device = model.device
    with aside(model):
        copied = copy.deepcopy(model)
        try:
            yield copied.to(device)  # type: ignore[arg-type]
        finally:
            copied.to("meta")  # type: ignore[arg-type]  # whoever still holds it, its memory is free
