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
)


_version = cache(metadata.version)  # a run of many stages asks before each, and this reads files


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = _version(name)
    return versions
