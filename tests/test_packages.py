"""The versions that a manifest and a release name."""

from __future__ import annotations

import platform
from importlib import metadata

import pytest

from core import packages


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGES", ("pydantic", "no-such-package", "torch"))
    assert packages.package_versions() == {
        "python": platform.python_version(),
        "pydantic": metadata.version("pydantic"),
        "torch": metadata.version("torch"),
    }


def test_all_packages_of_the_list_exist_under_these_names() -> None:
    there = packages.package_versions().keys()
    assert there | {"vllm"} == {"python", *packages.PACKAGES}
    assert {"bitsandbytes", "rouge-score", "pyspellchecker"} <= there  # readings of 4 bits, ROUGE-L, fluency
