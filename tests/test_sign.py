"""Who signed: a key, a certificate of an organisation, an identity that Sigstore confirmed; and whom readers trust."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from core.errors import HubError, InputError, VerificationError
from pipeline.publish import push, sign, trust
from pipeline.publish.schema import Receipt, read_receipt
from pipeline.publish.trust import Signer
from tests.certificates import NAME, Holder, Organisation, issue
from tests.conftest import Call
from tests.hub_world import CONFIG
from tests.publishing import REPO, build, make_inputs, problems, write_card
from tests.sigstore_world import IDENTITY, ISSUER, sigstore


@pytest.fixture(scope="module")
def acme() -> Organisation:
    return Organisation.make()


@pytest.fixture(autouse=True)
def nobody_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (sign.KEY, sign.CERTIFICATE, sign.KEYLESS, trust.SIGSTORE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(trust, "TRUST", tmp_path / "trust.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is signed here; that a release is signed whole stands in test_package.py."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "weights").write_bytes(b"weights")
    return tmp_path / "tree"


def signed(folder: Path, environment: dict[str, str]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        sign.sign_tree(folder)
    return folder / "model.sig"


def by_certificate(folder: Path, acme: Organisation, signer: Holder, *above: Holder) -> tuple[Path, str]:
    """The tree's signature by a certificate, and the file with the root."""
    place = folder.parent / "keys"
    return signed(folder, acme.files(place, signer, *above)), str(place / "root.pem")


def test_a_certificate_is_checked_with_the_authority_and_the_name(folder: Path, acme: Organisation) -> None:
    signature, root = by_certificate(folder, acme, issue(NAME, acme.middle))
    for signer in (Signer(ca=root, identity=NAME), Signer(ca=root)):
        assert trust.check_signature(folder, signature, [signer]) == signer
    (folder / "weights").write_bytes(b"others")
    with pytest.raises(VerificationError, match="Hash mismatch for 'weights'"):
        trust.check_signature(folder, signature, [Signer(ca=root, identity=NAME)])


def test_a_certificate_for_another_name_is_refused(folder: Path, acme: Organisation) -> None:
    signature, root = by_certificate(folder, acme, issue("intern@acme.example", acme.middle))
    with pytest.raises(VerificationError, match=r"the certificate is for intern@acme\.example"):
        trust.check_signature(folder, signature, [Signer(ca=root, identity=NAME)])


@pytest.mark.parametrize(("begins", "ends"), [(-9, -1), (1, 9)], ids=["expired", "not yet valid"])
def test_a_certificate_counts_while_it_is_valid(folder: Path, acme: Organisation, begins: int, ends: int) -> None:
    """model-signing itself takes both: it looks at the first day of the certificate."""
    signer = issue(NAME, acme.middle, begins=timedelta(days=begins), ends=timedelta(days=ends))
    signature, root = by_certificate(folder, acme, signer)
    with pytest.raises(VerificationError, match=rf"certificate of {NAME} is not valid today \(certificate"):
        trust.check_signature(folder, signature, [Signer(ca=root, identity=NAME)])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in acme.files(folder.parent / "keys", signer).items():
            patch.setenv(name, value)
        with pytest.raises(InputError, match=r"chain\.pem cannot sign: the certificate of .* is not valid today"):
            sign.check_settings()


def test_a_certificate_of_another_authority_is_refused(folder: Path, acme: Organisation) -> None:
    other = Organisation.make()
    signature, root = by_certificate(folder, acme, issue(NAME, other.middle), other.middle, other.root)
    with pytest.raises(VerificationError, match="certificate"):
        trust.check_signature(folder, signature, [Signer(ca=root, identity=NAME)])


def test_a_signer_is_no_authority(folder: Path, acme: Organisation) -> None:
    intern = issue("intern@acme.example", acme.middle)
    signature, root = by_certificate(folder, acme, issue(NAME, intern), intern)
    with pytest.raises(VerificationError, match="CA"):
        trust.check_signature(folder, signature, [Signer(ca=root, identity=NAME)])


def test_a_key_that_is_not_the_certificates_is_named(folder: Path, acme: Organisation) -> None:
    environment = acme.files(folder.parent / "keys", issue(NAME, acme.middle))
    Path(environment[sign.KEY]).write_bytes(acme.root.key_pem())
    with pytest.raises(InputError, match=r"chain\.pem and the key .*signer\.pem cannot sign: .*does not match"):
        signed(folder, environment)
    assert not (folder / "model.sig").exists()


def test_the_kind_of_a_signature_is_named(folder: Path, acme: Organisation, tmp_path: Path) -> None:
    key = Signer(key=str(sign.public_key()))
    signature = signed(folder, {})
    assert trust.check_signature(folder, signature, [key]) == key
    (tmp_path / "root.pem").write_bytes(acme.root.pem())
    with pytest.raises(VerificationError, match=r"it is by a key \(--key FILE\)"):
        trust.check_signature(folder, signature, [Signer(ca=str(tmp_path / "root.pem"))])
    with pytest.raises(VerificationError, match=r"it is by a key"):
        trust.check_signature(folder, signature, [Signer(identity="x", issuer="https://x")])
    signature, _ = by_certificate(folder, acme, issue(NAME, acme.middle))
    with pytest.raises(VerificationError, match=r"it is by a certificate \(--ca FILE\)"):
        trust.check_signature(folder, signature, [key])
    (tmp_path / "root.pem").write_text("nonsense")
    with pytest.raises(InputError, match=r"cannot be used: .*Give a file in PEM"):
        trust.check_signature(folder, signature, [Signer(ca=str(tmp_path / "root.pem"))])


def test_a_signature_that_does_not_name_its_key_leaves_the_output_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may write to a repository can take the key's name out of a signature, which stays valid."""
    key = Signer(key=str(sign.public_key()))
    signature = signed(folder, {})
    bundle = json.loads(signature.read_text())
    bundle["verificationMaterial"]["publicKey"]["hint"] = None
    signature.write_text(json.dumps(bundle))
    assert trust.check_signature(folder, signature, [key]) == key
    assert capsys.readouterr().out == ""


def test_options_that_name_nobody_are_refused(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("key", "ca", "identity", "issuer"))
    assert sign.given_signer(**nothing) is None
    (tmp_path / "f").touch()
    for given in ({"identity": NAME}, {"issuer": "https://x"}, {"key": str(tmp_path / "f"), "ca": str(tmp_path / "f")}):
        with pytest.raises(InputError, match=f"--{next(iter(given))}.*: give a key, or a ca"):
            sign.given_signer(**nothing | given)
    with pytest.raises(InputError, match=r"--ca: ca .*absent: there is no such file"):
        sign.given_signer(**nothing | {"ca": str(tmp_path / "absent")})


KEYS: dict[str, Any] = {
    "RSA": rsa.generate_private_key(65537, 1024),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "EC on secp256k1": ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_another_kind_is_named_before_anything_is_signed_or_fetched(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acme: Organisation, call: Call
) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    key = Holder(acme.root.certificate, KEYS[kind])
    private.write_bytes(key.key_pem())
    public.write_bytes(key.public_pem())
    said = f"is of the kind {kind}; give one on the curve P-256, P-384 or P-521."
    done = call("verify", REPO, "--key", str(public), "--store", str(tmp_path / "store"))
    assert (done.returncode, done.stderr) == (2, f"error: --key: key {public} {said}\n")
    trust.TRUST.write_text("acme:\n- {key: key.pub}")
    with pytest.raises(InputError, match=rf"trust\.yaml:2: key .*key\.pub {said}"):
        trust.named_signers("acme/model")
    monkeypatch.setenv(sign.KEY, str(private))
    with pytest.raises(InputError, match=rf"key\.pem {said}"):
        sign.check_settings()


def test_what_signs_is_looked_at_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acme: Organisation
) -> None:
    assert sign.check_settings() == "a key of the store's own, made on first use"
    environment = acme.files(tmp_path / "keys", issue(NAME, acme.middle))
    monkeypatch.setenv(sign.CERTIFICATE, environment[sign.CERTIFICATE])
    with pytest.raises(InputError, match=f"{sign.CERTIFICATE} is set, and no key"):
        sign.check_settings()
    monkeypatch.setenv(sign.KEY, environment[sign.KEY])
    assert sign.check_settings() == f"the key that chain.pem certifies for {NAME}"
    monkeypatch.delenv(sign.CERTIFICATE)
    assert sign.check_settings() == f"the key {environment[sign.KEY]}"
    assert not (tmp_path / "store").exists()


def test_a_private_key_does_not_check(tmp_path: Path, acme: Organisation) -> None:
    (tmp_path / "key.pem").write_bytes(acme.root.key_pem())
    with pytest.raises(InputError, match=r"--key: key .*key\.pem cannot be read as a public key in PEM; give one"):
        sign.given_signer(key=str(tmp_path / "key.pem"))


TEAM = """
acme:
  ca: root.pem
  identity: releases@acme.example
lab:
  - key: old.pub
  - key: new.pub
lab/special:
  identity: https://github.com/lab/special/.github/workflows/release.yml@refs/heads/main
  issuer: https://token.actions.githubusercontent.com
"""


def test_the_trust_file_names_signers_by_namespace(folder: Path, acme: Organisation, tmp_path: Path) -> None:
    trust.TRUST.write_text(TEAM)
    (tmp_path / "root.pem").write_bytes(acme.root.pem())
    (tmp_path / "old.pub").write_bytes(acme.root.public_pem())
    (tmp_path / "new.pub").write_bytes(sign.public_key().read_bytes())
    assert trust.named_signers("acme/model") == [Signer(ca=str(tmp_path / "root.pem"), identity=NAME)]
    assert [Path(str(signer.key)).name for signer in trust.named_signers("lab/model")] == ["old.pub", "new.pub"]
    assert trust.named_signers("lab/special")[0].issuer == "https://token.actions.githubusercontent.com"
    assert trust.named_signers("acme2/model") == []
    signature = signed(folder, {})
    assert trust.check_signature(folder, signature, sign.trusted_signers("lab/model")).key == str(tmp_path / "new.pub")
    # A team's file is about its own namespaces: elsewhere this store's key counts, and what the command says always.
    assert sign.trusted_signers("demo/model") == [Signer(key=str(sign.public_key()))]
    assert sign.trusted_signers("acme/model", Signer(identity="x", issuer="https://x"))[0].identity == "x"


def test_a_package_that_the_teams_readers_would_refuse_is_refused(folder: Path, acme: Organisation) -> None:
    trust.TRUST.write_text("acme: {ca: root.pem}")
    (trust.TRUST.parent / "root.pem").write_bytes(acme.root.pem())
    signature = signed(folder, {})
    with pytest.raises(VerificationError, match=r"not by whoever the authority in root\.pem certified: it is by a key"):
        trust.check_signature(folder, signature, sign.own_signers("acme/model", folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acme: {ca: absent.pem}", r"trust\.yaml:1: ca .*absent\.pem: there is no such file"),
        ("\nacme: {identity: x}", r"trust\.yaml:2: give a key, or a ca"),
        ("acme: {keys: x}", r"trust\.yaml:1: Extra inputs"),
        ("acme: []", r"trust\.yaml:1: List should have at least 1"),
        ("acme: 3", r"trust\.yaml:1: "),
        ("acme:\n  key: [x]", r"trust\.yaml:\d: "),
        ("acme/a/b: {key: x}", "'acme/a/b' is neither a namespace"),
        ("acme: {key: x}\nacme: {key: y}", r"trust\.yaml:2: acme is given twice"),
        ("- acme", r"trust\.yaml:1: "),
    ],
)
def test_a_trust_file_that_says_something_else_is_an_error_with_its_line(text: str, message: str) -> None:
    trust.TRUST.write_text(text)
    with pytest.raises(InputError, match=message):
        trust.named_signers("acme/model")


def test_keyless_needs_an_identity_and_nothing_else(folder: Path) -> None:
    with pytest.raises(InputError, match=r"there is no identity to sign with: .*id-token: write"):
        signed(folder, {sign.KEYLESS: "1"})
    with pytest.raises(InputError, match="are both set"):
        signed(folder, {sign.KEYLESS: "1", sign.KEY: "x.pem"})
    with pytest.raises(InputError, match="there is no such file"):
        signed(folder, {sign.KEYLESS: "1", trust.SIGSTORE: "absent.json"})


def test_an_identity_signs_and_is_checked_without_a_key(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client of Sigstore, unmodified, with an instance on loopback; the log need not be there to check."""
    with sigstore(tmp_path) as environment:
        signature = signed(folder, environment)
    monkeypatch.setenv(trust.SIGSTORE, environment[trust.SIGSTORE])
    workflow = Signer(identity=IDENTITY, issuer=ISSUER)
    assert trust.check_signature(folder, signature, [workflow]) == workflow
    assert workflow.says() == f"{IDENTITY}, known to {ISSUER}"
    assert not list(tmp_path.rglob("*.pem"))
    others = {"identity": IDENTITY.replace("main", "mine"), "issuer": "https://accounts.example"}
    for name, value in others.items():
        with pytest.raises(VerificationError, match=f"not by .*: .*{value}"):
            trust.check_signature(folder, signature, [workflow.changed(**{name: value})])
    # The publisher checks its own package by the identity that the package names; a reader must say whom to expect.
    monkeypatch.setenv(sign.KEYLESS, "1")
    assert sign.own_signers("acme/model", folder) == [workflow]
    with pytest.raises(InputError, match="Name who signed"):
        sign.trusted_signers("acme/model")
    trust.TRUST.write_text("acme: {identity: someone, issuer: https://accounts.example}")
    assert [signer.identity for signer in sign.own_signers("acme/model", folder)] == ["someone"]
    (folder / "weights").write_bytes(b"others")
    with pytest.raises(VerificationError, match="Hash mismatch for 'weights'"):
        trust.check_signature(folder, signature, [workflow])


def test_another_sigstore_vouches_for_nobody_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sigstore(tmp_path) as environment:
        signature = signed(folder, environment)
    (tmp_path / "other").mkdir()
    with sigstore(tmp_path / "other") as other:
        monkeypatch.setenv(trust.SIGSTORE, other[trust.SIGSTORE])
        with pytest.raises(VerificationError, match="certificate chain"):
            trust.check_signature(folder, signature, [Signer(identity=IDENTITY, issuer=ISSUER)])


def test_a_sigstore_that_does_not_answer_is_no_traceback(folder: Path, tmp_path: Path) -> None:
    with sigstore(tmp_path) as environment:
        pass
    with pytest.raises(HubError, match=r"Sigstore did not sign: .*Nothing was packaged"):
        signed(folder, environment)


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    return make_inputs(tmp_path / "inputs", tiny_model)


def released(inputs: dict[str, Path], tmp_path: Path, environment: dict[str, str]) -> Receipt:
    """Package and publish with this environment; the receipt."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        package = build(inputs, tmp_path / "package")
        (tmp_path / "published").mkdir()
        push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, tmp_path / "published", problems)
    return read_receipt(tmp_path / "published")


def test_a_stranger_with_nothing_but_the_authority_verifies_a_release(
    inputs: dict[str, Path], tmp_path: Path, acme: Organisation, call: Call
) -> None:
    environment = acme.files(tmp_path / "keys", issue(NAME, acme.middle))
    write_card(inputs, tmp_path / "evidence")
    receipt = released(inputs, tmp_path, environment)
    assert receipt.signature.signer == f"{NAME}, certified by the authority in chain.pem"
    assert not (tmp_path / "store" / "keys").exists()
    verify = ("verify", REPO, "--store", str(tmp_path / "store"), "--ca", str(tmp_path / "keys" / "root.pem"))
    done = call(*verify, "--identity", NAME, "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check["detail"] for check in json.loads(done.stdout)["verified"]}
    assert checks["signature"] == f"covers all files, by {NAME}, certified by the authority in root.pem"
    done = call(*verify, "--identity", "intern@acme.example")
    assert (done.returncode, "the certificate is for releases@acme.example" in done.stderr) == (4, True)
    done = call(*verify[:-2], "--identity", NAME)
    assert (done.returncode, "--identity: give a key, or a ca" in done.stderr) == (2, True)
    done = call(*verify[:-2])
    assert (done.returncode, "for `verify` with --key FILE, or --ca FILE" in done.stderr) == (2, True)
    trust.TRUST.write_text(f"demo: {{ca: {verify[-1]}, identity: {NAME}}}")
    assert call(*verify[:-2]).returncode == 0


def test_a_package_that_was_signed_otherwise_says_what_to_delete(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acme: Organisation
) -> None:
    """What signs is in no artifact's key, so the package stays done when it is changed."""
    package = build(inputs, tmp_path / "package")
    monkeypatch.setenv(sign.KEY, acme.files(tmp_path / "keys", issue(NAME, acme.middle))[sign.KEY])
    for _ in range(2):
        with pytest.raises(VerificationError, match=f"delete the folder {package} and run the same command again"):
            push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, tmp_path, problems)
        monkeypatch.delenv(sign.KEY, raising=False)
        monkeypatch.setenv(sign.KEYLESS, "1")


def test_a_release_signed_by_an_identity_names_it(inputs: dict[str, Path], tmp_path: Path) -> None:
    with sigstore(tmp_path) as environment:
        receipt = released(inputs, tmp_path, environment)
    assert receipt.signature.signer == f"{IDENTITY}, known to {ISSUER}"
    assert [check.name for check in receipt.verified][-1] == "generation"
