"""The release workflow: what no linter of workflows knows of it. The linters and the pins are in `test_deploy.py`."""

from __future__ import annotations

from typing import Any

import yaml

from tests.conftest import ROOT


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]
    return found


def words(job: dict[str, Any]) -> str:
    return yaml.safe_dump(job)


def test_only_the_publication_has_an_identity_and_a_person_lets_it_begin() -> None:
    release = jobs("release.yml")
    assert list(release) == ["test", "train", "publish"]
    assert [name for name, job in release.items() if job["permissions"].get("id-token")] == ["publish"]
    assert release["publish"]["environment"] == "release"
    assert [name for name, job in release.items() if "HF_OIDC_RESOURCE" in words(job)] == ["publish"]
    assert [name for name, job in release.items() if "secrets." in words(job)] == ["train"]
    assert release["train"]["needs"] == "test"
    assert release["publish"]["needs"] == "train"


def test_what_is_handed_over_is_checked_by_its_digest_before_it_is_used() -> None:
    release = jobs("release.yml")
    steps = [step.get("run", "") for step in release["publish"]["steps"]]
    checked = next(i for i, run in enumerate(steps) if "sha256sum --check" in run)
    assert checked == next(i for i, run in enumerate(steps) if "tar --extract" in run)
    assert steps[checked].index("sha256sum --check") < steps[checked].index("tar --extract")
    assert "sha256" in release["train"]["outputs"]
    assert "--until gate" in words(release["train"])
