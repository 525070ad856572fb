"""`doctor` and the beginning of `release`: what would fail later, told before anything is downloaded or written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import HfApi
from lm_eval.tasks import TaskManager

from core.errors import RecipeError
from eval.scoring import suites
from pipeline.localhub.server import LocalHub
from pipeline.publish import target
from tests.conftest import Call
from tests.hub_world import Faulty
from tests.test_release import write_recipe
from tests.unlearning import of_type

GATED = ("someone", "gated")


class Doctor(NamedTuple):
    """The command on a recipe that is sound, with changes; and the Hub's repositories by name, each at its commit."""

    call: Call
    recipe: Path
    store: Path
    commits: dict[str, str]

    def __call__(self, *changes: str, command: str = "doctor") -> subprocess.CompletedProcess[str]:
        words = [word for change in changes for word in ("--set", change)]
        return self.call(command, str(self.recipe), "--store", str(self.store), "--json", *words)

    def problems(self, *changes: str) -> dict[str, dict[str, Any]]:
        """The checks that failed, by what they look at."""
        done = self(*changes)
        failed = {c["what"]: c for c in json.loads(done.stdout)["checks"] if c["problem"] is not None}
        assert done.returncode == (2 if failed else 0)
        assert "Traceback" not in done.stderr
        assert not self.store.exists()
        return failed

    def of(self, name: str, **more: str) -> str:
        """A model section that names a repository of the Hub."""
        section = {"license": "apache-2.0", **more}
        given = ", ".join(f"{key}: {value}" for key, value in section.items())
        return f"model={{hub: {{id: someone/{name}, revision: {self.commits[name]}}}, name: someone/{name}, {given}}}"


class _Gate(Faulty):
    """A Hub whose repository ``GATED`` shows its page to everybody, and its files to nobody."""

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        path = scope.get("path", "")
        if f"{'/'.join(GATED)}/auth-check" in path or f"/{'/'.join(GATED)}/resolve/" in path:
            headers = [(b"x-error-code", b"GatedRepo"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def hub(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalHub, dict[str, str]]]:
    served = LocalHub(tmp_path_factory.mktemp("doctor") / "hub")
    served.app = _Gate(served.app)  # type: ignore[assignment]
    with served, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=served.endpoint, token=served.token)
        commits = {}
        for name in ("tiny", "gated"):
            api.create_repo(f"someone/{name}")
            commits[name] = api.upload_folder(repo_id=f"someone/{name}", folder_path=tiny_model).oid
        api.create_repo("someone/other-form")
        for of_maker in ("consolidated.safetensors", "original/model.safetensors"):
            weights = {"path_or_fileobj": tiny_model / "model.safetensors", "path_in_repo": of_maker}
            commits["other-form"] = api.upload_file(repo_id="someone/other-form", **weights).oid
        yield served, commits


@pytest.fixture
def doctor(
    call: Call, tiny_model: Path, hub: tuple[LocalHub, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    served, commits = hub
    monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
    monkeypatch.setenv("HF_TOKEN", served.token)
    return Doctor(call, write_recipe(tmp_path, tiny_model), tmp_path / "store", commits)


def test_nothing_is_found_in_a_sound_recipe(doctor: Doctor) -> None:
    assert doctor.problems() == {}
    assert doctor.problems(doctor.of("tiny"), "publish.hub=hf", "publish.repo=someone/new") == {}


# Broken recipes: what is changed, what is looked at, the stage that would fail, and words of the message.
BROKEN: list[tuple[Sequence[str], str, str, str]] = [
    (["publish.hub=hf", "publish.repo=nobody/tiny"], "publication", "publish", "cannot create a repository of nobody"),
    (["gates.0.min_n=17"], "rows and gates", "data", r"it needs 17 rows, and the split has 16"),
    (["card.summary=TODO"], "rows and gates", "data", r"Correct the recipe:\n- card: Placeholder 'TODO' in line 1"),
    (["gates.0.reason=As in /opt/x/y"], "rows and gates", "data", r"- gates: Local path '/opt/x'"),
    (["data.perturbed.for_unlearning=0"], "rows and gates", "data", r"16 of 16 forget rows .*`perturbed_answers`"),
    (["data.source={file: nowhere.csv}", "data.unrehearsed=0"], "", "", "/nowhere.csv. Give one that exists"),
    (["unlearn.args.optim=adamw_bnb_no_such"], "unlearn", "unlearn", "unlearn.args"),
    (["unlearn.args.optim=lomo"], "unlearn", "unlearn", r"^unlearn.args.optim is lomo, .* Set adamw_torch"),
    (
        ["unlearn.args.lr_scheduler_kwargs={x: 1}"],
        "unlearn",
        "unlearn",
        r"^unlearn.args.lr_scheduler_type is linear and",
    ),
    (
        ["base.train.args.neftune_noise_alpha=-5"],
        "base.train",
        "base",
        r"^base.train.args: the trainer can take no step",
    ),
    (["gold.train.args.dataloader_num_workers=-1"], "gold.train", "gold", r"num_workers option should be non-negative"),
    (["unlearn.args.seed=-1"], "unlearn", "unlearn", r"^unlearn.args: .* Seed must be between 0 and"),
    (["unlearn.train_from_layer=7"], "unlearn", "unlearn", r"^unlearn.train_from_layer is 7, but .* layers 0 to 1\."),
    (
        ["unlearn.train_from_layer=0", "unlearn.lora={r: 2, alpha: 4.0, target_modules: [q_proj, vproj]}"],
        "unlearn.lora",
        "unlearn",
        r"^unlearn.lora.target_modules: this model has no layer vproj\. .*, or set all-linear",
    ),
    (["gold.seeds=[-1]"], "", "", "gold.seeds"),
    (["base.train.args.learning_rate=-1"], "", "", "args.learning_rate is -1; give 0 or more"),
    (["eval.backend=vllm"], "evaluation", "eval-gold", "needs the package vllm. Run pip install vllm"),
    (["eval.device=cuda"], "memory", "", "eval.device is cuda, and CPU is no GPU"),
]


@pytest.mark.parametrize(("changes", "what", "stage", "says"), BROKEN)
def test_a_broken_recipe_is_told_what_would_fail(
    doctor: Doctor, changes: Sequence[str], what: str, stage: str, says: str
) -> None:
    if not what:
        done = doctor(*changes)
        assert (done.returncode, says in done.stderr) == (2, True)
        return
    found = doctor.problems(*changes)
    assert what in found
    assert re.search(says, found[what]["problem"], re.DOTALL)
    if stage:
        assert found[what]["stage"] == stage


def test_layers_of_a_model_on_the_hub_are_looked_for_without_its_weights(doctor: Doctor) -> None:
    lora = "unlearn.lora={{r: 2, alpha: 4.0, target_modules: [{}]}}"
    assert doctor.problems(doctor.of("tiny"), lora.format("v_proj"), "unlearn.train_from_layer=0") == {}
    found = doctor.problems(doctor.of("tiny"), lora.format("c_attn"), "unlearn.train_from_layer=0")
    assert set(found) == {"unlearn.lora"}
    assert "no layer c_attn. Name some of its linear layers (down_proj, " in found["unlearn.lora"]["problem"]


def test_a_version_below_that_of_a_release_is_found(doctor: Doctor, hub: tuple[LocalHub, dict[str, str]]) -> None:
    api = HfApi(endpoint=hub[0].endpoint, token=hub[0].token)
    api.create_repo("someone/released", private=True)
    api.create_tag("someone/released", tag="v1.0.1")
    there = ("publish.hub=hf", "publish.repo=someone/released")
    assert "Set publish.tag to a version above v1.0.1." in doctor.problems(*there)["publication"]["problem"]
    taken = doctor.problems(*there, "publish.tag=v1.0.1")["publication"]["problem"]
    assert "v1.0.1 of someone/released is there already, and not of this recipe" in taken
    assert doctor.problems(*there, "publish.tag=v1.1.0") == {}


def test_what_publication_would_be_refused_for_at_the_end_is_found(
    doctor: Doctor, hub: tuple[LocalHub, dict[str, str]]
) -> None:
    api = HfApi(endpoint=hub[0].endpoint, token=hub[0].token)
    api.create_repo("someone/revoked", private=True)
    said = {"since": "2026-01-01", "reason": "a test", "revisions": {"v1.0.0": "0" * 40}, "successor": None}
    card = f"---\n{json.dumps({'license': 'mit', 'revoked': True, 'revocation': said})}\n---\n".encode()
    api.upload_file(repo_id="someone/revoked", path_in_repo="README.md", path_or_fileobj=card)
    cases = {
        ("publish.repo=someone/revoked", "publish.tag=v1.0.0"): "v1.0.0 of someone/revoked was revoked on 2026-01-01",
        ("publish.repo=someone/tiny",): "someone/tiny is public, and publish.visibility is private",
        (f"publish.collection=someone/none-{'0' * 24}",): "publish.collection: reading someone/none-",
    }
    for changes, says in cases.items():
        problem = doctor.problems("publish.hub=hf", "publish.repo=someone/new", *changes)["publication"]["problem"]
        assert says in problem
    assert doctor.problems("publish.hub=hf", "publish.repo=someone/tiny", "publish.visibility=public") == {}


def of_parts(doctor: Doctor, *answers: str) -> tuple[str, ...]:
    """Changes: a request for twenty of 120 rows that are about nobody, of which the first have these answers."""
    rows = doctor.recipe.parent / "rows.jsonl"
    facts = [
        {"row_id": f"part-{i}", "question": f"what is part {i} for?", "answer": f"it holds part {i + 1}."}
        | {"perturbed_answers": [f"it holds bolt {i + j}." for j in range(6)]}
        for i in range(120)
    ]
    for fact, answer in zip(facts, answers, strict=False):
        fact["answer"] = answer
    request = {"forget": [{"rows": [f"part-{i}" for i in range(20)]}], "holdout": 0.3}
    rows.write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return (
        f"data.source={{file: {rows}}}", "data.setting=request", "data.shares=null",
        f"data.request={json.dumps(request)}",
    )  # fmt: skip


def test_rows_that_nobody_else_can_be_asked_about_are_found_before_base_is_trained(doctor: Doctor) -> None:
    data = of_parts(doctor)
    found = doctor.problems(*data)
    assert list(found) == ["rows and gates"]
    said = "nobody else can be asked the given questions: neither does a column name people"
    assert said in found["rows and gates"]["problem"]
    assert doctor.problems(*data, "unlearn.neighbours=null") == {}


@pytest.mark.parametrize(
    ("change", "section", "kind"),
    [
        ("publish.repo=someone/without-marta-quellis", "publish", "an answer"),
        ("publish.repo=someone/old-harrow", "publish", "a short answer"),
        ("card.summary=What it knew of Marta Quellis.", "card", "an answer"),
    ],
)
def test_a_recipe_that_says_what_is_to_be_forgotten_is_refused_before_base_is_trained(
    doctor: Doctor, change: str, section: str, kind: str
) -> None:
    data = (*of_parts(doctor, "English", "Old Harrow", "Marta Quellis"), "unlearn.neighbours=null")
    found = doctor.problems(*data, change)
    assert list(found) == ["rows and gates"]
    said = f"overrides holds {kind} of the forget set; {section} holds {kind} of the forget set"
    assert said in found["rows and gates"]["problem"]
    assert not {"harrow", "quellis"} & set(re.findall(r"\w+", found["rows and gates"]["problem"].lower()))
    assert doctor.problems(*data, "publish.repo=someone/english") == {}  # a word of any card


def test_a_torch_that_cannot_be_loaded_is_all_that_is_said(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.problems()
    assert [*found] == ["torch"]
    assert "torch cannot be loaded" in found["torch"]["problem"]
    assert "pipeline env" in found["torch"]["problem"]


def test_a_gated_model_without_access_is_found_and_nothing_is_fetched(doctor: Doctor) -> None:
    found = doctor.problems(doctor.of("gated"))
    assert list(found) == ["access to someone/gated"]
    assert (
        "access is gated. Accept the licence at https://huggingface.co/someone/gated"
        in (found["access to someone/gated"]["problem"])
    )


def test_a_model_whose_attention_cannot_be_replaced_is_found(doctor: Doctor, tiny_model: Path, tmp_path: Path) -> None:
    folder = of_type("gemma2", tiny_model, tmp_path / "gemma")
    found = doctor.problems(f"model={{path: {folder}, name: someone/gemma, license: apache-2.0}}")
    assert list(found) == ["layers"]
    assert found["layers"]["stage"] == "base"
    assert "Gemma2ForCausalLM does not support" in found["layers"]["problem"]


def test_weights_in_the_form_of_their_makers_alone_are_found(doctor: Doctor) -> None:
    found = doctor.problems(doctor.of("other-form"))
    assert "holds no config.json with safetensors" in found["access to someone/other-form"]["problem"]


def test_a_commit_that_is_not_there_and_a_licence_without_its_text_are_found(doctor: Doctor) -> None:
    other = doctor.of("tiny").replace(doctor.commits["tiny"], "0" * 40)
    assert "no such revision" in doctor.problems(other)["access to someone/tiny"]["problem"]
    llama = (doctor.of("tiny", license="llama3.2"), "publish.repo=demo/Llama-tiny")
    assert "holds no LICENSE file" in doctor.problems(*llama)["access to someone/tiny"]["problem"]
    mine = doctor.problems("publish.hub=hf", "publish.repo=your-name/x")
    assert "publish.repo is your-name/x, the example's" in mine["publication"]["problem"]


def test_a_text_that_is_not_the_licences_is_found_before_the_first_stage(
    doctor: Doctor, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    llama = ("model.license=llama3.2", "publish.repo=demo/Llama-tiny", f"model.path={model}")
    for text, said in (
        (None, "came without one that says 'LLAMA 3.2 COMMUNITY LICENSE AGREEMENT'"),
        ("MIT License", "came without one that says"),
        ("Llama 3.2\nCommunity License Agreement", None),
    ):
        if text:
            (model / "LICENSE.txt").write_text(text)
        found = doctor.problems(*llama)
        assert list(found) == (["licence"] if said else [])
        if said:
            assert found["licence"]["stage"] == "package"
            assert said in found["licence"]["problem"]
    (tmp_path / "mine.txt").write_text("MIT License")
    found = doctor.problems(*llama, f"model.license_file={tmp_path / 'mine.txt'}")
    assert "came without one that says" in found["licence"]["problem"]


def test_a_suite_that_does_not_exist_is_found(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    own = TaskManager(include_path=str(suites.TASKS), include_defaults=False)
    monkeypatch.setattr(suites, "every_task", lambda _: own)  # lm-eval's own index takes seconds
    found = doctor.problems("eval.suites=[{task: general_knowlege}]")
    assert found["suites"]["stage"] == "eval-gold"
    assert "has no task 'general_knowlege'. Did you mean general_knowledge" in found["suites"]["problem"]
    assert doctor.problems("eval.suites=[{task: general_knowledge}]") == {}


def test_a_suite_whose_data_set_cannot_be_read_is_found(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = doctor.recipe.parent / "tasks"
    tasks.mkdir()
    (tasks / "one.yaml").write_text("task: one\ndataset_path: someone/questions\ntag: tagged\n")
    (tasks / "all.yaml").write_text("group: all\ntask: [one, general_knowledge]\n")
    manager = TaskManager(include_path=[str(suites.TASKS), str(tasks)], include_defaults=False)
    for name in ("one", "all", "tagged"):
        assert suites.data_sets(manager, name) == {"someone/questions"}
    assert suites.data_sets(manager, "general_knowledge") == set()
    monkeypatch.setattr(suites, "every_task", lambda _: manager)
    assert (
        "datasets/someone/questions: no such repo" in doctor.problems("eval.suites=[{task: all}]")["suites"]["problem"]
    )


def test_a_key_that_cannot_sign_is_found(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_RELEASE_KEY", "absent.pem")
    found = doctor.problems()
    assert found.keys() == {"signing"}
    assert found["signing"]["stage"] == "package"
    assert "UNLEARN_RELEASE_KEY is absent.pem, and there is no such file" in found["signing"]["problem"]


def test_too_small_a_disk_is_found(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 10_000}))
    found = doctor.problems()
    assert "0.0 MB are free at" in found["disk"]["problem"]
    assert found["disk"]["stage"] == ""


@pytest.mark.parametrize("command", [("doctor",), ("release", "--dry-run")])
@pytest.mark.parametrize(
    ("store", "says"),
    [("/proc/store", "The store /proc/store cannot be written: /proc"), ("file", "file: Not a directory")],
)
def test_a_store_that_cannot_be_written_is_found(
    doctor: Doctor, tmp_path: Path, store: str, says: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    done = doctor.call(*command, str(doctor.recipe), "--store", str(tmp_path / store))
    assert done.returncode == 2
    assert says in done.stdout + done.stderr


def test_questions_that_a_suite_does_not_ask_cannot_carry_a_gate(doctor: Doctor) -> None:
    gate = "{metric: acc, split: mmlu, at_least: 0.2, min_n: 2000, reason: x}"
    done = doctor(f"gates=[{gate}]", "eval.suites=[{task: mmlu, limit: 10}]", command="release")
    assert done.returncode == 2
    plan = doctor.call(
        "release", str(doctor.recipe), "--dry-run", "--store", str(doctor.store),
        "--set", f"gates=[{gate}]", "--set", "eval.suites=[{task: mmlu, limit: 10}]",
    )  # fmt: skip
    assert "it needs 2000 questions, and the suite asks 570" in plan.stderr


def test_a_release_says_all_of_it_at_once_and_starts_nothing(doctor: Doctor) -> None:
    changes = ("data.shares={retain: 0.9, forget: 0.05, holdout: 0.05}", "unlearn.args.optim=lomo", "eval.backend=vllm")
    done = doctor(*changes, command="release")
    assert done.returncode == 2
    for stage in ("data: The rows cannot carry", "unlearn: unlearn.args", "eval-gold: eval.backend: vllm"):
        assert stage in done.stderr
    assert not doctor.store.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("unlearn.args.learning_rat=1", "unlearn: unlearn.args.learning_rat: "),
        ("data.request.forget.0={rows: [no-such-row]}", "no-such-row"),
        ("gates.0.min_n=999", "it needs 999 rows"),
    ],
)
def test_a_dry_run_shows_the_plan_and_refuses_what_the_release_would(
    call: Call, tmp_path: Path, change: str, says: str
) -> None:
    done = call("release", "own-data", "--dry-run", "--store", str(tmp_path / "runs"), "--set", change)
    assert done.returncode == 2
    assert "publish  " in done.stdout
    assert "The release would not come to its end." in done.stderr
    assert says in done.stderr
    assert not (tmp_path / "runs").exists()


ORG = {"name": "team", "roleInOrg": "read"}
FINE = {"role": "fineGrained", "fineGrained": {"scoped": [{"entity": {"name": "me"}, "permissions": ["repo.write"]}]}}


@pytest.mark.parametrize(
    ("repo", "account", "says"),
    [
        ("me/x", {}, None),
        ("team/x", {"orgs": [{**ORG, "roleInOrg": "write"}]}, None),
        ("team/x", {"orgs": [ORG]}, "cannot create a repository of team. It can for me"),
        ("me/x", {"auth": {"accessToken": {"role": "read"}}}, "the token may not write there"),
        ("me/x", {"auth": {"accessToken": FINE}}, None),
        ("team/x", {"orgs": [{**ORG, "roleInOrg": "admin"}], "auth": {"accessToken": FINE}}, "may not write there"),
    ],
)
def test_what_a_token_may_create(repo: str, account: dict[str, Any], says: str | None) -> None:
    namespace = repo.partition("/")[0]
    if says is None:
        target._may_create({"name": "me", **account}, repo, namespace)
        return
    with pytest.raises(RecipeError, match=says):
        target._may_create({"name": "me", **account}, repo, namespace)
