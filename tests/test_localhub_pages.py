"""The Hub's pages: who sees what, and that nothing which somebody wrote becomes more than text on them."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import httpx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.localhub.pages.card import ATTRIBUTES, TAGS, card_html, revocation
from pipeline.localhub.pages.site import POLICY
from pipeline.localhub.server import LocalHub
from pipeline.release_checks import release_checks
from tests.localhub import REPO, add, api, as_user, hub, repo  # noqa: F401
from tests.publishing import REPO as RELEASE
from tests.publishing import build, make_inputs, write_card

PAGES = ("", "/tree/main", "/commits/main", "/versions")
HOSTILE = [
    *("<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'><svg/onload=alert(1)>", "</title><h1>x</h1>"),
    *("{{ 7 * 7 }}", "{% include 'x' %}", "javascript:alert(1)", "[x](javascript:alert(1))", "![x](http://evil/x.png)"),
    *("<a href='jav&#x09;ascript:alert(1)'>x</a>", "<iframe src='//evil'></iframe>", "<style>*{display:none}</style>"),
    *("<base href='//evil/'>", "<form action='//evil'><input name=a>", "<math><mi xlink:href='javascript:x'>", "<!--"),
    *("<img src='//evil/x.png'>", "<img src=x onerror=alert`1`>", "<b style='position:fixed'>x</b>", "]]><x>"),
    *("&lt;b&gt;", "<a href='/login?key=x'>x</a>", "\u202e"),
    *("<meta http-equiv=refresh content='0;url=//evil'>", "<link rel=stylesheet href=//evil>", "<a href=//evil>x</a>"),
    *("<table><td background=//evil>", "<svg><script>alert(1)</script></svg>", "<details ontoggle=alert(1) open>"),
    *("[x](data:text/html,<script>alert(1)</script>)", "<noscript><p title='</noscript><img src=x onerror=1>'>"),
]  # fmt: skip


class Seen(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def injected(page: str, own: set[str]) -> list[object]:
    """What a page holds that could run, load or send something elsewhere, or that is no element of ``own``."""
    wrong: list[object] = []
    for tag, attributes in Seen(page).elements:
        wrong += [
            (tag, name) for name in attributes if name.startswith("on") or name in ("style", "background", "action")
        ]
        wrong += [tag] if tag not in own else []
        wrong += [tag] if tag == "link" and attributes["href"] != "/style.css" else []
        wrong += [tag] if tag == "meta" and "http-equiv" in attributes else []
        source = attributes.get("src") or ""
        wrong += [(tag, source)] if source and not source.startswith("/") else []
        wrong += [(tag, source)] if source.startswith("//") else []
        href = (attributes.get("href") or "#").lower()
        wrong += [(tag, href)] if not href.startswith(("/", "#", "http://", "https://", "mailto:")) else []
    return wrong


@contextmanager
def visit(hub: LocalHub) -> Iterator[httpx.Client]:
    """A browser that opened the link which the Hub prints."""
    with httpx.Client(base_url=hub.endpoint, follow_redirects=True, timeout=60) as client:
        assert client.get(hub.site.link()).status_code == 200
        yield client


@pytest.fixture
def owner(hub: LocalHub) -> Iterator[httpx.Client]:
    with visit(hub) as client:
        yield client


@pytest.fixture
def stranger(hub: LocalHub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hub.endpoint) as client:
        yield client


def test_a_link_lets_one_reader_in(hub: LocalHub, repo: str, stranger: httpx.Client) -> None:
    link = hub.site.link()
    first = stranger.get(link)
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert hub.token not in first.headers["set-cookie"]
    with httpx.Client(base_url=hub.endpoint) as second:
        assert second.get(link).status_code == 403
        assert second.get(f"/{repo}").status_code == 404
    assert stranger.get(f"/{repo}").status_code == 200


def test_private_repositories_are_for_the_owner(
    api: HfApi, hub: LocalHub, repo: str, owner: httpx.Client, stranger: httpx.Client
) -> None:
    api.create_commit(repo, [add("a.txt", b"1")], commit_message="x")
    paths = [*(f"/{repo}{page}" for page in PAGES), f"/{repo}/raw/main/a.txt"]
    guest = {"authorization": f"Bearer {as_user(hub, 'guest').token}"}
    for path in paths:
        assert owner.get(path).status_code == 200, path
        hidden, never = stranger.get(path), stranger.get(path.replace(repo, "demo/never-was"))
        assert (hidden.status_code, hidden.text) == (404, never.text), path
        assert stranger.get(path, headers=guest).status_code == 404
        assert stranger.get(path, headers={"authorization": f"Bearer {hub.token}"}).status_code == 200
    assert repo in owner.get("/").text
    assert repo not in stranger.get("/").text
    api.update_repo_settings(repo, private=False)
    assert repo in stranger.get("/").text


def test_addresses_that_the_client_prints_lead_somewhere(api: HfApi, repo: str, owner: httpx.Client) -> None:
    made = api.create_commit(repo, [add("a.txt", b"1")], commit_message="x", create_pr=True)
    for address in (made.pr_url, made.commit_url, api.create_repo(repo, exist_ok=True)):
        answer = owner.get(str(address))
        assert (answer.status_code, repo in answer.text) == (200, True), address
    assert "a.txt" in owner.get(str(made.pr_url)).text


def test_a_visit_changes_nothing(api: HfApi, repo: str, owner: httpx.Client) -> None:
    for path in ("/", f"/{repo}", f"/{repo}/tree/main"):
        for method in ("POST", "PUT", "DELETE"):
            assert owner.request(method, path).status_code == 405
    assert owner.delete(f"/api/models/{repo}/branch/x").status_code == 401  # a visit is no token
    assert owner.get(f"/api/models/{repo}").status_code == 401


def test_files_of_a_gated_repository_are_not_shown(api: HfApi, repo: str, stranger: httpx.Client) -> None:
    api.create_commit(repo, [add("a.txt", b"1")], commit_message="x")
    api.update_repo_settings(repo, gated="manual", private=False)
    assert "the owner decides" in stranger.get(f"/{repo}").text
    assert stranger.get(f"/{repo}/raw/main/a.txt").status_code == 403


def test_every_answer_says_what_a_browser_may_load(api: HfApi, repo: str, owner: httpx.Client) -> None:
    for path in ("/", "/style.css", "/login?key=x", "/demo/never-was", *(f"/{repo}{page}" for page in PAGES)):
        answer = owner.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_files_are_pictures_text_or_saved(api: HfApi, repo: str, owner: httpx.Client) -> None:
    page = b"<script>alert(1)</script>"
    files = [add(name, page) for name in ("a.html", "a.svg", "a.json", "LICENSE", "a.png", "m.safetensors", 'ü ".bin2')]
    api.create_commit(repo, files, commit_message="x")
    for name, kind, saved in (
        ("a.html", "application/octet-stream", True),
        ("a.svg", "application/octet-stream", True),
        ("a.json", "text/plain; charset=utf-8", False),
        ("LICENSE", "text/plain; charset=utf-8", False),
        ("a.png", "image/png", False),
        ("m.safetensors", "application/octet-stream", True),
        ('ü ".bin2', "application/octet-stream", True),
    ):
        answer = owner.get(f"/{repo}/raw/main/{quote(name)}")
        assert (answer.content, answer.headers["content-type"]) == (page, kind)
        assert answer.headers.get("content-disposition", "").startswith("attachment") is saved
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert owner.get(f"/{repo}/raw/main/never").status_code == 404


BLOCKS = ["\n\n", "| a |\n|---|\n| ", "# ", "`", "<details>", "<table>", "<pre>", "> ", "- "]
OWN = {
    *("html", "head", "meta", "title", "link", "body", "a", "header", "span", "main", "h1", "h2", "h3", "p", "code"),
    *("nav", "ul", "ol", "li", "b", "section", "dl", "div", "dt", "dd", "article"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}  # fmt: skip


def test_what_somebody_wrote_is_text_on_every_page(api: HfApi, repo: str, owner: httpx.Client) -> None:
    """As title, licence, tag, path, branch, commit message and reason of a revocation."""
    for number, text in enumerate(HOSTILE):
        said = json.dumps(text)
        metadata = f"license: other\nlanguage: [en]\ntags: [{said}]\nrevoked: true\nnew_version: {said}\n"
        card = f"---\n{metadata}revocation: {{reason: {said}, since: {said}}}\n---\n"
        path = text.replace("/", "∕").replace("\\", "")
        api.create_commit(repo, [add("README.md", card.encode()), add(f"{number}/{path}", b"1")], commit_message=text)
        ref = "".join(char for char in text if char not in " ~^:?*[\\/").replace("..", "")
        api.create_tag(repo, tag=f"{number}-{ref}")
        api.create_branch(repo, branch=f"{number}-{ref}")
        front = owner.get(f"/{repo}")
        assert front.status_code == 200
        assert text in Seen(front.text).text
        assert not injected(front.text, OWN), text
    for page, shown in (("/tree/main", path), ("/commits/main", HOSTILE[0]), ("/versions", ref)):
        answer = owner.get(f"/{repo}{page}")
        assert shown in Seen(answer.text).text
        assert not injected(answer.text, OWN)
    for ref in api.list_repo_refs(repo).branches:
        assert owner.get(f"/{repo}/tree/{quote(ref.name, safe='')}").status_code == 200


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20), st.sampled_from(BLOCKS)), max_size=8))
@example(HOSTILE)
def test_a_card_injects_nothing(parts: list[str]) -> None:
    shown = str(card_html("".join(parts), "/demo/x/raw/main"))
    assert not injected(shown, TAGS | {"div"})
    for tag, attributes in Seen(shown).elements:
        allowed = (
            ATTRIBUTES.get(tag, set())
            | {"rel", "tabindex"}
            | ({"class", "role", "aria-label"} if tag == "div" else set())
        )
        assert set(attributes) <= allowed
        assert (attributes.get("id") or "card-").startswith("card-")
    assert shown.count("<table>") == shown.count("</table></div>")


def test_a_card_is_rendered() -> None:
    text = (
        "---\nlicense: mit\n---\n# Big title\n\n[here](#big-title) ![plot](plots/a%20b.png) [file](./gate.json)\n\n"
        "| a | n |\n|---|--:|\n| x | 1 |\n\n<details><summary>More</summary>\n\n*inside*\n\n</details>\n"
    )
    shown = str(card_html(text, "/demo/x/raw/main"))
    assert '<h2 id="card-big-title">Big title</h2>' in shown
    assert 'href="#card-big-title"' in shown
    assert 'src="/demo/x/raw/main/plots/a%20b.png"' in shown
    assert 'href="/demo/x/raw/main/gate.json"' in shown
    assert '<td align="right">1</td>' in shown
    assert "<details><summary>More</summary>" in shown
    assert "<em>inside</em>" in shown
    assert "license" not in shown
    twice = str(card_html("## F1 - scores\n\n## F1 - scores\n", "/f"))  # as the Hub has them, and the lint of cards
    assert [found["id"] for _, found in Seen(twice).elements] == ["card-f1---scores", "card-f1---scores-1"]
    away = str(card_html('![far](http://x/y.png) <img src="a.png"> <img src="//x/y">', "/f"))
    assert away == '<p><em>far</em> <img src="/f/a.png" alt=""> </p>\n'


def test_a_long_card_is_cut(api: HfApi, repo: str, owner: httpx.Client) -> None:
    api.create_commit(repo, [add("README.md", b"word " * 100_000)], commit_message="x")
    started = time.monotonic()
    assert "The card is longer than what is shown" in owner.get(f"/{repo}").text
    assert time.monotonic() - started < 5


def test_a_revoked_repository_is_a_tombstone(api: HfApi, repo: str, owner: httpx.Client) -> None:
    head = api.create_commit(repo, [add("a", b"1")], commit_message="x").oid
    for tag in ("v1.0.0", "v1.1.0"):
        api.create_tag(repo, tag=tag)
    card = f"---\nrevoked: true\nnew_version: demo/next\nrevocation:\n  since: 2026-11-25\n  reason: It remembers.\n" \
           f"  revisions: {{v1.0.0: {head}}}\n---\n# Tiny was revoked\n"  # fmt: skip
    api.create_commit(repo, [add("README.md", card.encode())], commit_message="Revoke")
    shown = Seen(owner.get(f"/{repo}").text).text
    for said in (
        "Revoked: do not use this model",
        "It remembers.",
        "Since 2026-11-25",
        "Releases: v1.0.0",
        "demo/next",
    ):
        assert said in " ".join(shown.split())
    versions = Seen(owner.get(f"/{repo}/versions").text).text.split("v1.0.0")
    assert "revoked" in versions[2].split("Commit")[0]
    assert "revoked" in Seen(owner.get("/").text).text
    api.create_tag(repo, tag="revoked-v1.0.0")
    api.create_commit(repo, [add("README.md", b"# Newer\n")], commit_message="A newer release")
    later = owner.get(f"/{repo}/versions").text.split('<section class="version"')[1:]
    marked = [">revoked</span>" in section for section in later]
    assert marked == ["/tree/v1.0.0" in section for section in later]
    assert sum(marked) == 1
    assert revocation({"revoked": "yes"}) is None
    assert revocation({"revoked": True, "revocation": 1}) == {
        "reason": None,
        "since": None,
        "revisions": [],
        "successor": None,
    }


def test_releases_are_checked_as_verify_checks_them(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    inputs = make_inputs(tmp_path / "inputs", tiny_model)
    write_card(inputs, tmp_path / "evidence")
    package = build(inputs, tmp_path / "package") / "hub"
    files = {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*") if path.is_file()}
    with LocalHub(tmp_path / "hub", judge=release_checks) as judged, visit(judged) as client:
        api = HfApi(endpoint=judged.endpoint, token=judged.token)
        api.create_repo(RELEASE, private=True)
        api.create_commit(RELEASE, [add(path, content) for path, content in files.items()], commit_message="Release")
        for tag in ("v1.0.0", "v9.9.9"):
            api.create_tag(RELEASE, tag=tag)
        broken = {"README.md": files["README.md"] + b"\nbetter\n", "gate.json": b"{}"}
        api.create_commit(RELEASE, [add(path, content) for path, content in broken.items()], commit_message="Edited")
        api.create_tag(RELEASE, tag="v1.0.1")
        api.create_commit(RELEASE, [add(".gitattributes", b"*.md filter=run\n")], commit_message="Attributes")
        api.create_tag(RELEASE, tag="v1.0.2")
        while "being checked" in (page := client.get(f"/{RELEASE}/versions").text):
            time.sleep(0.05)
        sections = [" ".join(Seen(part).text.split()) for part in page.split('<section class="version"')[1:]]
        good, other, edited = (next(s for s in sections if f"> {tag} " in s) for tag in ("v1.0.0", "v9.9.9", "v1.0.1"))
        assert "> v1.0.0 valid" in good
        assert "✓ signature: covers all files, by the key" in good
        assert "✗ name: it was signed as v1.0.0, and the tag v9.9.9 was moved to it" in other
        assert "> v1.0.1 not valid" in edited
        for name in ("signature", "contents", "gate"):
            assert f"✗ {name}:" in edited
        assert any("✗ allowed files: .gitattributes" in s for s in sections if "> v1.0.2 " in s)
        assert "✓ allowed files" in edited
        assert not list(judged.folder.rglob("release-*"))
        asked = []
        monkeypatch.setattr(judged.site.versions, "_judge", lambda *given: asked.append(given))
        client.get(f"/{RELEASE}/versions")
        assert not asked  # what was found is remembered
