"""A real headless Chromium for tests of pages: take the fixture ``chromium``.

It is Debian's `chromium`, driven by Playwright. `.ci/run` installs it; elsewhere such tests are skipped with a reason.
A page may fetch from loopback and files alone, and what it asks of any other place is refused and remembered.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NEEDS_BROWSER = "UNLEARN_RELEASE_NEEDS_BROWSER"  # set to 1 where a test must not be skipped for want of one
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (400, 1400)  # CSS pixels: a telephone and a desk


@dataclass
class Opened:
    """A page, what it complained of on its console or threw, and the addresses elsewhere that it asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def barriers(self) -> list[str]:
        """What axe-core finds that keeps people from using the page, one line each; empty if nothing does."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {node['html']:.120}" for rule in found for node in rule["nodes"]]

    def overflow(self) -> int:
        """By how many CSS pixels the page is wider than the window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        width: int = self.page.evaluate(script)
        return width


class Chromium:
    """A running browser; each page that it opens knows nothing of the others."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    @contextmanager
    def open(self, address: str | Path, *, width: int = 1400, dark: bool = False, **context: Any) -> Iterator[Opened]:
        """Open a URL or a file. ``context`` are further options of Playwright's ``new_context``."""
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        settings = {"viewport": {"width": width, "height": 900}, "color_scheme": "dark" if dark else "light", **context}
        world = self.browser.new_context(**settings)
        try:
            opened = Opened(world.new_page())
            world.route("**/*", lambda route: _answer(route, opened.elsewhere))
            opened.page.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
            opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
            opened.page.goto(url)
            yield opened
        finally:
            world.close()


def _answer(route: Any, elsewhere: list[str]) -> None:
    place = urlsplit(route.request.url)
    if place.scheme in ("file", "data", "blob", "about") or place.hostname in ("127.0.0.1", "localhost"):
        route.continue_()
    else:
        elsewhere.append(route.request.url)
        route.abort()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """The browser of a test run. Without one the test is skipped with a reason, or fails where it must be there."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        missing = f"no browser is installed ({', '.join(NAMES)}); Debian's package is chromium"
        if os.environ.get(NEEDS_BROWSER, "0") not in ("", "0"):
            pytest.fail(f"{missing}, and {NEEDS_BROWSER} says that it must be")
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]  # as root, and in containers
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield Chromium(browser)
        browser.close()
