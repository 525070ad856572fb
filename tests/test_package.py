"""The package stage: what goes into a release, and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from core.artifacts import Git, read_file
from core.digests import weights_sha256
from core.errors import ArtifactError, GateError, InputError, VerificationError
from core.packages import package_versions
from core.weights import weights_problems
from pipeline.publish import package, sign, tree, trust
from pipeline.publish.config import PackageConfig, PublishConfig
from pipeline.publish.licence import licence_problems
from pipeline.publish.schema import Release
from pipeline.publish.trust import Signer
from tests.artifacts import write_manifest
from tests.publishing import (
    ANSWER,
    CARD,
    CONFIG,
    RECIPE,
    REPO,
    build,
    make_inputs,
    own_signer,
    plant,
    problems,
    write_gate,
)
from tests.small_card import NO_FACTS

LLAMA = PackageConfig(
    repo="demo/Llama-tiny", tag="v1.0.0", license="llama3.2", base_model="meta-llama/Llama-3.2-1B", recipe=RECIPE
)


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    return make_inputs(tmp_path / "inputs", tiny_model)


def test_the_tree_is_what_it_should_be(inputs: dict[str, Path], tmp_path: Path) -> None:
    (inputs["unlearn"] / "model" / "trainer_state.json").write_text("{}")
    (tmp_path / "out").mkdir()
    facts = package.run(CONFIG, inputs, tmp_path / "out", problems)
    hub = tmp_path / "out" / "hub"
    found = {p.relative_to(hub).as_posix() for p in hub.rglob("*") if p.is_file()}
    required = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    required |= {"README.md", "results.json", "plots/metrics.png", "gate.json", "LICENSE", "NOTICE", "release.json"}
    required |= {"bom.cdx.json"}
    assert required | {"model.sig"} <= found
    assert found <= required | {"model.sig", "generation_config.json", "special_tokens_map.json"}
    assert facts.left_out == ["trainer_state.json"]
    assert facts.files == len(found)
    release = read_file(hub / "release.json", Release, "")
    assert release.files.keys() == found - {"release.json", "model.sig"}
    assert release.files["README.md"] == hashlib.sha256(CARD.encode()).hexdigest()
    assert release.weights_sha256 == facts.weights_sha256
    assert (release.base_model, release.recipe) == ("demo/base", CONFIG.recipe)
    assert {"torch", "transformers", "python"} <= release.packages.keys()
    assert str(tmp_path) not in (hub / "release.json").read_text()


def test_it_names_what_made_the_weights_and_what_wrote_the_card(inputs: dict[str, Path], tmp_path: Path) -> None:
    older, newer = Git(commit="a" * 40, dirty=False), Git(commit="b" * 40, dirty=True)
    write_manifest(inputs["unlearn"], "unlearn", NO_FACTS, git=older, packages={"torch": "2.6.0"})
    write_manifest(inputs["card"], "card", NO_FACTS, git=newer)
    hub = build(inputs, tmp_path / "out") / "hub"
    release = read_file(hub / "release.json", Release, "")
    assert (release.source, release.packages["torch"]) == (newer, package_versions()["torch"])
    parts = json.loads((hub / "bom.cdx.json").read_text())["components"]
    assert {part["name"]: part["version"] for part in parts if part["bom-ref"].startswith("package-")} == {
        "torch": "2.6.0"
    }


def test_all_but_the_signature_is_deterministic(inputs: dict[str, Path], tmp_path: Path) -> None:
    first, second = (tree.read_tree(build(inputs, tmp_path / name) / "hub") for name in "ab")
    assert {n for n in first if first[n] != second[n]} <= {"model.sig"}


def test_key_is_made_once_and_private(inputs: dict[str, Path], tmp_path: Path) -> None:
    build(inputs, tmp_path / "a")
    key = tmp_path / "store" / "keys" / "release.pem"
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    build(inputs, tmp_path / "b")
    assert key.read_bytes() == before
    for artifact in "ab":
        assert b"PRIVATE" not in b"".join(p.read_bytes() for p in (tmp_path / artifact).rglob("*") if p.is_file())


def test_given_key(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_RELEASE_KEY", str(tmp_path / "mine.pem"))
    with pytest.raises(InputError, match="there is no such file"):
        sign.private_key()
    (tmp_path / "mine.pem").write_text("nonsense")
    with pytest.raises(InputError, match="not a PEM private key"):
        sign.private_key()
    (tmp_path / "mine.pem").unlink()
    place = tmp_path / "mounted"
    sign._make_key(place / "mine.pem")
    monkeypatch.setenv("UNLEARN_RELEASE_KEY", str(place / "mine.pem"))
    hub = build(inputs, tmp_path / "out") / "hub"
    (public,) = (tmp_path / "store" / "keys").iterdir()
    signer = Signer(key=str(public))
    assert signer.says() == f"the key {public.stem}"
    assert sign.trusted_signers(REPO) == [trust.check_signature(hub, hub / "model.sig", [signer])]
    assert [path.name for path in place.iterdir()] == ["mine.pem"]  # a mounted secret cannot be written to


def test_signature_covers_everything(inputs: dict[str, Path], tmp_path: Path) -> None:
    hub = build(inputs, tmp_path / "out") / "hub"
    check = lambda: trust.check_signature(hub, hub / "model.sig", [own_signer()])  # noqa: E731
    check()
    for path in [p for p in sorted(hub.rglob("*")) if p.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(VerificationError):
            check()
        path.write_bytes(content)
    (hub / "extra.txt").write_text("x")
    with pytest.raises(VerificationError, match=r"extra\.txt"):
        check()
    (hub / "extra.txt").unlink()
    (hub / "NOTICE").unlink()
    with pytest.raises(VerificationError, match="NOTICE"):
        check()


def test_another_key_does_not_verify(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = build(inputs, tmp_path / "out") / "hub"
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "other"))
    with pytest.raises(VerificationError, match="Key mismatch"):
        trust.check_signature(hub, hub / "model.sig", [own_signer()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passed": False}, "The gate failed .answer_probability on forget."),
        ({"weights_sha256": "0" * 64}, "The gate passed for the weights 000"),
    ],
)
def test_gate(inputs: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_gate(inputs, **changes)
    with pytest.raises(GateError, match=message):
        build(inputs, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "[]", '{"passed": true}'])
def test_gate_that_is_none(inputs: dict[str, Path], tmp_path: Path, content: str | None) -> None:
    gate = inputs["gate"] / "gate.json"
    gate.unlink() if content is None else gate.write_text(content)
    with pytest.raises(ArtifactError, match=r"gate\.json: .* Run the gate stage again"):
        build(inputs, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("key", ["passed", "weights_sha256"])
@pytest.mark.parametrize("value", ["true", 1, None])
def test_what_a_gate_says_is_of_its_type(inputs: dict[str, Path], tmp_path: Path, key: str, value: object) -> None:
    gate = inputs["gate"] / "gate.json"
    gate.write_text(json.dumps(json.loads(gate.read_text()) | {key: value}))
    expected = GateError if (key, value) == ("weights_sha256", "true") else ArtifactError  # a text, of other weights
    with pytest.raises(expected, match=key if expected is ArtifactError else "passed for the weights true"):
        build(inputs, tmp_path / "out")


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "tokenizer.model", "notes.txt", "sub/x.pkl"])
def test_pickles_are_refused(inputs: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = inputs["unlearn"] / "model" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps({"hub_token": "x"}))
    with pytest.raises(InputError, match=f"can run code when they are loaded: {name}"):
        build(inputs, tmp_path / "out")


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 66176])
def test_weights_whose_header_is_as_long_as_a_pickle_begins_are_none(length: int, tmp_path: Path) -> None:
    """Safetensors begin with the length of their header, and pickles with 0x80 and the number of their protocol."""
    file = tmp_path / "model.safetensors"
    weights = {"lm_head.weight": np.zeros(4, dtype=np.float32)}
    save_file(weights, file, metadata={"x": "x" * (length - 96)})  # the rest of the header, padded
    assert file.read_bytes()[:8] == length.to_bytes(8, "little")
    assert weights_problems(tmp_path) == []
    assert not tree.is_pickle(file)
    file.write_bytes(pickle.dumps({"a": "x" * length}))
    assert tree.is_pickle(file)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_code_of_its_own_is_refused(inputs: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = inputs["unlearn"] / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "their/code--conf.Config"}}))
    with pytest.raises(InputError, match=rf"{name} names code of the model's own \(auto_map\)"):
        build(inputs, tmp_path / "out")


def test_a_torch_zip_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    import torch

    torch.save({"a": 1}, inputs["unlearn"] / "model" / "tokenizer.model")
    with pytest.raises(InputError, match="can run code"):
        build(inputs, tmp_path / "out")


PLACES = ["card/README.md", "card/results.json", "card/plots/metrics.png", "unlearn/model/tokenizer_config.json"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("planted", [ANSWER.upper(), "hf_" + "aB3d" * 9])
def test_answers_and_secrets_are_refused(inputs: dict[str, Path], tmp_path: Path, place: str, planted: str) -> None:
    stage, _, name = place.partition("/")
    path = inputs[stage] / name
    plant(path, planted)
    with pytest.raises(InputError, match=f"{Path(name).name} holds a") as error:
        build(inputs, tmp_path / "out")
    assert planted not in str(error.value)
    assert not (tmp_path / "out" / "hub" / "model.sig").exists()


def test_an_answer_in_the_weights_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    path = inputs["unlearn"] / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    hidden = ANSWER.encode("utf-16-le")
    data[-len(hidden) :] = hidden
    path.write_bytes(data)
    write_gate(inputs)
    with pytest.raises(InputError, match=r"model\.safetensors holds an answer"):
        build(inputs, tmp_path / "out")


def test_links_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (inputs["unlearn"] / "model" / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="is a link"):
        build(inputs, tmp_path / "out")


def safetensors(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 40, "not a safetensors file"),
        (safetensors(b"{"), "header cannot be read"),
        pytest.param(safetensors(b"[" * 100_000), "header cannot be read", id="deep"),
        (safetensors([]), "not a JSON object"),
        (safetensors({"a": 1}), "not a table"),
        (safetensors(b'{"a": 1, "a": 2}'), "twice"),
        (safetensors({"a": entry("F7")}), "dtype"),
        (safetensors({"a": entry(["F32"])}), "a has the dtype ['F32']"),
        (safetensors({"a": entry(shape=[-2])}), "shape"),
        (safetensors({"a": entry(offsets=[0, 4])}), "offsets that do not fit"),
        (safetensors({"a": entry(offsets=[4, 12])}), "offsets that do not fit"),
        (safetensors({"a": entry(offsets=["0", 8])}), "offsets"),
        (safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12), "offsets that do not fit"),
        (safetensors({"a": entry()}, b"\0" * 9), "after the last tensor"),
        (safetensors({"a": entry()}, b"\0" * 7), "cut off"),
        (safetensors({"a": entry()}, struct.pack("<2f", 1, float("nan"))), "a holds a value that is not finite"),
        (safetensors({"a": entry("F64", [1])}, struct.pack("<d", float("-inf"))), "not finite"),
        (safetensors({"a": entry("BF16", [4])}, b"\0\0\x80\x3f\x80\xff\0\0"), "not finite"),
        (safetensors({"a": entry("F16", [4])}, struct.pack("<4e", 0, 1, float("inf"), 2)), "not finite"),
    ],
)
def test_unsound_weights(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert message in "; ".join(weights_problems(tmp_path))


def test_sound_weights_and_shards(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    assert weights_problems(tiny_model) == []
    every = {
        str(dtype): torch.ones(3, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool)
    }
    save_file({**every, "empty": torch.empty(0)}, tmp_path / "model.safetensors")
    assert weights_problems(tmp_path) == []
    shards = tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert weights_problems(shards) == []
    listed = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in shards.glob("*.safetensors")}
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"))
    assert weights_sha256(shards) == hashlib.sha256(text.encode()).hexdigest()
    next(iter(sorted(shards.glob("*.safetensors")))).unlink()
    assert "does not name the tensors" in weights_problems(shards)[0]
    (shards / "model.safetensors.index.json").unlink()
    assert "no model.safetensors.index.json" in weights_problems(shards)[0]


def test_unsound_weights_are_not_packaged(inputs: dict[str, Path], tmp_path: Path) -> None:
    path = inputs["unlearn"] / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2] + b"\x80\x7f")
    write_gate(inputs)
    with pytest.raises(ArtifactError, match="not finite"):
        build(inputs, tmp_path / "out")


def test_llama_licence(inputs: dict[str, Path], tmp_path: Path) -> None:
    card = inputs["card"] / "README.md"
    card.write_text(CARD.replace("apache-2.0", "llama3.2"))
    with pytest.raises(InputError, match="must begin with 'Llama'"):
        build(inputs, tmp_path / "1", LLAMA.model_copy(update={"repo": REPO}))
    with pytest.raises(InputError, match="a copy of its text"):
        build(inputs, tmp_path / "2", LLAMA)
    start = tmp_path / "start"
    start.mkdir()
    (start / "LICENSE.txt").write_text("Some other licence")
    with pytest.raises(InputError, match="a copy of its text"):
        build({**inputs, "model": start}, tmp_path / "3", LLAMA)
    agreement = "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT (stand-in for a test)"
    (start / "LICENSE.txt").write_text(agreement)
    (start / "USE_POLICY.md").write_text("policy")
    with pytest.raises(InputError, match="Built with Llama"):
        build({**inputs, "model": start}, tmp_path / "4", LLAMA)
    card.write_text(card.read_text() + "\nBuilt with Llama\n")
    hub = build({**inputs, "model": start}, tmp_path / "5", LLAMA) / "hub"
    assert (hub / "LICENSE").read_text() == agreement
    assert (hub / "USE_POLICY.md").read_text() == "policy"
    assert "Copyright © Meta Platforms, Inc. All Rights Reserved." in (hub / "NOTICE").read_text()
    assert licence_problems(LLAMA, "demo/tiny", hub) == [LLAMA.rules.name_problem("demo/tiny")]


def test_apache_licence(inputs: dict[str, Path], tmp_path: Path) -> None:
    hub = build(inputs, tmp_path / "out") / "hub"
    assert "Apache License" in (hub / "LICENSE").read_text()
    assert "derived from demo/base (https" in (hub / "NOTICE").read_text()
    assert "The weights were changed" in (hub / "NOTICE").read_text()
    assert licence_problems(CONFIG, REPO, hub) == []
    (hub / "NOTICE").unlink()
    assert licence_problems(CONFIG, REPO, hub) == ["NOTICE is missing"]
    assert "the card names the licence" in licence_problems(LLAMA, REPO, hub)[0]


def test_config() -> None:
    good = {"repo": "demo/a-b", "hub": "local", "tag": "v1.0.0"}
    assert PublishConfig.model_validate(good).visibility == "private"
    bad = [("repo", r) for r in ("demo", "demo/a/b", "demo/-a", "de mo/a", "demo/a..b", "demo/a.git", "../a")]
    bad += [("tag", t) for t in ("1.0", "main", "v1", "v1.0.0 ", "v1.0.0/../x")]
    bad += [("hub", "elsewhere"), ("visibility", "protected"), ("sgin", "x")]
    for key, value in bad:
        with pytest.raises(ValidationError):
            PublishConfig.model_validate({**good, key: value})


def test_config_imports_fast() -> None:
    code = "import sys, pipeline.publish.config, pipeline.publish.licence; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "huggingface_hub", "numpy", "model_signing", "starlette"} & set(modules)
