"""The Hub collection of several releases, and the dataset repository with their comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from core.hub_ids import HubId
from pipeline.publish.hub import connect, hub_errors, quiet
from pipeline.publish.repository import public_against_the_recipe
from pipeline.publish.scan import Scanner, refuse_findings


class Listing(NamedTuple):
    """What the Hub is to show. ``models`` are notes by repository, ``files`` are of the repository ``repo``."""

    title: str
    description: str
    repo: HubId
    private: bool
    models: Mapping[str, str]
    files: Mapping[str, bytes]


def publish(listing: Listing, hub: Literal["local", "hf"], scanners: Sequence[Scanner]) -> str:
    """Make the Hub show it, and return the collection's slug. Doing it again changes nothing.

    The collection is found by its title. Items that are none of ours any more are taken out of it. Raises InputError,
    before anything is uploaded, if one of the ``scanners`` of the members' data finds something; and HubError, also
    before, if it or the dataset is there and public, and the listing is private.
    """
    from huggingface_hub import CommitOperationAdd

    _refuse_findings(listing, scanners)
    with connect(hub) as target, quiet(), hub_errors(f"publishing the collection {listing.title!r}"):
        api = target.api()
        api.create_repo(listing.repo, repo_type="dataset", private=listing.private, exist_ok=True)
        if listing.private and not api.repo_info(listing.repo, repo_type="dataset").private:  # it was there
            raise public_against_the_recipe(f"The dataset {listing.repo}", "Nothing was uploaded.")
        found = api.create_collection(
            listing.title,
            namespace=listing.repo.split("/")[0],
            description=listing.description,
            private=listing.private,
            exists_ok=True,
        )
        if listing.private and not found.private:
            raise public_against_the_recipe(f"The collection {found.slug}", "Nothing was uploaded.")
        files = sorted(listing.files.items())  # open files are sent by LFS, which a Hub without xet needs
        operations = [CommitOperationAdd(name, BytesIO(content)) for name, content in files]
        api.create_commit(listing.repo, operations, commit_message="Comparison", repo_type="dataset")
        wanted = {(listing.repo, "dataset"): "All models beside each other."}
        wanted |= {(repo, "model"): note for repo, note in listing.models.items()}
        there = {(item.item_id, item.item_type): item for item in found.items}
        for (repo, kind), note in wanted.items():
            if (repo, kind) not in there:
                api.add_collection_item(found.slug, repo, kind, note=note, exists_ok=True)  # type: ignore[arg-type]
            elif there[repo, kind].note != note:
                api.update_collection_item(found.slug, there[repo, kind].item_object_id, note=note)
        for key, item in there.items():
            if key not in wanted:
                api.delete_collection_item(found.slug, item.item_object_id, missing_ok=True)
        if found.description != listing.description:
            api.update_collection_metadata(found.slug, description=listing.description)
    return found.slug


def _refuse_findings(listing: Listing, scanners: Sequence[Scanner]) -> None:
    said = "\n\n".join([listing.title, listing.description, *listing.models.values()])
    with TemporaryDirectory() as folder:
        for name, content in {**listing.files, "title-description-notes.txt": said.encode()}.items():
            (Path(folder) / name).write_bytes(content)
        for scanner in scanners:
            refuse_findings(Path(folder), scanner)
