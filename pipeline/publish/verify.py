"""Check a published release as a stranger would: download it into an empty folder, past all caches."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.artifacts import read_file
from core.digests import weights_sha256
from core.errors import ArtifactError, GateError, VerificationError, panics_as_errors
from core.generation import keep_special_tokens_alone
from core.hub_ids import is_release_tag, newest_release
from core.licences import Licensed
from core.progress import report
from core.weights import code_problems, weights_problems
from eval.schema import GATE
from pipeline.publish import tree, trust
from pipeline.publish.hub import MAIN, Target, hub_errors, quiet
from pipeline.publish.licence import licence_problems
from pipeline.publish.package import Recheck, check_gate
from pipeline.publish.repository import Repository
from pipeline.publish.revoke import revocation_of
from pipeline.publish.schema import Release, VerifiedCheck
from pipeline.publish.trust import Signer

QUESTION = "Who are you?"
NEW_TOKENS = 16


@dataclass(frozen=True)
class Verified:
    """The commit that was checked, the checks, and the files with their sha256."""

    commit: str
    checks: list[VerifiedCheck]
    files: dict[str, str]


Step = tuple[str, Callable[[], str]]
"""A check by its name; it says what it found, and raises VerificationError."""


def file_steps(
    folder: Path,
    files: Mapping[str, str],
    repo: str,
    revision: str,
    signers: Sequence[Signer],
    recheck: Recheck,
    *,
    attributes: str,
    commit: str = "",
    tags: Mapping[str, str] = MappingProxyType({}),
) -> list[Step]:
    """The checks of a release that need nothing but its files in ``folder``, of which ``files`` has the sha256.

    ``attributes`` is the text of `.gitattributes`. ``commit`` and ``tags`` (with their commits) are for ``main`` alone.
    """
    return [
        ("allowed files", lambda: _allowed(folder, files, attributes)),
        ("signature", lambda: _signature(folder, signers)),
        ("name", lambda: _name(read_release(folder), repo, revision, commit, tags)),
        ("contents", lambda: _contents(read_release(folder), files, folder)),
        ("gate", lambda: _gate(folder, recheck)),
        ("licence", lambda: _licence(read_release(folder), folder)),
        ("safetensors", lambda: _safetensors(folder)),
    ]


def verify_release(
    repo: str,
    revision: str,
    target: Target,
    signers: Sequence[Signer],
    recheck: Recheck,
    expected: Mapping[str, str] | None = None,
    scratch: Path | None = None,
    keep: Path | None = None,
) -> Verified:
    """Download a revision and check it; the result lists the checks.

    Main and tags are themselves by their full names too, such as ``refs/heads/main``.
    It is downloaded into a temporary folder below ``scratch``. ``recheck`` judges the verdict again. With ``expected``
    (path: sha256) exactly these files must be there. If the signature is not among them, any valid one is accepted.
    What was checked is then moved to ``keep``, if given.
    Raises VerificationError that names what differs, HubError if it cannot be downloaded.
    """
    revision = MAIN if revision == "HEAD" else revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
    with tempfile.TemporaryDirectory(prefix="verify-", dir=scratch) as temporary, quiet():
        if revoked := revocation_of(repo, revision, target):
            raise VerificationError(f"{repo} at {revision} was {revoked}")
        report("downloading what was published")
        hub = Repository(repo, target)
        commit, oids, folder = _download(hub, revision, Path(temporary))
        tags = hub.releases() if revision == MAIN else {}
        attributes = tree.take_hub_files(folder)
        digests = tree.read_tree(folder)
        files = {name: digest.sha256 for name, digest in digests.items()}
        report("checking what was published")
        steps: list[Step] = [
            ("digests", lambda: _digests(oids, digests, files, expected)),
            *file_steps(
                folder, files, repo, revision, signers, recheck, attributes=attributes, commit=commit, tags=tags
            ),
            ("generation", lambda: _generation(folder)),
        ]
        release = f"{repo} at {commit[:12]}"
        checks = []
        for name, check in steps:
            try:
                checks.append(VerifiedCheck(name=name, detail=check()))
            except VerificationError as error:
                raise VerificationError(f"{release}: {error}") from error
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
            shutil.move(folder, keep)
        return Verified(commit, checks, files)


def _download(hub: Repository, revision: str, temporary: Path) -> tuple[str, dict[str, str], Path]:
    """The commit, its files with the Hub's own ids (sha256 of large files, else git's), and the folder they are in."""
    folder = temporary / "tree"
    commit = hub.commit(revision)
    oids = hub.files(commit)
    with hub_errors(f"downloading {hub.name} at {revision}"):
        hub.api.snapshot_download(hub.name, revision=commit, local_dir=folder, cache_dir=temporary / "cache")
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own files
    return commit, oids, folder


def _digests(
    oids: Mapping[str, str],
    digests: Mapping[str, tree.Digest],
    files: dict[str, str],
    expected: Mapping[str, str] | None,
) -> str:
    downloaded = {n: oids[n] if n in oids and d.has_id(oids[n]) else d.sha256 for n, d in digests.items()}
    if wrong := tree.differences(oids, downloaded):
        raise VerificationError(
            f"the download is not what the Hub lists ({wrong}). Try again. If it happens again, revoke the release."
        )
    if expected is not None:
        compared = {n: sha256 for n, sha256 in files.items() if n in expected or n != tree.SIGNATURE}
        if wrong := tree.differences(expected, compared):
            raise VerificationError(f"the Hub does not hold what was packaged ({wrong}).")
    return f"{len(files)} files are what was {'packaged' if expected is not None else 'committed'}"


def _allowed(folder: Path, files: Mapping[str, str], attributes: str) -> str:
    if strange := [name for name in files if not tree.is_allowed(name)]:
        raise VerificationError(f"it has files that do not belong to a release: {', '.join(strange)}.")
    if problems := code_problems(folder):
        raise VerificationError(f"{'; '.join(problems)}, and no release holds code.")

    known = {*files, *tree.NAMES}  # the Hub keeps lines for files of the release before
    if strange := tree.strange_attributes(attributes, known.__contains__):
        raise VerificationError(
            f".gitattributes, which no signature covers, says more than which files are large: {strange[0]!r:.80}."
        )
    return "nothing but weights, tokenizer, card, licence and evidence"


def _signature(folder: Path, signers: Sequence[Signer]) -> str:
    if not (folder / tree.SIGNATURE).is_file():
        raise VerificationError(f"it has no signature ({tree.SIGNATURE}).")
    try:
        signer = trust.check_signature(folder, folder / tree.SIGNATURE, signers)
    except VerificationError as error:
        raise VerificationError(
            f"{error} Do not use these files; publish the release again, or name who signed it."
        ) from error
    return f"covers all files, by {signer.says()}"


def read_release(folder: Path) -> Release:
    """What a signed tree says it is. Raises VerificationError if it does not say."""
    try:
        return read_file(folder / tree.RELEASE, Release, "Ask the publisher to publish it again.")
    except ArtifactError as error:
        raise VerificationError(f"what the release is cannot be read: {error}") from error


def _name(release: Release, repo: str, revision: str, commit: str, tags: Mapping[str, str]) -> str:
    """Whether the tree is where it was signed to be: a valid signature also fits an older release, or a copy."""
    if release.repo != repo:
        raise VerificationError(f"it was signed as a release of {release.repo}, and is a copy here.")
    if is_release_tag(revision) and release.tag != revision:
        raise VerificationError(f"it was signed as {release.tag}, and the tag {revision} was moved to it.")
    if revision == MAIN:
        newest = newest_release(tags)
        if newest != release.tag:
            raise VerificationError(f"main holds {release.tag}, and the newest release is {newest}: main was set back.")
        if tags[release.tag] != commit:
            raise VerificationError(f"main is not at the commit of the tag {release.tag}, although it has its content.")
    return f"signed as {release.tag} of {release.repo}"


def _contents(release: Release, files: Mapping[str, str], folder: Path) -> str:
    signed = {name: digest for name, digest in files.items() if name not in (tree.RELEASE, tree.SIGNATURE)}
    if wrong := tree.differences(release.files, signed):
        raise VerificationError(f"the files are not those of its {tree.RELEASE} ({wrong}).")
    if release.gate_sha256 != files.get(GATE) or release.weights_sha256 != weights_sha256(folder):
        raise VerificationError(f"the weights or {GATE} are not those of its {tree.RELEASE}.")
    return f"digests of {len(signed)} files, weights and gate are those of {tree.RELEASE}"


def _gate(folder: Path, recheck: Recheck) -> str:
    try:
        check_gate(folder, folder)
    except (GateError, ArtifactError) as error:
        raise VerificationError(f"no gate allows this release: {error}") from error
    if wrong := recheck(folder):
        raise VerificationError(f"its verdict does not follow from its recipe and results: {' '.join(wrong)}")
    return "passed for these weights, by the recipe's thresholds and the published values"


def _licence(release: Release, folder: Path) -> str:
    made_from = release.recipe.get("model")
    terms = made_from.get("terms") if isinstance(made_from, dict) else None
    try:
        licensed = Licensed.model_validate({"license": release.license, "terms": terms})
    except ValueError as error:
        raise VerificationError(f"its licence {release.license!r} is not known here, with these terms.") from error
    if problems := licence_problems(licensed, release.repo, folder):
        raise VerificationError(f"the licence {release.license} is not met: {'; '.join(problems)}.")
    return f"{release.license}: text, notice and name are as it requires"


def _safetensors(folder: Path) -> str:
    if problems := weights_problems(folder):
        raise VerificationError(f"the weights are unsound: {'; '.join(problems)}.")
    return "headers are sound, every value is finite"


@contextmanager
def _any_trouble() -> Iterator[None]:
    """Turn whatever transformers raises for a stranger's files into a VerificationError."""
    try:
        with panics_as_errors():
            yield
    except VerificationError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise VerificationError(f"transformers cannot load the model or generate with it ({kind}): {error}") from error


def _generation(folder: Path) -> str:
    """Load the model as its users will, and let it answer one question, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _any_trouble():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,  # else transformers asks whoever runs this, and runs it after a yes
            output_loading_info=True,
        )
        model, loading = loaded
        if wrong := {kind: sorted(names) for kind, names in loading.items() if names}:
            raise VerificationError(f"the checkpoint does not fit its config: {wrong}.")
        prompt = QUESTION
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": QUESTION}]
            prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        encoded = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
        keep_special_tokens_alone(model)  # a stranger's settings, such as a million beams, may not end
        with torch.inference_mode():
            output = model.generate(**encoded, max_new_tokens=NEW_TOKENS, do_sample=False)
    new = output.shape[1] - encoded["input_ids"].shape[1]
    if new < 1:
        raise VerificationError("the model was asked a question and generated nothing.")
    return f"loads with transformers and generates {new} tokens"
