"""Whether a repository of the Hub can be read, and which files it has."""

from __future__ import annotations

from functools import cache

from core.errors import InputError
from core.hub_access import access_errors
from pipeline.publish.hub import hf_endpoint


def readable(repo: str, revision: str | None, kind: str, error: type[InputError]) -> list[str]:
    """The files of a repository that the token may read. Raises ``error``, with what to do, if it may not."""
    with access_errors(error, repo, revision, page="datasets/" if kind == "dataset" else ""):
        return _files(hf_endpoint(), repo, revision, kind)


@cache  # the members of a collection read the same repositories. A refusal is an error, and asked for again
def _files(endpoint: str, repo: str, revision: str | None, kind: str) -> list[str]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    info = api.repo_info(repo, repo_type=kind, revision=revision)  # asked once: listing the tree is tried again
    api.auth_check(repo, repo_type=kind)  # the page of a gated repository is public
    return [sibling.rfilename for sibling in getattr(info, "siblings", None) or ()]
