"""Reports are shown by a real browser without errors and without requests.

Every figure is drawn and fits, in a wide and in a narrow window.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sstool.search.log.records import FAILED
from sstool.search_report import write_report
from tests.search_report import searches
from tests.search_report.browser import Browser, Page, find_browser, running_browser

pytestmark = pytest.mark.slow

WIDE: Final = 1300
NARROW: Final = 420

DRAWN: Final = """
[...document.querySelectorAll(".plot")].map(plot => {
  const marks = [...plot.querySelectorAll("svg.main-svg .trace path")];
  const seen = marks.filter(mark => { const box = mark.getBoundingClientRect(); return box.width > 0 || box.height > 0; });
  return [plot.id, seen.length];
})
"""
"""JavaScript: the id of each figure, with the number of its visible marks."""

OUTSIDE: Final = """
[...document.querySelectorAll(".plot svg.main-svg text, .key li")].filter(text => {
  const own = text.getBoundingClientRect(), figure = text.closest("figure").getBoundingClientRect();
  return own.width > 0 && (own.left < figure.left - 1 || own.right > figure.right + 1);
}).map(text => text.textContent)
"""
"""JavaScript: the texts of figures that are partly outside of their figure."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome on PATH: reports are not opened in a browser")
    with running_browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


def open_report(browser: Browser, folder: Path, *records: searches.Record, num_layers: int = 24, table: bool = True) -> Page:
    latency = searches.latency(num_layers=num_layers) if table else None
    return browser.open(write_report(searches.write_search(folder, records, latency)).as_uri(), width=WIDE)


def assert_sound(page: Page, plots: list[str]) -> None:
    """Asserts that a page draws these figures in a wide and a narrow window, without errors or requests."""
    for width in (WIDE, NARROW):
        page.resize(width)
        drawn = dict(page.evaluate(DRAWN))
        assert list(drawn) == plots
        assert all(drawn.values()), drawn
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.problems == []
    assert page.requests == []


def test_a_finished_search_shows_every_figure(browser: Browser, tmp_path: Path) -> None:
    assert_sound(open_report(browser, tmp_path, *searches.finished()), searches.ALL_PLOTS)


def test_a_search_of_a_deep_model_shows_every_figure(browser: Browser, tmp_path: Path) -> None:
    assert_sound(open_report(browser, tmp_path, *searches.finished(num_layers=80), num_layers=80), searches.ALL_PLOTS)


def test_an_unfinished_search_shows_the_figures_that_it_has_data_for(browser: Browser, tmp_path: Path) -> None:
    page = open_report(browser, tmp_path, *searches.finished()[:20], table=False)
    assert_sound(page, ["plot-progress", "plot-skip-set", "plot-trade", "plot-influence", "plot-frequency", "plot-positions", "plot-clock"])


def test_a_search_without_a_winner_shows_every_figure(browser: Browser, tmp_path: Path) -> None:
    assert_sound(open_report(browser, tmp_path, *searches.finished(slow=True)), searches.ALL_PLOTS)


def test_a_search_of_one_trial_shows_the_figures_that_it_has_data_for(browser: Browser, tmp_path: Path) -> None:
    page = open_report(browser, tmp_path, searches.header(), searches.trial(0, "block"))
    assert_sound(page, [p for p in searches.ALL_PLOTS if p not in ("plot-final", "plot-influence")])


def test_a_search_of_failed_trials_shows_the_figures_that_it_has_data_for(browser: Browser, tmp_path: Path) -> None:
    page = open_report(browser, tmp_path, searches.header(), *(searches.trial(i, "block", status=FAILED) for i in range(3)))
    assert_sound(page, ["plot-progress", "plot-verify", "plot-draft-cost", "plot-steps"])


def test_a_search_without_trials_shows_no_figures(browser: Browser, tmp_path: Path) -> None:
    assert_sound(open_report(browser, tmp_path, searches.header(), table=False), [])


def test_hostile_text_is_shown_and_not_executed(browser: Browser, tmp_path: Path) -> None:
    page = open_report(browser, tmp_path, *searches.hostile())
    assert_sound(page, searches.ALL_PLOTS)
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert searches.HOSTILE[:40] in page.evaluate("document.querySelector('.model').textContent")
    keys = page.evaluate("[...document.querySelectorAll('.key li')].map(entry => entry.textContent)")
    assert [k for k in keys if "<script>alert(1)</script>" in k]


def test_figures_are_narrower_in_print(browser: Browser, tmp_path: Path) -> None:
    page = open_report(browser, tmp_path, *searches.finished())
    before = page.evaluate("document.querySelector('#plot-trade svg.main-svg').clientWidth")
    assert before > 800
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert 500 < page.evaluate("document.querySelector('#plot-trade svg.main-svg').clientWidth") < 700
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelector('#plot-trade svg.main-svg').clientWidth") == before
    page.print_to(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert page.problems == []


def test_every_fault_of_a_page_is_detected(browser: Browser, tmp_path: Path) -> None:
    """The page has every fault.

    It has an empty figure, a text outside of it, a request, an exception, a console error, and a line that is
    too wide.
    """
    path = tmp_path / "bad.html"
    path.write_text(
        """<!DOCTYPE html><title>bad</title><link rel="icon" href="data:,"><p style="width: 2000px">wide</p>
        <figure><div class="plot" id="plot-none"><svg class="main-svg" width="100%"><text x="5000" y="20">away</text></svg></div></figure>
        <style>svg { overflow: visible }</style>
        <img src="http://localhost:9/outside.png" alt=""><script>console.error("said"); throw new Error("thrown");</script>""",
        encoding="utf-8",
    )
    page = browser.open(path.as_uri(), width=WIDE)
    assert page.evaluate(DRAWN) == [["plot-none", 0]]
    assert page.evaluate(OUTSIDE) == ["away"]
    assert page.requests == ["http://localhost:9/outside.png"]
    for problem in ("said", "thrown", "outside.png"):
        assert [p for p in page.problems if problem in p], problem
    assert not page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_foreign_script_does_not_run_in_a_report(browser: Browser, tmp_path: Path) -> None:
    """The page's content security policy blocks a script even if an escape is missing."""
    path = write_report(searches.write_search(tmp_path, [searches.header()]))
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace("<main>", "<main><script>window.foreign = 1</script>"), encoding="utf-8")
    page = browser.open(path.as_uri(), width=WIDE)
    assert page.evaluate("typeof window.foreign") == "undefined"
    assert [p for p in page.problems if "Content Security Policy" in p]
