"""`make pictures`: the pictures in the README, taken of the demo's pages by a headless Chromium.

Needs `make release` to have run once, and Debian's `chromium` or another one on the path. Each picture is the top of a
page: of the report, that is above all questions and answers; of the loopback Hub, the published card; and if
`demo-collection` was made, of its comparison.
"""

from __future__ import annotations

import argparse
import shutil
import sys

from benchmarks.releases import ROOT, STORE
from pipeline.localhub.server import LocalHub
from pipeline.recipe import load_recipe

REPORT = STORE / "demo" / "card" / "report.html"
COMPARISON = STORE / "demo-collection" / "comparison.html"
WIDTH, HEIGHT = 1280, 1430  # CSS pixels


def main() -> None:
    """Write ``docs/pictures/NAME.png`` of each page."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("No browser is on the path. On Debian: apt-get install chromium")
    if missing := [str(place) for place in (REPORT, STORE / "demo" / "publish") if not place.exists()]:
        sys.exit(f"{', '.join(missing)} is not there yet. Run `make release` first.")
    with sync_playwright() as playwright, LocalHub(STORE / "hub") as hub:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        pages = {"report": REPORT.as_uri(), "hub": f"{hub.endpoint}/{load_recipe('demo').publish.repo}"}
        if COMPARISON.is_file():
            pages["comparison"] = COMPARISON.as_uri()
        for name, page in pages.items():
            tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            if name == "hub":
                tab.goto(hub.site.link())  # the demo's repository is private
            tab.goto(page)
            picture = ROOT / "docs" / "pictures" / f"{name}.png"
            picture.parent.mkdir(exist_ok=True)
            tab.screenshot(path=picture)
            print(picture.relative_to(ROOT))
        browser.close()


if __name__ == "__main__":
    argparse.ArgumentParser(prog="make pictures", description=__doc__).parse_args()
    main()
