"""Signatures in the OpenSSF model-signing format, with an elliptic-curve key of this project's store.

The private key is the file UNLEARN_RELEASE_KEY, or ``keys/release.pem`` in the store, which is made on first use. It
never enters an artifact or an artifact's key. ECDSA draws a random number for every signature, so signing the same tree
twice gives two different files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from core.digests import hash_file
from core.errors import InputError, VerificationError
from pipeline.publish.tree import SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def store() -> Path:
    """The folder of everything that this project keeps on this machine: UNLEARN_RELEASE_STORE, or ``runs``."""
    return Path(os.environ.get("UNLEARN_RELEASE_STORE") or "runs")


def private_key() -> Path:
    """The key that signs, with its public key beside it as ``.pub``.

    Raises InputError if UNLEARN_RELEASE_KEY names a file that does not exist or is not such a key.
    """
    given = os.environ.get("UNLEARN_RELEASE_KEY")
    path = Path(given) if given else store() / "keys" / "release.pem"
    if given and not path.is_file():
        raise InputError(
            f"UNLEARN_RELEASE_KEY is {given}, and there is no such file. Make one with "
            "'openssl ecparam -name prime256v1 -genkey -noout -out FILE', or unset it to use the store's own key."
        )
    if not path.is_file():
        _make_key(path)
    _write_public_key(path)
    return path


def public_key() -> Path:
    """The key that checks what :func:`private_key` signs. Raises InputError as it does."""
    return private_key().with_suffix(".pub")


def trusted_key(given: str | None) -> Path:
    """The public key for checking a downloaded release: ``given``, or the key of this store's own releases.

    Raises InputError if there is neither. A key that came with the files would prove nothing.
    """
    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"--key {given}: there is no such file. Give the publisher's public key, in PEM.")
        return Path(given)
    if not os.environ.get("UNLEARN_RELEASE_KEY") and not (store() / "keys" / "release.pem").is_file():
        raise InputError(
            f"There is no key in {store() / 'keys'} to check a signature with. "
            "Give the publisher's public key: --key FILE."
        )
    return public_key()


def key_fingerprint(public: Path) -> str:
    """sha256 of the public key's PEM text; the signature carries it as the key's hint."""
    return hash_file(public)


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


def _write_public_key(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    pem = (
        _load(path)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    public = path.with_suffix(".pub")
    if not public.is_file() or public.read_bytes() != pem:
        temporary = public.with_name(f"{public.name}.{os.getpid()}")
        temporary.write_bytes(pem)
        temporary.replace(public)


def _load(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not a PEM private key without a password. Give one, or remove the file."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} is not an elliptic-curve key. Give one on the curve P-256, P-384 or P-521.")
    return key


def sign_tree(tree: Path, key: Path) -> None:
    """Write ``model.sig`` into ``tree``; it signs all other files there."""
    from model_signing import hashing, signing

    signature = tree / SIGNATURE
    hashes = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=True)
    signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashes).sign(tree, signature)


def check_signature(tree: Path, signature: Path, public: Path) -> None:
    """Raise VerificationError unless ``signature`` was made with this key over exactly the files of ``tree``."""
    from model_signing import verifying

    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(tree, signature)
    except Exception as error:  # the library raises many kinds for a signature that it cannot use
        reason = str(error) or type(error).__name__
        raise VerificationError(
            f"The signature is not valid under the key {key_fingerprint(public)[:16]}…: {reason}. "
            "Do not use these files; publish the release again, or give the key that signed it."
        ) from error
