"""Where a release will be published, looked at before anything is trained: may this token publish there?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from core.errors import HubError, RecipeError
from core.places import store
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import Target, connect, hf_endpoint, hub_errors, need_token
from pipeline.publish.push import check_place
from pipeline.publish.repository import Repository

MAY_WRITE = ("admin", "write", "contributor")  # roles in an organisation


def refuse_example(repo: str) -> str:
    """Return the repository's name. Raises RecipeError if it is still the example's."""
    if repo.startswith("your-name/"):
        raise RecipeError(f"publish.repo is {repo}, the example's. Give a repository of yours: --set publish.repo=….")
    return repo


def check_target(config: PublishConfig, made_anew: Mapping[str, Any] | None = None) -> str:
    """The token may write to the repository, or create it in its namespace, and nothing there is against it.

    ``made_anew``: the parts of the recipe that the package will show, if there is none yet. Says so in words. Raises
    RecipeError or HubError if the release could not be published there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    repo, may = config.repo, "may write to {}"
    refuse_example(repo)
    namespace = repo.partition("/")[0]
    _refuse_offline()
    if os.environ.get("HF_OIDC_RESOURCE"):
        return "the token of a trusted publisher is asked for when it publishes"
    need_token()
    api = HfApi(endpoint=hf_endpoint(), token=True)
    if config.collection:
        with hub_errors(f"publish.collection: reading {config.collection}"):
            api.get_collection(config.collection)
    with hub_errors(f"looking up {repo}"):
        account = api.whoami()
        try:
            api.auth_check(repo)
        except RepositoryNotFoundError:
            _may_create(account, repo, namespace)
            return f"{account['name']} may create {repo}"
        try:
            api.auth_check(repo, write=True)
        except HfHubHTTPError as error:
            if config.via != "pr" or error.response.status_code not in (403, 404):
                raise
            may = "may ask for a merge into {}; tagging needs write access"
    target = Target(hf_endpoint(), True)
    check_place(config, target)
    _refuse_taken_tag(config, made_anew, target)
    return f"{account['name']} {may.format(repo)}"


def check_local(config: PublishConfig, made_anew: Mapping[str, Any] | None) -> str:
    """As :func:`check_target`, on the loopback Hub of this store, where everybody may write."""
    from huggingface_hub.errors import RepositoryNotFoundError

    _refuse_offline()
    if not (store() / "hub").exists():
        return "the first one of this store"
    with connect("local") as target:
        with hub_errors(f"looking up {config.repo}"):
            try:
                target.api().repo_info(config.repo)
            except RepositoryNotFoundError:
                return f"{config.repo} will be made on the loopback Hub"
        check_place(config, target)
        _refuse_taken_tag(config, made_anew, target)
    return f"{config.repo} is on the loopback Hub"


def _refuse_offline() -> None:
    """Raise HubError if the client is told to ask no Hub, not even one on loopback."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise HubError("HF_HUB_OFFLINE is set, and nothing can be published. Unset it, or stop with --until package.")


def _refuse_taken_tag(config: PublishConfig, made_anew: Mapping[str, Any] | None, target: Target) -> None:
    """Raise HubError if the tag has a release of another recipe. One of the same may be what is made once more."""
    hub = Repository(config.repo, target)
    if made_anew is None or config.tag not in hub.tags():
        return
    there = hub.release(config.tag)
    if there is None or there.recipe != dict(made_anew):
        raise HubError(
            f"{config.tag} of {config.repo} is there already, and not of this recipe as it is now; tags do not move. "
            "Set publish.tag to a new version, or publish.repo to another repository."
        )


def _may_create(account: dict[str, Any], repo: str, namespace: str) -> None:
    roles = {org["name"]: org.get("roleInOrg", "write") for org in account.get("orgs", ())}
    yours = [account["name"], *(name for name, role in roles.items() if role in MAY_WRITE)]
    if namespace not in yours:
        raise RecipeError(
            f"publish.repo is {repo}, and the token's account {account['name']} cannot create a repository of "
            f"{namespace}. It can for {', '.join(yours)}: set publish.repo, or take a token of {namespace}."
        )
    access = account.get("auth", {}).get("accessToken", {})
    scopes = access.get("fineGrained", {}).get("scoped", ())
    writes = [s["entity"]["name"] for s in scopes if "repo.write" in s.get("permissions", ())]
    if access.get("role") == "read" or (access.get("role") == "fineGrained" and namespace not in writes):
        raise RecipeError(
            f"publish.repo is {repo}, and the token may not write there. Make one with write access to {namespace} at "
            "https://huggingface.co/settings/tokens."
        )
