"""The loopback Hub answers whatever is sent to it: no 500, no connection dropped, nothing read or kept without end."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import base64
import gzip
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.localhub import bodies, connections
from pipeline.localhub.card_metadata import card_metadata, check_card
from pipeline.localhub.server import LocalHub
from tests.conftest import Call
from tests.localhub import REPO, add, api, as_user, head, hub, raw, repo  # noqa: F401

BOMB = (
    "---\na0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}*a{n - 1}]\n" for n in range(1, 12)) + "---\n"
)


@pytest.fixture(scope="module")
def victim(hub: LocalHub) -> LocalHub:
    """A Hub with a public repository that strangers may ask for, and that stays as it is."""
    owner = HfApi(endpoint=hub.endpoint, token=hub.token)
    owner.create_repo("demo/victim")
    files = [add("a.txt", b"0123456789"), add("m.safetensors", b"0123456789")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        owner.create_commit("demo/victim", files, commit_message="x", create_pr=True)
    owner.merge_pull_request("demo/victim", 1)
    return hub


def connect(hub: LocalHub) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(hub.endpoint.rsplit(":", 1)[1])), timeout=20)


def talk(hub: LocalHub, sent: bytes, *, hang_up: bool = False) -> bytes:
    """All that the Hub answers to these bytes until it ends the connection."""
    with connect(hub) as line:
        line.sendall(sent)
        if hang_up:
            line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(65536), b""))


def ask(hub: LocalHub, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    """The status of the answer to a request, which may be as wrong as its parts."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    answer = talk(hub, "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body)
    assert answer.startswith(b"HTTP/1.1 "), f"no answer to {method} {path}: {answer[:100]!r}"
    return int(answer[9:12])


# What an earlier search found to be answered with 500, or not at all; and what is like it.
ODD = [
    *(
        "%00",
        "a%00b",
        "%0D%0AX-Evil: 1",
        "a%0Db",
        "%",
        "%zz",
        "..",
        "%2e%2e%2f",
        "main%2F..",
        "refs%2Fheads",
        "refs%2Fpr",
    ),
    *(
        "HEAD",
        "refs%2Fheads%2Fmain.lock",
        "%ED%A0%80",
        "%FF",
        "é".encode("latin-1").decode("latin-1"),
        "x" * 300,
        "0" * 40,
    ),
    *("main", "a.txt", "1", "-1", "9" * 30, "%F0%9F%8E%89", "refs%2Fpr%2F1", "a" * 900, "@%7B0%7D", "%20", "victim"),
]
BODIES = [
    *(b"", b"{}", b"[]", b"null", b"1", b"{", b"\xff\xfe", b"\0", b"[" * 999, b'{"a":' * 999, b'"' + b"\\ud800" + b'"'),
    *(json.dumps(value).encode() for value in (
        {"files": [None]}, {"files": [{"path": "a", "size": 1, "sample": "*"}]}, {"files": [{"path": 1}]},
        {"files": [{"path": "a", "size": -1, "sample": ""}]}, {"files": [{"path": "a", "size": True, "sample": ""}]},
        {"tag": "a\0b"}, {"tag": ["x"]}, {"tag": "x" * 5000}, {"tag": "main/x"}, {"startingPoint": 1},
        {"type": ["model"], "name": "x"}, {"type": {}, "name": "x"}, {"name": 1}, {"name": "x", "organization": ["y"]},
        {"name": "a\nb"}, {"name": "\ud800"}, {"gated": {}}, {"visibility": []}, {"title": "\ud800"}, {"title": 1},
        {"title": "x", "namespace": 1}, {"item": 1}, {"item": {"id": "..", "type": "model"}}, {"deletions": []},
        {"deletions": {"sha": ["../../x"]}}, {"operation": "upload", "objects": [{"oid": "..", "size": 1}]},
        {"operation": "upload", "objects": [1]}, {"operation": "download", "objects": [{"oid": "a", "size": 10**30}]},
        {"content": BOMB}, {"content": "---\n" + "[" * 3000 + "\n---\n"}, {"content": "---\na: !!bool x\n---\n"},
        {"content": "---\na: 2026-99-99\n---\n"}, {"content": "---\n? [a, b]\n: c\n---\n"},
        {"content": "---\na: .nan\n---\n"},
        {"fromRepo": "a", "toRepo": "../b"}, {"fromRepo": 1}, {"user": None}, {"status": "merged"}, {"comment": 1},
    )),
    b'{"a": NaN}', b'{"size": 1e999}', b'{"n": ' + b"9" * 5000 + b"}",
    *(b'{"key":"header","value":{"summary":"x"%s}}\n%s' % (more, op) for more, op in (
        (b',"parentCommit":1', b""), (b',"description":[1]', b""), (b"", b'{"key":["file"],"value":{"path":"a"}}'),
        (b"", b'{"key":"file","value":{"path":"a\\u0000b","content":""}}'),
        (b"", b'{"key":"file","value":{"path":"\\ud800","content":""}}'),
        (b"", b'{"key":"file","value":{"path":"a","content":"x","encoding":["base64"]}}'),
        (b"", b'{"key":"file","value":{"path":"a","content":"\xc3\xa9","encoding":"base64"}}'),
        (b"", b'{"key":"lfsFile","value":{"path":"a","oid":"%s","size":-5}}' % (b"0" * 64)),
        (b"", b'{"key":"deletedFile","value":{"path":"a\\r\\nb"}}'),
    )),
]  # fmt: skip
PATHS = [
    *("/{}", "/demo/{}", "/demo/victim/tree/{}", "/demo/victim/commits/{}", "/demo/victim/raw/main/{}"),
    "/login?key={}",
    *("/", "/api/{}", "/api/models/{}", "/api/models/demo/victim", "/api/models/demo/{}", "/api/datasets/{}/victim"),
    *(f"/api/models/demo/victim/{end}" for end in (
        *("revision/{}", "tree/{}", "tree/main/{}", "paths-info/{}", "commits/{}", "refs", "preupload/{}", "commit/{}"),
        *("branch/{}", "tag/{}", "super-squash/{}", "settings", "lfs-files", "lfs-files/batch", "discussions"),
        *("discussions/{}", "discussions/{}/comment", "discussions/1/comment/{}/edit", "discussions/{}/merge"),
        *("discussions/1/{}", "user-access-request/{}", "user-access-request/handle", "auth-check/{}", "{}"),
    )),
    *(f"/demo/victim/resolve/{end}" for end in ("{}/a.txt", "main/{}")),
    *("/demo/victim.git/info/lfs/{}", "/demo/victim.git/info/lfs/objects/batch", "/demo/victim.git/info/lfs/upload/{}"),
    *("/demo/victim.git/info/refs?service={}", "/demo/victim/git-upload-pack", "/{}/{}/git-upload-pack"),
    *("/api/repos/create", "/api/repos/move", "/api/validate-yaml", "/api/collections", "/api/collections/demo/{}"),
    *("/api/models?cursor={}", "/api/models/demo/victim/tree/main?cursor={}&limit={}&recursive={}&expand={}"),
    *("/api/models/demo/victim/discussions?p={}", "/demo/victim.git/info/lfs/upload/a?size={}&expires={}&signature={}"),
]  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW")
plain = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=30)
text = st.one_of(st.sampled_from(ODD), plain)
content = st.one_of(st.sampled_from(BODIES), st.binary(max_size=200))
often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@often
@given(st.sampled_from(METHODS), st.sampled_from(PATHS), text, content, st.booleans())
@example("POST", "/api/models/demo/victim/preupload/{}", "main", BODIES[12], True)
@example("DELETE", "/api/models/demo/victim/tag/{}", "a%0Db", b"", True)
@example("GET", "/demo/victim/resolve/main/{}", "%00", b"", False)
@example("POST", "/api/models/demo/victim/branch/{}", "main%2Fx", b"{}", True)
def test_malformed_requests_are_answered(
    victim: LocalHub, method: str, path: str, odd: str, body: bytes, known: bool
) -> None:
    headers = {"Authorization": f"Bearer {victim.token}"} if known else {}
    assert ask(victim, method, path.replace("{}", odd), body, **headers) < 500


@pytest.mark.parametrize("odd", ["%00", "%20", "a%0D%0Ab", "%FF"])
def test_odd_words_are_answered_by_every_route(victim: LocalHub, odd: str) -> None:
    for path in (path for path in PATHS if "{}" in path):
        assert ask(victim, "GET", path.replace("{}", odd), Authorization=f"Bearer {victim.token}") < 500, path


def test_odd_bodies_are_answered_by_every_route(victim: LocalHub) -> None:
    known = {"authorization": f"Bearer {victim.token}"}
    for number, path in enumerate(PATHS):
        url = victim.endpoint + path.replace("{}", "main")
        for body in BODIES[number % 9 :: 9]:
            for method in ("POST", "PUT", "PATCH"):
                answer = get_session().request(method, url, content=body, headers=known)
                assert answer.status_code < 500, (method, path, body[:200])
                if answer.status_code != 405:
                    break


@often
@given(
    st.sampled_from(["authorization", "range", "cookie", "host", "content-type", "accept-encoding"]),
    st.text(max_size=40),
)
@example("range", "bytes=" + "9" * 5000 + "-")
@example("range", "bytes=-")
@example("range", "bytes=5-2,7-")
@example("range", "bytes=١-٢")
@example("authorization", "Bearer \u00e9")
@example("authorization", "Basic ////")
@example("host", "[")
def test_odd_headers_are_answered(victim: LocalHub, name: str, value: str) -> None:
    for path in (*(f"/demo/victim/resolve/main/{name}" for name in ("a.txt", "m.safetensors")), "/api/whoami-v2"):
        assert ask(victim, "GET", path, **{name: value}) < 500


@often
@given(st.binary(max_size=300))
@example(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n")
@example(b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n")
@example(b"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
def test_what_is_not_http_is_answered_or_ended(victim: LocalHub, sent: bytes) -> None:
    answer = talk(victim, sent + b"\r\n\r\n", hang_up=True)
    assert answer == b"" or int(answer[9:12]) < 500
    assert ask(victim, "GET", "/api/models/demo/victim") == 200


def test_an_error_message_is_one_header(victim: LocalHub) -> None:
    answer = talk(victim, b"GET /api/models/demo/victim/revision/a%0D%0AX-Evil:%201%00b%C3%A9 HTTP/1.1\r\nHost: x\r\n"
                          b"Connection: close\r\n\r\n")  # fmt: skip
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"\r\nX-Evil" not in head
    assert json.loads(body)["error"].endswith("a\r\nX-Evil: 1\0bé")


@pytest.mark.parametrize("length", ["content-length: 400000000", "transfer-encoding: chunked"])
def test_a_body_is_not_read_before_its_sender_is_known(victim: LocalHub, length: str) -> None:
    with connect(victim) as line:
        line.sendall(f"POST /api/models/demo/victim/commit/main HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        assert line.recv(12) == b"HTTP/1.1 401"  # not a byte of the body was sent
        line.settimeout(5)
        sent = 0
        with pytest.raises(OSError):  # noqa: PT012  and it does not take all of what nobody will read
            while sent < 400_000_000:
                sent += line.send(b"x" * (1 << 20))
        assert sent < 2 * connections.MAX_UNREAD + (32 << 20)


def test_bodies_are_bounded(victim: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"Authorization": f"Bearer {victim.token}"}
    url = f"{victim.endpoint}/api/repos/create"
    assert get_session().post(url, content=b"x" * (9 << 20), headers=known).status_code == 413
    chunked = b"".join(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n" for _ in range(9)) + b"0\r\n\r\n"
    header = f"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {victim.token}\r\n"
    with connect(victim) as line:
        line.sendall(header.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
        assert line.recv(12) == b"HTTP/1.1 413"
    with connect(victim) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * connections.MAX_HEAD)
        assert line.recv(12) == b"HTTP/1.1 400"
    bomb = gzip.compress(b"0" * (64 << 20))
    assert ask(victim, "POST", "/demo/victim/git-upload-pack", bomb, content_encoding="gzip") == 413
    monkeypatch.setattr(bodies, "PATIENCE", 0.3)
    with connect(victim) as line:
        line.sendall(header.encode() + b"Content-Length: 10\r\n\r\n12345")
        assert line.recv(12) == b"HTTP/1.1 408"


def test_half_open_connections_end_and_leave_room(victim: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    lines = [connect(victim) for _ in range(60)]
    for line in lines[::2]:
        line.sendall(b"GET / HTTP/1.1\r\nHo")
    assert ask(victim, "GET", "/api/models/demo/victim") == 200
    started = time.monotonic()
    for line in lines:
        try:
            while line.recv(100):
                pass
        except ConnectionResetError:
            pass
        line.close()
    assert time.monotonic() - started < 5


def test_a_head_that_drips_gets_no_more_time(victim: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    started = time.monotonic()
    with connect(victim) as line, pytest.raises(OSError):  # noqa: PT012
        for _ in range(100):
            line.sendall(b"G")
            time.sleep(0.05)
    assert time.monotonic() - started < 3


def test_an_alias_bomb_is_refused_at_once(api: HfApi, repo: str) -> None:
    started = time.monotonic()
    errors, _ = check_card(BOMB)
    assert "anchors and aliases are not allowed" in errors[0]
    assert card_metadata(BOMB) == {}
    stranger = HfApi(endpoint=api.endpoint, token=False)
    assert raw(stranger, "POST", "/api/validate-yaml", json={"content": BOMB}).status_code == 400
    with pytest.raises(ValueError, match="aliases are not allowed"):
        api.create_commit(repo, [add("README.md", BOMB.encode())], commit_message="x")
    assert "at most" in check_card("---\n" + "a: 1\n" * 50_000 + "---\n")[0][0]
    assert time.monotonic() - started < 5


@often
@given(st.text(max_size=200))
@example("a: !!int ''")
@example("a: !!timestamp x")
@example("a: 1:1:1:1:1:1:1:1:1:1:1:1:1:1")
@example("a: 0x" + "f" * 5000)
@example("a: " + "9" * 5000)
@example('a: "\\ud800"')
@example("a: 2026-01-01\nb: .inf\n1: 2\n2026-01-01: {x}")
@example("!!python/object:os.system {}")
@example("a: !!set {b}\nc: !!binary aGk=")
def test_any_metadata_is_answered_as_json(block: str) -> None:
    json.dumps(card_metadata(f"---\n{block}\n---\n"), allow_nan=False).encode()
    check_card(f"---\n{block}\n---\n")


def test_requests_are_counted(tmp_path: Path) -> None:
    with LocalHub(tmp_path, rate=5) as limited:
        codes = [get_session().get(f"{limited.endpoint}/api/models") for _ in range(7)]
        assert [answer.status_code for answer in codes] == [200] * 5 + [429] * 2
        assert codes[0].headers["ratelimit"].startswith('"api";r=4;t=')
        with pytest.raises(HfHubHTTPError, match=r"\(0/5 requests remaining in current 300s window\)"):
            HfApi(endpoint=limited.endpoint, token=False).auth_check("a/b")
        assert HfApi(endpoint=limited.endpoint, token=limited.token).whoami()["name"] == "local"  # has its own count


def test_the_command_counts_them_if_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    answers: list[int] = []

    def ask(hub: LocalHub) -> None:
        with hub:
            answers.extend(get_session().get(f"{hub.endpoint}/api/models").status_code for _ in range(3))

    monkeypatch.setattr(LocalHub, "run", ask)
    (tmp_path / "hub" / "models").mkdir(parents=True)
    words = ("hub", "--store", str(tmp_path), "--rate")
    assert (call(*words, "2").returncode, answers) == (0, [200, 200, 429])
    refused = call(*words, "0")
    assert (refused.returncode, "--rate 0: give how many" in refused.stderr) == (2, True)


@pytest.fixture
def cloned(api: HfApi, repo: str, tmp_path: Path) -> list[str]:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    api.create_commit(repo, [add("a/b.txt", b"1"), add("m.safetensors", b"22")], commit_message="Release")
    api.create_tag(repo, tag="v1.0.0")
    return ["git", "-c", "credential.helper=", "clone", "-q"]


def test_git_clone(api: HfApi, hub: LocalHub, repo: str, cloned: list[str], tmp_path: Path) -> None:
    def clone(url: str, to: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "GIT_TERMINAL_PROMPT": "0",
            "PATH": "/usr/bin:/bin",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "HOME": str(tmp_path),
        }
        return subprocess.run(
            [*cloned, url, str(tmp_path / to)], env=environment, capture_output=True, text=True, check=False
        )

    host = hub.endpoint.removeprefix("http://")
    private = clone(f"{hub.endpoint}/{repo}", "private")
    assert private.returncode != 0
    assert "could not read Username" in private.stderr
    done = clone(f"http://user:{hub.token}@{host}/{repo}", "known")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "known" / "a" / "b.txt").read_bytes() == b"1"
    assert b"oid sha256:" in (tmp_path / "known" / "m.safetensors").read_bytes()
    log = subprocess.run(
        ["git", "log", "--format=%H %D"], cwd=tmp_path / "known", capture_output=True, text=True, check=True
    )
    assert log.stdout.startswith(head(api))
    assert "v1.0.0" in log.stdout
    api.update_repo_settings(repo, private=False)
    assert clone(f"{hub.endpoint}/{repo}.git", "public").returncode == 0
    api.update_repo_settings(repo, gated="manual")
    assert clone(f"{hub.endpoint}/{repo}.git", "gated").returncode != 0


@pytest.mark.parametrize("part", ["..", ".", "..%2F..%2Ftokens", "%2e%2e%2ftokens", "a%2Fb", "a%5Cb", "token%00"])
def test_a_job_is_read_from_the_folder_of_jobs_alone(hub: LocalHub, part: str) -> None:
    (hub.folder / "secret.json").write_text("{}")
    token = {"authorization": f"Bearer {hub.token}"}
    for method, path in (("GET", f"demo/{part}"), ("POST", f"demo/{part}/cancel"), ("GET", part), ("POST", part)):
        assert ask(hub, method, f"/api/jobs/{path}", **token) in (400, 403, 404, 405), (method, path)
    volume = {"type": "bucket", "source": f"demo/{unquote(part)}", "mountPath": "/data"}
    spec = {"command": ["true"], "dockerImage": "x", "volumes": [volume]}
    assert ask(hub, "POST", "/api/jobs/demo", json.dumps(spec).encode(), **token) == 400
    assert sorted(path.name for path in (hub.folder / "buckets").rglob("*")) == []
    near = [*hub.folder.parent.iterdir(), *hub.folder.rglob("*")]
    assert not [path for path in near if path.name in ("b", "x.json", "..json")]


def test_git_lfs_fetches_large_files(api: HfApi, hub: LocalHub, repo: str) -> None:
    api.create_commit(repo, [add("m.safetensors", b"weights")], commit_message="x")
    oid = next(iter(api.list_lfs_files(repo))).file_oid
    batch = {
        "operation": "download",
        "transfers": ["basic"],
        "objects": [{"oid": oid, "size": 7}, {"oid": "0" * 64, "size": 1}],
    }
    path = f"/{repo}.git/info/lfs/objects/batch"
    here, missing = raw(api, "POST", path, json=batch).json()["objects"]
    assert get_session().get(here["actions"]["download"]["href"]).content == b"weights"
    assert missing["error"]["code"] == 404
    stranger = HfApi(endpoint=hub.endpoint, token=False)
    assert raw(stranger, "POST", path, json=batch).status_code == 401
    basic = base64.b64encode(f"x:{hub.token}".encode()).decode()
    answer = get_session().post(hub.endpoint + path, json=batch, headers={"authorization": f"Basic {basic}"})
    assert answer.status_code == 200


def test_damage_of_the_disk_is_named(hub: LocalHub, api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("a.txt", b"0123456789" * 9)], commit_message="x")
    (file,) = (f for f in api.list_repo_tree(repo) if f.path == "a.txt")
    blob = file.blob_id
    damaged = hub.folder / "models" / f"{repo}.git" / "objects" / blob[:2] / blob[2:]
    damaged.chmod(0o600)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    answer = raw(api, "GET", f"/{repo}/resolve/main/a.txt")
    assert answer.status_code == 500
    assert "is damaged on its disk" in answer.json()["error"]
