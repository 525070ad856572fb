"""A Sigstore on loopback, for the unmodified client: certificates for identities (Fulcio, RFC 6962 timestamps in them)
and a log of one entry (Rekor v1). What a CI job asks for its identity is there too.

Formats: github.com/sigstore/fulcio/blob/main/docs/oid-info.md, RFC 6962 (3.2, 3.3), and Rekor's openapi.yaml.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER = "https://token.actions.githubusercontent.com"
WORKFLOW = "acme/models/.github/workflows/release.yml@refs/heads/main"
IDENTITY = f"https://github.com/{WORKFLOW}"
SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
LONG_AGO = "2020-01-01T00:00:00Z"


class Log:
    """A log that signs what it was given."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.spki = self.key.public_key().public_bytes(*SPKI)
        self.id = hashlib.sha256(self.spki).digest()

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def trusted(self, url: str) -> dict[str, Any]:
        key = {"rawBytes": text(self.spki), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": {"start": LONG_AGO}}
        return {"baseUrl": url, "hashAlgorithm": "SHA2_256", "publicKey": key, "logId": {"keyId": text(self.id)}}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Instance:
    """The services' keys, and their answers."""

    def __init__(self) -> None:
        self.certificates, self.entries = Log(), Log()
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's Sigstore")])
        self.root = (
            self._builder(name, name, self.root_key.public_key(), timedelta(days=900))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.root_key.public_key()), critical=False)
            .sign(self.root_key, hashes.SHA256())
        )

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: Any, lasts: timedelta) -> x509.CertificateBuilder:
        begins = datetime.now(UTC) - timedelta(seconds=5)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(begins).not_valid_after(begins + lasts)

    def signing_certificate(self, asked: dict[str, Any], token: str) -> dict[str, Any]:
        claims = jwt.decode(token, options={"verify_signature": False})
        request = x509.load_pem_x509_csr(base64.b64decode(asked["certificateSigningRequest"]))
        name = x509.UniformResourceIdentifier(f"https://github.com/{claims['job_workflow_ref']}")
        issuer = claims["iss"].encode()
        builder = (
            self._builder(x509.Name([]), self.root.subject, request.public_key(), timedelta(minutes=10))
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()), critical=False
            )
            .add_extension(_raw("1.3.6.1.4.1.57264.1.1", issuer), critical=False)
            .add_extension(_raw("1.3.6.1.4.1.57264.1.8", b"\x0c" + bytes([len(issuer)]) + issuer), critical=False)
        )
        before = builder.sign(self.root_key, hashes.SHA256()).tbs_certificate_bytes
        leaf = builder.add_extension(_raw("1.3.6.1.4.1.11129.2.4.2", self._timestamps(before)), critical=False)
        chain = [leaf.sign(self.root_key, hashes.SHA256()), self.root]
        pem = [certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in chain]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": pem}}}

    def _timestamps(self, certificate: bytes) -> bytes:
        """The list of one signed timestamp of a certificate that does not have it yet (RFC 6962, 3.2 and 3.3)."""
        issuer = hashlib.sha256(self.root_key.public_key().public_bytes(*SPKI)).digest()
        now = int(time.time() * 1000)
        entry = issuer + len(certificate).to_bytes(3, "big") + certificate
        signature = self.certificates.sign(struct.pack("!BBQH", 0, 0, now, 1) + entry + b"\0\0")
        one = struct.pack("!B32sQHBBH", 0, self.certificates.id, now, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        return b"\x04" + bytes([len(listed)]) + listed

    def log_entry(self, asked: dict[str, Any]) -> dict[str, Any]:
        proposed = asked["spec"]["proposedContent"]
        envelope = json.loads(proposed["envelope"])
        digest = {"algorithm": "sha256", "value": hashlib.sha256(proposed["envelope"].encode()).hexdigest()}
        payload = hashlib.sha256(base64.b64decode(envelope["payload"])).hexdigest()
        signed = [{"signature": s["sig"], "verifier": proposed["verifiers"][0]} for s in envelope["signatures"]]
        spec = {
            "envelopeHash": digest,
            "payloadHash": {"algorithm": "sha256", "value": payload},
            "signatures": signed,
        }
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        entry: dict[str, Any] = {
            "body": text(body),
            "integratedTime": int(time.time()),
            "logID": self.entries.id.hex(),
            "logIndex": 0,
        }
        promise = text(self.entries.sign(rfc8785.dumps(entry)))
        root = hashlib.sha256(b"\0" + body).digest()  # a tree of one leaf
        note = f"log.test - 1\n1\n{text(root)}\n"
        checkpoint = f"{note}\n\N{EM DASH} log.test {text(self.entries.id[:4] + self.entries.sign(note.encode()))}\n"
        proof = {"logIndex": 0, "rootHash": root.hex(), "treeSize": 1, "hashes": [], "checkpoint": checkpoint}
        return {"0" * 64: entry | {"verification": {"signedEntryTimestamp": promise, "inclusionProof": proof}}}

    def trust_config(self, url: str) -> dict[str, Any]:
        """What a client trusts and where it asks: the file that UNLEARN_RELEASE_SIGSTORE names."""
        kind, valid = "application/vnd.dev.sigstore", {"start": LONG_AGO}
        service = [{"url": url, "majorApiVersion": 1, "validFor": valid, "operator": "a test"}]
        root = {"rawBytes": text(self.root.public_bytes(serialization.Encoding.DER))}
        authority = {
            "subject": {"organization": "a test", "commonName": "a test"},
            "uri": url,
            "certChain": {"certificates": [root]},
            "validFor": valid,
        }
        return {
            "mediaType": f"{kind}.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": f"{kind}.trustedroot+json;version=0.1",
                "tlogs": [self.entries.trusted(url)],
                "certificateAuthorities": [authority],
                "ctlogs": [self.certificates.trusted(url)],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": f"{kind}.signingconfig.v0.2+json",
                "caUrls": service,
                "oidcUrls": service,
                "rekorTlogUrls": service,
                "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }


def _raw(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(ObjectIdentifier(oid), value)


def _usage(*, authority: bool) -> x509.KeyUsage:
    others = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, decipher_only=False, **others
    )


def id_token() -> str:
    """What GitHub says of a job; nobody here checks its signature."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": "sigstore", "sub": "x", "iat": now, "exp": now + 300, "job_workflow_ref": WORKFLOW}
    return jwt.encode(claims, "of a test, and of thirty-two bytes", "HS256")


@contextmanager
def sigstore(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a CI job that may ask for its identity, while the services answer."""
    instance = Instance()

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return None

        def do_GET(self) -> None:
            if self.path.startswith("/id-token"):
                return self.answer({"value": id_token()})
            return self.answer({"authorization_endpoint": url, "token_endpoint": url})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/v2/signingCert":
                return self.answer(instance.signing_certificate(asked, self.headers["Authorization"].split()[1]))
            return self.answer(instance.log_entry(asked))

        def answer(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (folder / "sigstore.json").write_text(json.dumps(instance.trust_config(url)))
    try:
        yield {
            "UNLEARN_RELEASE_KEYLESS": "1",
            "UNLEARN_RELEASE_SIGSTORE": str(folder / "sigstore.json"),
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{url}/id-token",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of the job",
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
