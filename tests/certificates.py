"""An organisation's authority, made for a test: a root, one authority below it, and certificates for signers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)
LONG_AGO = timedelta(days=-900)
NAME = "releases@acme.example"


@dataclass(frozen=True)
class Holder:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def public_pem(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def issue(
    name: str,
    by: Holder | None = None,
    *,
    authority: bool = False,
    begins: timedelta = timedelta(days=-2),
    ends: timedelta = timedelta(days=300),
) -> Holder:
    """A certificate for ``name``, issued by ``by``, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begins)
        .not_valid_after(NOW + ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if "@" in name:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(name)]), critical=False)
    return Holder(builder.sign(by.key if by else key, hashes.SHA256()), key)


@dataclass(frozen=True)
class Organisation:
    """A root, and the authority below it that certifies signers."""

    root: Holder
    middle: Holder

    @classmethod
    def make(cls) -> Organisation:
        root = issue("Acme root", authority=True, begins=LONG_AGO)
        return cls(root, issue("Acme releases", root, authority=True, begins=LONG_AGO))

    def files(self, folder: Path, signer: Holder, *above: Holder) -> dict[str, str]:
        """The environment with which ``signer`` signs; ``above`` are the authorities between it and this root's."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "signer.pem").write_bytes(signer.key_pem())
        chain = (signer, *above, self.middle, self.root)
        (folder / "chain.pem").write_bytes(b"".join(holder.pem() for holder in chain))
        (folder / "root.pem").write_bytes(self.root.pem())
        return {
            "UNLEARN_RELEASE_KEY": str(folder / "signer.pem"),
            "UNLEARN_RELEASE_CERTIFICATE": str(folder / "chain.pem"),
        }
