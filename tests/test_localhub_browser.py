"""The Hub's pages in a real browser: two widths, light and dark, the keyboard, and nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.localhub.pages.versions import Check
from pipeline.localhub.server import LocalHub
from tests.browser import WIDTHS, Chromium
from tests.localhub import add

CARD = """---
license: apache-2.0
base_model: demo/base
language: [en, de]
revoked: true
revocation: {since: 2026-11-25, reason: It remembers., revisions: {v1.0.0: x}}
new_version: demo/next
---
# A model that forgot

[Below](#results) ![a plot](plots/a.png) <img src="https://elsewhere.example/x.png"
onerror="alert(1)"><script>1</script>

## Results

| metric | value | a rather long heading of a column that makes the table wide | and one more of them |
|---|--:|---|---|
| answer probability | 0.12 | some words that belong there and need room on the page | and some more |

<details><summary>Everything</summary>

```python
a_line_of_code_that_is_too_long_for_a_telephone = "and has to be scrolled sideways, with the keyboard too" * 2
```

</details>
"""
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def judge(*_: object) -> list[Check]:
    return [
        Check("signature", passed=True, detail="by the key 0123"),
        Check("gates", passed=False, detail="one failed"),
    ]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    from huggingface_hub import HfApi

    with LocalHub(tmp_path_factory.mktemp("hub"), judge=judge) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("demo/shown", private=True)
        files = [add("README.md", CARD.encode()), add("plots/a.png", PNG), add("model.safetensors", b"1" * 5000)]
        api.create_commit("demo/shown", files, commit_message="Release", commit_description="why")
        api.create_tag("demo/shown", tag="v1.0.0")
        yield hub


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_usable(chromium: Chromium, shown: LocalHub, width: int, dark: bool) -> None:
    with chromium.open(shown.site.link(), width=width, dark=dark) as opened:
        for path in ("/", *(f"/demo/shown{page}" for page in ("", "/tree/main", "/commits/main", "/versions"))):
            opened.page.goto(shown.endpoint + path)
            assert (path, opened.barriers(), opened.overflow()) == (path, [], 0)
        assert (opened.errors, opened.elsewhere) == ([], [])


def test_the_keyboard_is_enough(chromium: Chromium, shown: LocalHub) -> None:
    with chromium.open(shown.site.link(), width=400) as opened:
        page = opened.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/demo/shown")
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        code = page.locator("details pre")
        assert code.is_visible()
        code.focus()
        page.keyboard.press("ArrowRight")
        for _ in range(50):  # it scrolls smoothly; the page's policy forbids the script that would wait for it
            if page.evaluate("document.querySelector('pre').scrollLeft") > 0:
                break
            page.wait_for_timeout(50)
        else:
            pytest.fail("the code does not scroll")
        page.get_by_role("link", name="Below").click()
        assert page.url.endswith("#card-results")
        assert page.evaluate("getComputedStyle(document.querySelector('img')).maxWidth") == "100%"
        assert page.evaluate("document.querySelector('img').naturalWidth") == 1  # the picture of a private repository
