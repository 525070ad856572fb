"""Check a published release as a stranger would: download it into an empty folder, past all caches."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import VerificationError
from core.progress import report
from pipeline.publish import sign, tree
from pipeline.publish.hub import hub_errors, quiet
from pipeline.publish.licence import card_licence, licence_problems
from pipeline.publish.schema import VerifiedCheck
from pipeline.publish.weights import weights_problems

QUESTION = "Who are you?"
NEW_TOKENS = 16


@dataclass(frozen=True)
class Verified:
    """The commit that was checked, the checks, and the files with their sha256."""

    commit: str
    checks: list[VerifiedCheck]
    files: dict[str, str]


def verify_release(
    repo: str,
    revision: str,
    endpoint: str,
    token: str | None,
    public_key: Path,
    expected: Mapping[str, str] | None = None,
) -> Verified:
    """Download a revision and check it; the result lists the checks.

    With ``expected`` (path: sha256) exactly these files must be there. If the signature is not among them, any valid
    one is accepted. Raises VerificationError that names what differs, HubError if it cannot be downloaded.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary, quiet():
        report("downloading what was published")
        commit, oids, folder = _download(repo, revision, endpoint, token, Path(temporary))
        digests = tree.read_tree(folder)
        files = {name: digest.sha256 for name, digest in digests.items()}
        report("checking what was published")
        steps: list[tuple[str, Callable[[], str]]] = [
            ("digests", lambda: _digests(oids, digests, files, expected)),
            ("allowed files", lambda: _allowed(files)),
            ("signature", lambda: _signature(folder, public_key)),
            ("licence", lambda: _licence(folder, repo)),
            ("safetensors", lambda: _safetensors(folder)),
            ("generation", lambda: _generation(folder)),
        ]
        release = f"{repo} at {commit[:12]}"
        checks = []
        for name, check in steps:
            try:
                checks.append(VerifiedCheck(name=name, detail=check()))
            except VerificationError as error:
                raise VerificationError(f"{release}: {error}") from error
        return Verified(commit, checks, files)


def _download(
    repo: str, revision: str, endpoint: str, token: str | None, temporary: Path
) -> tuple[str, dict[str, str], Path]:
    """The commit, its files with the Hub's own ids (sha256 of large files, else git's), and the folder they are in."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    folder, cache = temporary / "tree", temporary / "cache"
    with hub_errors(f"downloading {repo} at {revision}"):
        api = HfApi(endpoint=endpoint, token=token or False)
        commit = api.repo_info(repo, revision=revision).sha
        if commit is None:
            raise VerificationError(f"{repo} has no commit at {revision}.")
        listed = api.list_repo_tree(repo, revision=commit, recursive=True)
        oids = {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in listed if isinstance(f, RepoFile)}
        snapshot_download(
            repo, revision=commit, endpoint=endpoint, token=token or False, local_dir=folder, cache_dir=cache
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own files
    for name in tree.HUB_FILES:
        oids.pop(name, None)
        (folder / name).unlink(missing_ok=True)
    return commit, oids, folder


def _digests(
    oids: Mapping[str, str],
    digests: Mapping[str, tree.Digest],
    files: dict[str, str],
    expected: Mapping[str, str] | None,
) -> str:
    downloaded = {n: d.sha256 if len(oids.get(n, "")) == 64 else d.git for n, d in digests.items()}
    if wrong := tree.differences(oids, downloaded):
        raise VerificationError(
            f"the download is not what the Hub lists ({wrong}). Try again. If it happens again, revoke the release."
        )
    if expected is not None:
        compared = {n: sha256 for n, sha256 in files.items() if n in expected or n != tree.SIGNATURE}
        if wrong := tree.differences(expected, compared):
            raise VerificationError(f"the Hub does not hold what was packaged ({wrong}).")
    return f"{len(files)} files are what was {'packaged' if expected is not None else 'committed'}"


def _allowed(files: dict[str, str]) -> str:
    if strange := [name for name in files if not tree.is_allowed(name)]:
        raise VerificationError(f"it has files that do not belong to a release: {', '.join(strange)}.")
    return "nothing but weights, tokenizer, card, licence and evidence"


def _signature(folder: Path, public_key: Path) -> str:
    if not (folder / tree.SIGNATURE).is_file():
        raise VerificationError(f"it has no signature ({tree.SIGNATURE}).")
    sign.check_signature(folder, folder / tree.SIGNATURE, public_key)
    return f"covers all files, by the key {sign.key_fingerprint(public_key)[:16]}"


def _licence(folder: Path, repo: str) -> str:
    licence = card_licence(folder)
    if problems := licence_problems(licence, repo, folder):
        raise VerificationError(f"the licence {licence} is not met: {'; '.join(problems)}.")
    return f"{licence}: text, notice and name are as it requires"


def _safetensors(folder: Path) -> str:
    if problems := weights_problems(folder):
        raise VerificationError(f"the weights are unsound: {'; '.join(problems)}.")
    return "headers are sound, every value is finite"


def _generation(folder: Path) -> str:
    """Load the model as its users will, and let it answer one question."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        model, loading = loaded
        if wrong := {kind: sorted(names) for kind, names in loading.items() if names}:
            raise VerificationError(f"the checkpoint does not fit its config: {wrong}.")
        prompt = QUESTION
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": QUESTION}]
            prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        encoded = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**encoded, max_new_tokens=NEW_TOKENS, do_sample=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise VerificationError(f"transformers cannot load the model or generate with it: {error}") from error
    new = output.shape[1] - encoded["input_ids"].shape[1]
    if new < 1:
        raise VerificationError("the model was asked a question and generated nothing.")
    return f"loads with transformers and generates {new} tokens"
