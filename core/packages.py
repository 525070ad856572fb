"""Which versions of which packages a result was made with."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib import metadata

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "lm-eval",
    "numpy",
    "scipy",
    "scikit-learn",
    "model-signing",
    "bitsandbytes",  # weights of 4 and 8 bits, moments of 8
    "gguf",  # the start model, where it is such a file
    "py3langid",  # languages of rows
    "pyspellchecker",  # which words fluency takes for words
    "rouge-score",
    "vllm",  # generations, if a recipe asks for it
)


_version = cache(metadata.version)  # a run of many stages asks before each, and this reads files


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = _version(name)
    return versions
