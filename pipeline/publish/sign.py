"""Signatures in the OpenSSF model-signing format: by a key, by a certificate, or by an identity that Sigstore confirms.

Where nothing is said, a key of this project's store signs: ``keys/release.pem``, which is made on first use.
UNLEARN_RELEASE_KEY names another private key; UNLEARN_RELEASE_CERTIFICATE its certificate, followed by those of its
authorities up to the root; UNLEARN_RELEASE_KEYLESS=1 asks for the identity that the CI job proves by OpenID Connect.
None of this enters an artifact's key. ECDSA draws a random number for every signature, so signing the same tree twice
gives two different files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from core.errors import HubError, InputError
from core.places import store
from pipeline.publish import trust
from pipeline.publish.tree import SIGNATURE
from pipeline.publish.trust import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from model_signing import signing

KEY, CERTIFICATE, KEYLESS = "UNLEARN_RELEASE_KEY", "UNLEARN_RELEASE_CERTIFICATE", "UNLEARN_RELEASE_KEYLESS"


def settings() -> list[str]:
    """The variables of the environment that say what signs here, in the place of the store's own key."""
    return [name for name in (KEY, CERTIFICATE, KEYLESS) if os.environ.get(name, "0") not in ("", "0")]


def _own_key() -> Path:
    return store() / "keys" / "release.pem"


def private_key() -> Path:
    """The file with the key that signs.

    Raises InputError if UNLEARN_RELEASE_KEY names a file that does not exist or holds no key that can sign.
    """
    given = os.environ.get(KEY)
    path = Path(given) if given else _own_key()
    if given and not path.is_file():
        raise InputError(
            f"UNLEARN_RELEASE_KEY is {given}, and there is no such file. Make one with "
            "'openssl ecparam -name prime256v1 -genkey -noout -out FILE', or unset it to use the store's own key."
        )
    if not path.is_file():
        _make_key(path)
    _load(path)
    return path


def public_key() -> Path:
    """The file with the key that checks what :func:`private_key` signs. Raises InputError as it does.

    It is written into the store, since the place of a given key may be one where nothing can be written.
    """
    from cryptography.hazmat.primitives import serialization

    private = private_key()
    pem = (
        _load(private)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    name = hashlib.sha256(pem).hexdigest() if os.environ.get(KEY) else private.stem
    public = store() / "keys" / f"{name}.pub"
    if not public.is_file() or public.read_bytes() != pem:
        public.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = public.with_name(f"{public.name}.{os.getpid()}")
        try:
            temporary.write_bytes(pem)
            temporary.replace(public)
        finally:
            temporary.unlink(missing_ok=True)
    return public


def trusted_signers(repo: str, given: Signer | None = None) -> list[Signer]:
    """Who may have signed a downloaded release: ``given``, or whom ``trust.yaml`` names, or who signs in this store.

    Raises InputError if there is nobody. A key that came with the files would prove nothing.
    """
    if given is not None:
        return [given]
    if named := trust.named_signers(repo):
        return named
    if certificate := os.environ.get(CERTIFICATE):
        return [trust.certified(Path(certificate))]
    if not os.environ.get(KEY) and not _own_key().is_file():
        raise InputError(
            f"There is no key in {store() / 'keys'} to check a signature with. Name who signed in trust.yaml, or for "
            "`verify` with --key FILE, or --ca FILE (and --identity NAME), or --identity NAME and --issuer URL."
        )
    return [Signer(key=str(public_key()))]


def given_signer(**options: str | None) -> Signer | None:
    """The signer that the options of a command name, None if they name none. Raises InputError."""
    if not any(options.values()):
        return None
    try:
        return Signer.model_validate(options)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{' '.join(f'--{name}' for name, value in options.items() if value)}: {message}.") from error


def check_settings() -> str:
    """Say what this machine is to sign with. Raises InputError if it cannot be used; nothing is written."""
    if _keyless():
        trust.sigstore_instance()
        return "an identity that Sigstore confirms"
    certificate, has_key = os.environ.get(CERTIFICATE), os.environ.get(KEY) or _own_key().is_file()
    if certificate and not has_key:
        raise InputError(f"{CERTIFICATE} is set, and no key. Give the one that its first certificate is for, as {KEY}.")
    if certificate:
        _with_key()
        return f"the key that {Path(certificate).name} certifies for {trust.certified(Path(certificate)).identity}"
    return f"the key {private_key()}" if has_key else "a key of the store's own, made on first use"


def own_signers(repo: str, package: Path) -> list[Signer]:
    """Who must have signed a package that is made here: whom ``trust.yaml`` names, else who signs on this machine."""
    if not (named := trust.named_signers(repo)) and _keyless():
        return [trust.confirmed(package / SIGNATURE)]
    return named or trusted_signers(repo)


def _keyless() -> bool:
    keyless = os.environ.get(KEYLESS, "0") not in ("", "0")
    if keyless and (other := next((name for name in (KEY, CERTIFICATE) if os.environ.get(name)), None)):
        raise InputError(f"{KEYLESS} and {other} are both set, and a release has one signature. Unset one of them.")
    return keyless


def _make_key(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
    with contextlib.suppress(FileExistsError):  # another process was first, so its key is used
        os.link(temporary, path)
    temporary.unlink()


def _load(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} is not a PEM private key without a password. Give one, or remove the file."
        ) from error
    if problem := trust.key_problem(key):
        raise InputError(f"{path} {problem}.")
    return cast("EllipticCurvePrivateKey", key)


def sign_tree(tree: Path) -> None:
    """Write ``model.sig`` into ``tree``; it signs all other files there.

    Raises InputError if key and certificate do not fit, HubError if Sigstore does not sign.
    """
    from model_signing import hashing, signing

    hashes = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=True)
    if _keyless():
        _sign_keyless(signing.Config().set_hashing_config(hashes), tree)
    else:
        _with_key().set_hashing_config(hashes).sign(tree, tree / SIGNATURE)


def _with_key() -> signing.Config:
    from model_signing import signing

    config, key, certificate = signing.Config(), private_key(), os.environ.get(CERTIFICATE)
    if not certificate:
        public_key()  # for the readers
        return config.use_elliptic_key_signer(private_key=key)
    try:  # the first certificate in the file signs, and the others come with the signature
        return config.use_certificate_signer(
            private_key=key, signing_certificate=Path(certificate), certificate_chain=[Path(certificate)]
        )
    except (ValueError, OSError) as error:
        raise InputError(
            f"{CERTIFICATE} {certificate} and the key {key} cannot sign: {error}. Give the key that the first "
            f"certificate is for, as {KEY}."
        ) from error


def _sign_keyless(config: signing.Config, tree: Path) -> None:
    from sigstore import oidc

    instance = trust.sigstore_instance()
    try:
        if token := oidc.detect_credential():
            config.use_sigstore_signer(identity_token=token, trust_config=instance).sign(tree, tree / SIGNATURE)
            return
    except Exception as error:  # the libraries of OIDC, Fulcio and Rekor raise many kinds
        raise HubError(f"Sigstore did not sign: {error}. Nothing was packaged. Run again later.") from error
    raise InputError(
        f"{KEYLESS} is set, and there is no identity to sign with: this is no CI job that Sigstore knows, or the job "
        "lacks `permissions: id-token: write`. Sign there, or unset it to sign with a key."
    )
