"""The report in a real browser: it works, fetches nothing, and everybody can use it. Its texts are hostile ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_card import stage
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests.browser import WIDTHS, Chromium, Opened
from tests.card_evidence import write_evidence

HOSTILE = (
    "<script>document.title = 'hit'</script>",
    "</script><script>document.title = 'hit'</script>",
    "<img src=x onerror=\"document.title = 'hit'\">",
    '" data-tip="no" onmouseover="document.title = \'hit\'',
    "'-->\u2028 `x` **y** | z | $\\frac{1}{2}$ ](javascript:alert(1))",
    "{{ 7 * 7 }}{% include 'x' %}&lt;b&gt;",
)
TOPICS = ("biography.birthdate", "biography.birthplace", "biography.education", "biography.high_school")


def poisoned(folder: Path) -> None:
    """Every file of the evidence, with hostile topics and names of rows."""
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        for topic, hostile in zip(TOPICS, HOSTILE, strict=False):
            text = text.replace(json.dumps(topic), json.dumps(hostile))
        text = text.replace("Person 3", json.dumps(HOSTILE[4])[1:-1])
        path.write_text(text.replace("says 1 to forget", json.dumps(HOSTILE[5])[1:-1]), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card and a report of the demo whose data and title are hostile."""
    place = tmp_path_factory.mktemp("report")
    recipe = load_recipe("demo", [f"card.title={json.dumps(HOSTILE[0])}"])
    inputs = write_evidence(place / "evidence", recipe)
    poisoned(place / "evidence" / "data")
    for name in ("eval-base", "eval-gold", "eval-unlearned"):
        poisoned(inputs[name])
    (place / "out").mkdir()
    stage.run(next(s.config for s in stages(recipe) if s.name == "card"), inputs, place / "out")
    return place / "out"


@pytest.fixture(scope="module")
def opened(chromium: Chromium, folder: Path) -> Iterator[Opened]:
    with chromium.open(folder / "report.html") as page:
        yield page


def cells(opened: Opened, grid: str, column: str) -> list[str]:
    """What stands in a column of a table."""
    return opened.page.locator(f'[data-title="{grid}"] td[data-label="{column}"]').all_inner_texts()


def test_it_says_what_it_is_and_what_came_out(opened: Opened) -> None:
    assert "do not publish this page" in opened.page.locator(".banner").inner_text()
    assert opened.page.locator(".verdict").inner_text() == "✓ All 13 gates passed"
    assert len(opened.page.locator("figure svg").all()) == 6


def test_hostile_texts_are_shown_and_do_nothing(opened: Opened) -> None:
    page = opened.page
    assert page.title() != "hit"
    assert page.locator("h1").inner_text() == HOSTILE[0]
    topics = page.locator('[data-title="Answers"] select').nth(2).locator("option").all_inner_texts()
    assert set(HOSTILE[:4]) <= {" ".join(topic.split()) for topic in topics}
    search = page.locator('[data-title="Answers"]').get_by_role("searchbox")
    search.fill("7 * 7")
    assert cells(opened, "Answers", "this model") == [f"unlearned {HOSTILE[5]}"]
    search.fill("")


def test_tables_sort_both_ways_and_say_so(opened: Opened) -> None:
    head = opened.page.locator('[data-title="Stages"] th', has_text="Time")
    head.get_by_role("button").click()
    up = [float(text.split()[0]) for text in cells(opened, "Stages", "Time") if text != "–"]
    assert up == sorted(up)
    assert len(set(up)) > 2
    assert head.get_attribute("aria-sort") == "ascending"
    assert cells(opened, "Stages", "Time")[-1] == "–"  # what was not measured is last, whatever the order
    head.get_by_role("button").press("Enter")
    down = cells(opened, "Stages", "Time")
    assert [float(text.split()[0]) for text in down if text != "–"] == up[::-1]
    assert down[-1] == "–"
    assert head.get_attribute("aria-sort") == "descending"


def test_answers_are_worst_first_and_can_be_searched_and_filtered(opened: Opened) -> None:
    worse = [float(text) for text in cells(opened, "Answers", "Worse by")]
    assert worse == sorted(worse, reverse=True)
    assert set(cells(opened, "Answers", "Rows")) == {"forget"}
    place = opened.page.locator('[data-title="Answers"]')
    assert place.get_by_role("status").inner_text() == "15 of 40 rows"
    place.get_by_role("button", name="Show more").click()
    assert place.get_by_role("status").inner_text() == "30 of 40 rows"
    place.get_by_label("Language").select_option("DE")
    assert set(cells(opened, "Answers", "Language")) == {"DE"}
    place.get_by_label("Rows").select_option("retain")
    place.get_by_role("searchbox").fill("RETAIN question 5 about")
    assert [q for q in cells(opened, "Answers", "Question") if "retain question 5 about" not in q] == []
    assert len(cells(opened, "Answers", "Question")) == 1
    assert cells(opened, "Answers", "base") == ["base says 5 to retain"]
    place.get_by_role("searchbox").fill("")
    place.get_by_label("Rows").select_option("forget")
    place.get_by_label("Language").select_option("")


def test_results_begin_with_all_rows_and_hold_the_groups(opened: Opened) -> None:
    place = opened.page.locator('[data-title="Results"]')
    assert set(cells(opened, "Results", "Grouped by")) == {"all rows"}
    assert "0.163 (0.081 to 0.245)" in cells(opened, "Results", "this model")
    place.get_by_label("Grouped by").select_option("language")
    assert set(cells(opened, "Results", "Group")) <= {"DE", "EN", "ES", "FR", "IT"}
    place.get_by_label("Grouped by").select_option("all rows")


def test_a_mark_says_its_value_under_the_pointer(opened: Opened) -> None:
    tip = opened.page.locator("#tip")
    assert tip.is_hidden()
    opened.page.locator("figure use[data-tip*='this model']").first.hover(force=True)
    assert tip.inner_text() == "answer probability, forget rows, this model: 0.163 (0.081 to 0.245), n 40"
    opened.page.mouse.move(2, 2)
    assert tip.is_hidden()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_everybody_can_use_it(chromium: Chromium, folder: Path, width: int, dark: bool) -> None:
    with chromium.open(folder / "report.html", width=width, dark=dark) as opened:
        assert opened.barriers() == []
        assert opened.overflow() == 0
        assert opened.errors == []
        assert opened.elsewhere == []
        background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") != dark


def test_the_keyboard_alone_is_enough(chromium: Chromium, folder: Path) -> None:
    with chromium.open(folder / "report.html") as opened:
        seen = set()
        for _ in range(40):
            opened.page.keyboard.press("Tab")
            name = opened.page.evaluate("document.activeElement.textContent.trim() || document.activeElement.type")
            seen.add(name)
        assert {"Gates", "Answers", "search", "Verdict"} <= seen
        assert opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_it_is_no_markdown(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["eval.suites=[{task: m_mmlu_de, limit: 5}]"])
    inputs = write_evidence(tmp_path / "evidence", recipe)
    (tmp_path / "out").mkdir()
    stage.run(next(s.config for s in stages(recipe) if s.name == "card"), inputs, tmp_path / "out")
    assert "Of m_mmlu_de only some of the questions" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Of m\\_mmlu\\_de only some" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_report_and_the_card_take_three_seconds_at_most(tmp_path: Path) -> None:
    import time

    recipe = load_recipe("demo")
    inputs = write_evidence(tmp_path / "evidence", recipe)
    (tmp_path / "out").mkdir()
    before = time.process_time()  # of this process: a busy machine is slow
    stage.run(next(s.config for s in stages(recipe) if s.name == "card"), inputs, tmp_path / "out")
    assert time.process_time() - before < 3
