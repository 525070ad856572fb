"""Whose signature counts: that of a key, of a certificate, or of an identity that Sigstore confirmed.

model-signing checks that the signature fits the files. Two checks are added for certificates: it takes one as of the
day it was issued, so it never expires there, and it takes every name that the authority certified.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from core import bounded_json
from core.digests import hash_file
from core.errors import HubError, InputError, VerificationError
from core.hub_ids import is_hub_id
from core.places import ROOT, user_path
from core.strict import Strict
from core.yaml_source import read_tree

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from model_signing import verifying

TRUST = ROOT / "trust.yaml"
SIGSTORE = "UNLEARN_RELEASE_SIGSTORE"
# What the bundle in model.sig calls the three kinds, and what a reader gives to check each.
KINDS = {
    "publicKey": "a key (--key FILE)",
    "x509CertificateChain": "a certificate (--ca FILE)",
    "certificate": "an identity confirmed by Sigstore (--identity NAME --issuer URL)",
}
CURVES = ("secp256r1", "secp384r1", "secp521r1")  # P-256, P-384 and P-521; those of model-signing
_ISSUER = "1.3.6.1.4.1.57264.1.8"  # of the identity, in Fulcio's certificates (fulcio, docs/oid-info.md)


class Signer(Strict):
    """One who may sign: whoever holds a key, whom an authority certified, or an identity at its issuer."""

    key: str | None = Field(default=None, description="File with the public key, in PEM.")
    ca: str | None = Field(default=None, description="File with the certificates of the authority, in PEM.")
    identity: str | None = Field(default=None, description="The name in the signer's certificate.")
    issuer: str | None = Field(default=None, description="URL of the OpenID Connect issuer that knows the identity.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.model_dump(exclude_none=True).keys() not in (
            {"key"},
            {"ca"},
            {"ca", "identity"},
            {"identity", "issuer"},
        ):
            raise ValueError("give a key, or a ca (and the identity that it certified), or an identity and its issuer")
        for name in ("key", "ca"):
            if (file := getattr(self, name)) is not None and not user_path(file).is_file():
                raise ValueError(f"{name} {file}: there is no such file; give one in PEM")
        if self.key and (problem := _public_key_problem(user_path(self.key))):
            raise ValueError(f"key {self.key} {problem}")
        return self

    @property
    def kind(self) -> str:
        """What the bundle in ``model.sig`` calls this kind of signer."""
        return "publicKey" if self.key else "x509CertificateChain" if self.ca else "certificate"

    def says(self) -> str:
        """Who this is, in a few words; a key by the sha256 of its PEM text, which is also its hint in the signature."""
        if self.key:
            return f"the key {hash_file(user_path(self.key))}"
        if self.ca:
            authority = f"the authority in {Path(self.ca).name}"
            return f"{self.identity}, certified by {authority}" if self.identity else f"whoever {authority} certified"
        return f"{self.identity}, known to {self.issuer}"


def key_problem(key: object) -> str | None:
    """Why a loaded key, private or public, can neither sign nor check signatures here, or None if it can."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve in CURVES:
        return None
    kind = type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")
    return f"is of the kind {kind}{f' on {curve}' if curve else ''}; give one on the curve P-256, P-384 or P-521"


def _public_key_problem(file: Path) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return key_problem(load_pem_public_key(file.read_bytes()))
    except (OSError, ValueError, UnsupportedAlgorithm):
        return "cannot be read as a public key in PEM; give one on the curve P-256, P-384 or P-521"


def named_signers(repo: str) -> list[Signer]:
    """The signers that ``trust.yaml`` names for a repository, or else for its namespace; none if it names none.

    Raises InputError, with the line, if the file says something else.
    """
    if not TRUST.is_file():
        return []
    found = read_tree(TRUST, TRUST.name)
    listed = {name: signers if isinstance(signers, list) else [signers] for name, signers in found.values.items()}
    for name in listed:
        if not is_hub_id(name if "/" in name else f"{name}/name"):
            raise InputError(f"{found.place((name,))}: {name!r} is neither a namespace of the Hub nor a repository.")
    for signer in (signer for signers in listed.values() for signer in signers if isinstance(signer, dict)):
        for key in signer.keys() & {"key", "ca"}:  # beside the file itself
            signer[key] = str(TRUST.parent / user_path(str(signer[key])))
    try:
        trusted = TypeAdapter(dict[str, Annotated[list[Signer], Field(min_length=1)]]).validate_python(listed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{found.place(first['loc'])}: {first['msg'].removeprefix('Value error, ')}.") from error
    return trusted.get(repo) or trusted.get(repo.partition("/")[0]) or []


def check_signature(tree: Path, signature: Path, signers: Sequence[Signer]) -> Signer:
    """The first of ``signers`` who signed exactly the files of ``tree``. Raises VerificationError if none did."""
    problems = []
    for signer in signers:
        try:
            _check(tree, signature, signer)
        except VerificationError as error:
            problems.append(f"not by {signer.says()}: {error}")
        else:
            return signer
    raise VerificationError(f"The signature is not valid, {'; '.join(problems)}.")


def _check(tree: Path, signature: Path, signer: Signer) -> None:
    from model_signing import verifying

    kind, material = _material(signature)
    if kind != signer.kind:
        raise VerificationError(f"it is by {KINDS[kind]}")
    config = verifying.Config()
    if signer.key:
        config.use_elliptic_key_verifier(public_key=user_path(signer.key))
    elif signer.ca:
        _use_authority(config, user_path(signer.ca))
    else:
        _use_sigstore(config, signer)
    try:
        with redirect_stdout(sys.stderr):  # the library prints a warning, and there stands a command's result
            config.verify(tree, signature)
        if signer.ca:
            _check_certificate([_loaded(entry) for entry in material["certificates"]], signer)
    except VerificationError:
        raise
    except Exception as error:  # the library raises many kinds for a signature that it cannot use
        raise VerificationError(str(error) or type(error).__name__) from error


def _use_authority(config: verifying.Config, ca: Path) -> None:
    try:
        config.use_certificate_verifier(certificate_chain=[ca])
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{ca} cannot be used: {error}. Give a file in PEM.") from error


def _use_sigstore(config: verifying.Config, signer: Signer) -> None:
    instance = sigstore_instance()
    try:
        config.use_sigstore_verifier(
            identity=str(signer.identity), oidc_issuer=str(signer.issuer), trust_config=instance
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{SIGSTORE} {instance} cannot be used: {error}. Give a file in JSON.") from error
    except Exception as error:  # the library's network has many kinds
        raise HubError(f"Sigstore's roots of trust cannot be fetched: {error}. Run again later.") from error


def _material(signature: Path) -> tuple[str, Any]:
    """The kind of a signature, and what it says of its signer."""
    try:
        material = bounded_json.loads(signature.read_text(encoding="utf-8"))["verificationMaterial"]
        return next((kind, material[kind]) for kind in KINDS if material.get(kind))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise VerificationError(f"{signature.name} holds no signature that can be read") from error


def _loaded(entry: Any) -> Certificate:
    from cryptography import x509

    return x509.load_der_x509_certificate(base64.b64decode(entry["rawBytes"]))


def names(certificate: Certificate) -> list[str]:
    """Whom a certificate is for: its alternative names (e-mail, URL, host), or its common name if it has none."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName)
    return [name for kind in kinds for name in alternative.get_values_for_type(kind)]


def _check_certificate(chain: Sequence[Certificate], signer: Signer) -> None:
    """Raise VerificationError unless the first certificate of ``chain`` is valid today and is for ``signer``."""
    from cryptography import x509
    from OpenSSL import crypto

    store = crypto.X509Store()
    for root in x509.load_pem_x509_certificates(user_path(str(signer.ca)).read_bytes()):
        store.add_cert(crypto.X509.from_cryptography(root))
    first, *others = (crypto.X509.from_cryptography(certificate) for certificate in chain)
    try:
        crypto.X509StoreContext(store, first, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        raise VerificationError(
            f"the certificate of {', '.join(names(chain[0]))} is not valid today ({error}), and the signature does not "
            "say when it was made"
        ) from error
    if signer.identity is not None and signer.identity not in names(chain[0]):
        raise VerificationError(f"the certificate is for {', '.join(names(chain[0])) or 'nobody'}")


def certified(file: Path) -> Signer:
    """The signer whose certificate, with those of its authorities up to the root, is in a PEM file.

    Raises InputError if it is not, or is not valid today.
    """
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(file.read_bytes())
        signer = Signer(ca=str(file), identity=next(iter(names(chain[0])), None))
        _check_certificate(chain, signer)
    except (OSError, ValueError, VerificationError) as error:
        raise InputError(
            f"{file} cannot sign: {error}. Give your certificate in PEM, followed by those of its authorities up to "
            "the root."
        ) from error
    return signer


def confirmed(signature: Path) -> Signer:
    """The identity and issuer that a keyless signature names. Raises VerificationError if it names none."""
    from cryptography import x509

    kind, entry = _material(signature)
    if kind != "certificate":
        raise VerificationError(f"The package is signed by {KINDS[kind]}, and not by an identity.")
    certificate = _loaded(entry)
    issuer: Any = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_ISSUER)).value
    return Signer(identity=names(certificate)[0], issuer=issuer.value[2:].decode())  # a DER string of up to 127 bytes


def sigstore_instance() -> Path | None:
    """The trust configuration of the Sigstore instance to use; None for the public one. Raises InputError."""
    given = os.environ.get(SIGSTORE)
    if given and not Path(given).is_file():
        raise InputError(f"{SIGSTORE} is {given}, and there is no such file. Give a trust configuration, or unset it.")
    return Path(given) if given else None
