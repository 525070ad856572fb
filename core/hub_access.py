"""Errors of reading a repository of the Hub, as sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import InputError


@contextmanager
def access_errors(error: type[InputError], repo: str, revision: str | None, *, page: str = "") -> Iterator[None]:
    """Raise ``error`` if the repository is gated, absent, unreachable, or not in the cache of an offline machine.

    ``page`` is what stands before the id in the address of its page: nothing for a model, ``datasets/`` for a data set.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OIDCError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx

    where = f"hub {page}{repo}" + (f" at {revision}" if revision else "")
    try:
        yield
    except GatedRepoError as problem:
        raise error(
            f"{where}: access is gated. Accept the licence at https://huggingface.co/{page}{repo}, then `hf auth "
            f"login` with a token of that account, or set HF_TOKEN."
        ) from problem
    except RevisionNotFoundError as problem:
        raise error(f"{where}: the repo has no such revision. Give one of its commits.") from problem
    except RepositoryNotFoundError as problem:
        raise error(
            f"{where}: no such repo, or it is private and the token cannot read it. Check the id; for a private repo "
            f"set HF_TOKEN."
        ) from problem
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OIDCError,
        OfflineModeIsEnabled,
        httpx.HTTPError,
        OSError,
    ) as problem:
        if is_offline_mode():
            raise error(
                f"{where}: is not in the cache, and HF_HUB_OFFLINE is set. Unset it, or fetch the repository with "
                "`hf download` where there is a network."
            ) from problem
        raise error(
            f"{where}: cannot be downloaded ({' '.join(str(problem).split())}). Check the network and run it again."
        ) from problem
