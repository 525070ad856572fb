"""What gives rights on the Hub is in the environment of those stages only that talk to it.

A training or an evaluation runs much code of others: trainers, their integrations, the tasks of lm-eval. They and the
processes that they start find no token in the environment. What `hf auth login` wrote to a file is read by them as
before. A stage that fetches sees the user's token, and not the means to get that of a trusted publisher, which is good
for one repository and would be preferred to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
PUBLISHER = (
    *("HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN"),
    *("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"),
)


@contextmanager
def hidden(*, fetches: bool) -> Iterator[None]:
    """During the body the environment holds no token, or with ``fetches`` only one that reads."""
    names = [*PUBLISHER, *TOKENS]
    if fetches:  # a resource without a slash is a user, whose token reads gated repositories
        names = list(PUBLISHER) if "/" in os.environ.get("HF_OIDC_RESOURCE", "/") else []
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
