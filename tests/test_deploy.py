"""What runs the project elsewhere: the image, workflows for other people's CI, and examples for a cluster."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.__main__ import parser
from pipeline.engine import machine
from tests.conftest import ROOT, Call

DEPLOY = ROOT / "deploy"
WORKFLOWS = [*sorted((DEPLOY / "ci").glob("*.yml")), *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
SCHEMAS = ROOT / "tests" / "goldens" / "schemas"
DOCKERFILE = ROOT / "Dockerfile"
OURS = re.compile(r"^(?:\S*/)?(?:unlearn-release|python -m pipeline) (.*?)(?: > .*)?$", re.MULTILINE)


def program(name: str) -> str:
    """A program of this environment or this machine. Without it the test is skipped with a reason."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    installs = "the system's package jq has it" if name == "jq" else "`make setup` does that"
    return found or pytest.skip(f"{name} is not installed; {installs}")


def said_by(*argv: str) -> str:
    """Empty if the program found nothing to say."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


def our_commands(text: str) -> list[argparse.Namespace]:
    """The calls of the command line in a script, as its own parser reads them."""
    found = [shlex.split(words) for words in OURS.findall(text)]
    return [parser().parse_args([re.sub(r"\$\{?\w+[^ ]*", "x/y", word) for word in words]) for words in found]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_workflow_is_one(workflow: Path) -> None:
    assert said_by(program("actionlint"), str(workflow)) == ""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_workflow_can_be_attacked_in_no_known_way(workflow: Path) -> None:
    assert said_by(program("zizmor"), "--offline", "--quiet", str(workflow)) == ""


def test_zizmor_and_actionlint_find_what_is_planted(tmp_path: Path) -> None:
    planted = tmp_path / ".github" / "workflows" / "bad.yml"
    planted.parent.mkdir(parents=True)
    text = (DEPLOY / "ci" / "pull-request.yml").read_text()
    planted.write_text(text.replace('"$RECIPE" --dry-run', '"${{ github.head_ref }}" --dry-run'))
    assert "template-injection" in said_by(program("zizmor"), "--offline", "--quiet", str(planted))
    planted.write_text(text.replace("needs: plan", "needs: nothing"))
    assert "nothing" in said_by(program("actionlint"), str(planted))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_workflow_pins_its_actions_and_keeps_no_credentials(workflow: Path) -> None:
    used = re.findall(r"uses: (\S+)(.*)", workflow.read_text())
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name, _ in used)
    assert all(re.fullmatch(r" # v\d+\.\d+\.\d+", version) for _, version in used)
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_workflow_calls_commands_that_there_are(workflow: Path) -> None:
    calls = [command for step in steps(workflow) for command in our_commands(step.get("run", ""))]
    expected = {
        "ci/release": ["release", "release"],
        "ci/nightly": ["verify", "release", "compare"],
        "ci/pull-request": ["release"],
        "workflows/release": ["release"] * 4,
    }
    assert [call.command for call in calls] == expected.get(f"{workflow.parent.name}/{workflow.stem}", [])


def test_an_action_is_the_same_commit_in_all_workflows() -> None:
    used = {pinned for workflow in WORKFLOWS for pinned in re.findall(r"uses: (\S+)", workflow.read_text())}
    assert len(used) == len({pinned.partition("@")[0] for pinned in used}) > 3


def test_only_the_job_behind_the_environment_can_write_and_no_token_for_it_is_stored() -> None:
    jobs = yaml.safe_load((DEPLOY / "ci" / "release.yml").read_text())["jobs"]
    assert [name for name, job in jobs.items() if job["permissions"].get("id-token")] == ["publish"]
    assert [name for name, job in jobs.items() if "HF_OIDC_RESOURCE" in json.dumps(job)] == ["publish"]
    assert "secrets." not in json.dumps(jobs)
    assert jobs["publish"]["environment"] == "release"
    assert jobs["publish"]["needs"] == "gated"


def test_a_pull_request_shows_stages_and_gates(call: Call) -> None:
    plan = call("release", "demo", "--dry-run", "--device", "H100 80GB", "--json").stdout
    argv = [program("jq"), "--raw-output", "-f", str(DEPLOY / "ci" / "plan.jq")]
    shown = subprocess.run(argv, input=plan, capture_output=True, text=True, timeout=60, check=True).stdout
    gates = json.loads(plan)["gates"]
    rows = shown.partition("### Gates")[2].strip().splitlines()[2:]
    assert len(rows) == len(gates) > 10
    for row, gate in zip(rows, gates, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert cells[:4] == [gate["metric"], gate["split"], gate["rule"], str(gate["min_n"])]
    assert "| eval-unlearned |" in shown


def test_a_night_shows_what_was_compared() -> None:
    entry = {
        "metric": "fluency", "split": "forget", "n": 40, "ours": 0.98, "theirs": None, "difference": None,
        "margin": 0.05, "verdict": "not compared",
    }  # fmt: skip
    comparison = {"to": "a/b", "commit": "c" * 40, "same_weights": True, "metrics": [entry]}
    argv = [program("jq"), "--raw-output", "-f", str(DEPLOY / "ci" / "comparison.jq")]
    shown = subprocess.run(argv, input=json.dumps(comparison), capture_output=True, text=True, timeout=60, check=True)
    assert "| fluency | forget | 40 | 0.98 | – | – | 0.05 | not compared |" in shown.stdout
    assert "The weights are the same." in shown.stdout


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def problems(schema: dict[str, Any], document: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def test_kubernetes_takes_the_example() -> None:
    schema = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    for document in documents("kubernetes.yaml"):
        assert problems({**schema, "$ref": f"#/$defs/{document['kind']}"}, document) == []
    [job] = [document for document in documents("kubernetes.yaml") if document["kind"] == "Job"]
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["x"]
    assert "'comand' was unexpected" in problems({**schema, "$ref": "#/$defs/Job"}, job)[0]


def test_kubernetes_runs_the_image_as_its_user() -> None:
    [job] = [document for document in documents("kubernetes.yaml") if document["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE.read_text()
    [container] = pod["containers"]
    assert parser().parse_args(container["args"]).recipe == "/recipe/release.yaml"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    [rule] = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert rule["onExitCodes"]["values"] == [2, 3]  # wrong input, and a gate that failed


def test_skypilot_takes_the_example() -> None:
    schema = json.loads((SCHEMAS / "skypilot-0.14.1.json").read_text())
    [task] = documents("skypilot.yaml")
    assert problems(schema, task) == []
    assert [command.store for command in our_commands(task["run"])] == ["/store/runs"]
    for key, wrong in (("sekrets", {}), ("resources", {**task["resources"], "accelerator": "H100:1"})):
        assert problems(schema, {**task, key: wrong})


def test_the_dockerfile_is_clean() -> None:
    assert said_by(program("hadolint"), "--failure-threshold", "style", str(DOCKERFILE)) == ""


def in_image(names: Iterable[str]) -> set[str]:
    """Those of the checkout's files that `COPY . .` takes: the last pattern of .dockerignore that fits decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert all(line.startswith("!") and "**" not in line for line in lines[1:])  # a list of what is taken, and simple
    parts = [line[1:].split("/") for line in lines[1:]]

    def is_taken(name: str) -> bool:
        given = name.split("/")
        return any(len(p) == len(given) and all(map(fnmatch.fnmatchcase, given, p)) for p in parts)

    return set(filter(is_taken, names))


def test_the_image_has_the_projects_own_files_and_none_of_the_users() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: nothing says which files are the project's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(filter(None, listed.split("\0")))
    packages = ("core", "datasets_prep", "eval", "model_card", "pipeline")
    needed = {name for name in known if name.split("/")[0] in packages}
    needed |= {"LICENSE", "README.md", "constraints.txt", "pyproject.toml"}
    assert in_image(known) == needed
    folders = {"", *(f"{parent}/" for name in known for parent in map(str, Path(name).parents) if parent != ".")}
    assert {"pipeline/recipes/", "pipeline/recipes/collections/", "docs/"} <= folders
    yours = [
        *("rows.jsonl", "forget.csv", "forget", "rows.json", "key.pem", "id_ed25519", ".env", "notes.md", "x.txt"),
        *("rows.parquet", "trust.yaml", "acme.yaml", "model.safetensors", "runs/demo/data/forget.jsonl", ".git/config"),
    ]
    assert in_image(folder + name for folder in folders for name in yours) == set()


def test_the_image_has_a_pinned_base_and_is_not_root() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG BASE=docker\.io/library/debian:[\w-]+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}", "python"}
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001"]
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)", text, re.MULTILINE) for name in line.split()[:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    health = json.loads(re.findall(r"HEALTHCHECK .* CMD (\[.*\])", text)[0])
    assert parser().parse_args(health[1:]).dry_run


@pytest.mark.parametrize(
    ("built_from", "git"),
    [
        ("", {"commit": None, "dirty": False}),
        ("a" * 40, {"commit": "a" * 40, "dirty": False}),
        ("a" * 40 + "-dirty", {"commit": "a" * 40, "dirty": True}),
    ],
)
def test_without_git_the_commit_is_the_images(
    built_from: str, git: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv(machine.COMMIT, built_from)
    assert machine.provenance()["git"] == git
