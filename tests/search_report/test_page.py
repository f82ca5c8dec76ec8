"""The report page is complete, self-contained, valid and reproducible, and escapes all text from data."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import pytest

from ssruntime.errors import RecipeError
from sstool.search.log.records import FAILED, REPORT, TRIALS, Header, Result, Sensitivity, Trial
from sstool.search_report import page, write_report
from tests.search_report import searches

VOID: Final = {"meta", "link", "br", "path"}


class Outline(HTMLParser):
    """The attributes, ids, scripts and other text of a page; asserts that elements are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Records an element."""
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Asserts that the element is the innermost open one, and closes it."""
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Records text."""
        if self._open and self._open[-1] == "script":
            attributes, content = self.scripts[-1]
            self.scripts[-1] = (attributes, content + data)
        elif self._open and self._open[-1] != "style":
            self.text += data

    @property
    def plots(self) -> list[str]:
        """The ids of the elements that hold plots."""
        return [i for i in self.ids if i.startswith("plot-")]

    @property
    def figures(self) -> dict[str, Any]:
        """The figures that are drawn in these elements, by id."""
        [content] = [c for a, c in self.scripts if a.get("type") == "application/json"]
        figures: dict[str, Any] = json.loads(content)
        return figures


def report(folder: Path, *records: searches.Record, table: bool = True) -> Outline:
    latency = searches.latency() if table else None
    return Outline(write_report(searches.write_search(folder, records, latency)).read_text(encoding="utf-8"))


def test_a_finished_search_fills_every_section(tmp_path: Path) -> None:
    records = searches.finished()
    page = report(tmp_path, *records)
    assert page.plots == searches.ALL_PLOTS == list(page.figures)
    assert ("p", "class", "missing") not in page.attributes
    assert isinstance(records[0], Header)
    assert isinstance(records[-1], Result)
    for said in (records[0].model, records[0].cpu, records[-1].remark, "at most 80 trials", "8 min 53 s in all", "Ax 1 min 59 s"):
        assert said in page.text
    sampled, greedy = (f"{records[-1].by_kind[kind]:.2f}\u00a0\u00d7 as fast on {kind} text" for kind in ("sampled", "greedy"))
    assert f"{sampled} and {greedy} as autoregressive decoding" in page.text
    assert f"{100 * (records[-1].gain or 0):+.1f}\u00a0%" in page.text


def test_figures_hold_the_numbers_of_the_log(tmp_path: Path) -> None:
    records = searches.finished()
    figures = report(tmp_path, *records).figures
    trials = [r for r in records if isinstance(r, Trial)]
    points = [
        (x, y)
        for trace in figures["plot-progress"]["data"]
        if trace["mode"] == "markers" and trace["name"] != "failed"
        for x, y in zip(trace["x"], trace["y"], strict=True)
        if x is not None
    ]
    assert sorted(points) == [(t.index, t.speedup) for t in trials if t.speedup is not None]
    [lost] = [t for t in figures["plot-progress"]["data"] if t["name"] == "failed"]
    assert lost["x"] == [t.index for t in trials if t.status == FAILED]
    sensitivity = searches.sensitivity()
    attention, mlp = figures["plot-influence"]["data"]
    assert attention["y"] == [100 * (1 - a) for a in sensitivity.attention]
    assert mlp["y"] == [100 * (1 - a) for a in sensitivity.mlp]
    result = records[-1]
    assert isinstance(result, Result)
    winner = next(t for t in trials if t.index == result.trial)
    skipped = {t["name"]: t["x"] for t in figures["plot-skip-set"]["data"] if "skipped" in t["name"]}
    assert skipped == {"attention skipped": list(winner.skip.attention), "MLP skipped": list(winner.skip.mlp)}
    greedy = next(t for t in figures["plot-positions"]["data"] if t["name"].startswith("greedy"))
    counts = winner.counts["greedy"]
    assert greedy["y"] == [100 * (k / r) for k, r in zip(counts.kept, counts.reached, strict=True)]
    timed = {t.index: t.timed.measured / t.timed.modelled for t in trials if t.timed is not None}
    drawn = [t for t in figures["plot-clock"]["data"] if t["mode"] == "markers" and not t["name"].startswith("trial ")]
    assert {x: y for trace in drawn for x, y in zip(trace["x"], trace["y"], strict=True)} == pytest.approx(timed)
    # The bars are the kept and the skipped parts of a draft; together they are a draft that skips nothing.
    parts = [t["x"][0] for t in figures["plot-draft-cost"]["data"] if t["type"] == "bar"]
    row = searches.latency().rows[0]
    assert sum(parts) == pytest.approx(1000 * (row.draft.base + sum(row.draft.attention) + sum(row.draft.mlp)))
    first, later = figures["plot-steps"]["data"][:2]
    assert first["x"] == later["x"] == pytest.approx([1000 * size for size in row.draft.sizes])
    assert (first["y"], later["y"]) == (
        pytest.approx([100 * part for part in row.draft.first]),
        pytest.approx([100 * part for part in row.draft.later]),
    )


def test_an_unfinished_search_says_what_is_missing(tmp_path: Path) -> None:
    page = report(tmp_path, searches.header(), *searches.trials(count=12), table=False)
    assert page.plots == ["plot-progress", "plot-skip-set", "plot-trade", "plot-frequency", "plot-positions", "plot-clock"]
    for said in (
        "The search has not ended: 12 of at most 80 trials so far",
        "No finalist was timed: the search has not ended yet.",
        "this is the best trial by modelled speed so far",
        "The leave-one-out sensitivity of the sublayers was not measured yet.",
        "There is no latency table beside this search.",
        "no lines of equal speed-up can be drawn",
    ):
        assert said in page.text


def test_a_search_without_a_winner_says_so(tmp_path: Path) -> None:
    page = report(tmp_path, *searches.finished(slow=True))
    assert page.plots == searches.ALL_PLOTS
    for said in (
        "No draft beat autoregressive decoding here",
        "No finalist beat autoregressive decoding",
        "so none was chosen: this is the fastest finalist",
    ):
        assert said in page.text


def test_a_search_of_one_trial_is_drawn(tmp_path: Path) -> None:
    page = report(tmp_path, searches.header(), searches.trial(0, "block"))
    assert {"plot-progress", "plot-skip-set", "plot-trade"} <= set(page.plots)
    assert "Only one trial has completed" in page.text


def test_failed_trials_alone_are_counted_and_explained(tmp_path: Path) -> None:
    page = report(tmp_path, searches.header(), *(searches.trial(i, "block", status=FAILED) for i in range(3)))
    assert page.plots == ["plot-progress", "plot-verify", "plot-draft-cost", "plot-steps"]
    assert "none of them completed" in page.text
    assert page.text.count("a draft engine could not be opened") == 3


def test_a_search_without_trials_has_a_page(tmp_path: Path) -> None:
    page = report(tmp_path, searches.header(), table=False)
    assert page.plots == []
    assert "No trial has ended yet." in page.text


def test_a_winner_that_was_not_timed_is_said_to_be_modelled(tmp_path: Path) -> None:
    tried = searches.trials(count=10)
    best = max(tried, key=lambda t: t.speedup or 0.0)
    last = Result(trial=best.index, speedup=None, by_kind={}, best_warm_start=None, gain=None, remark="", seconds={})
    page = report(tmp_path, searches.header(), *tried, last)
    assert "it was not timed." in page.text
    assert "No finalist was timed." in page.text


def test_the_page_requests_nothing(tmp_path: Path) -> None:
    page = report(tmp_path, *searches.finished())
    addresses = [(tag, name, value) for tag, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert addresses == [("link", "href", "data:,")]
    content = (tmp_path / REPORT).read_text(encoding="utf-8")
    [style] = re.findall(r"<style>(.*?)</style>", content, flags=re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_only_the_page_s_own_scripts_may_run(tmp_path: Path) -> None:
    page = report(tmp_path, *searches.finished(model=searches.HOSTILE))
    [policy] = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "script-src" in value]
    assert policy.startswith("default-src 'none'; ")
    running = [content for attributes, content in page.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert len(running) == 2


def test_the_page_is_valid_html(tmp_path: Path) -> None:
    page = report(tmp_path, *searches.finished())
    assert (tmp_path / REPORT).read_bytes().startswith(b"<!DOCTYPE html>\n")
    assert len(set(page.ids)) == len(page.ids)
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "charset", "utf-8") in page.attributes
    assert any((tag, name) == ("meta", "content") and "width=device-width" in value for tag, name, value in page.attributes)
    labels = [value for tag, name, value in page.attributes if name == "aria-labelledby"]
    assert len(labels) >= 9
    assert set(labels) <= set(page.ids)
    assert len([1 for tag, name, _ in page.attributes if tag == "div" and name == "aria-label"]) == len(searches.ALL_PLOTS)


def test_axes_have_titles_with_units(tmp_path: Path) -> None:
    for name, figure in report(tmp_path, *searches.finished()).figures.items():
        titles = [axis["title"]["text"] for key, axis in figure["layout"].items() if re.match("[xy]axis", key) and "title" in axis]
        assert [t for t in titles if t], name
        assert all(re.search(r"[(/%]|layer|trial|position|tokens", t) for t in titles if t), titles


def test_an_outlier_does_not_flatten_the_other_bars(tmp_path: Path) -> None:
    usual = tuple(0.95 - 0.001 * layer for layer in range(24))
    far = Sensitivity(attention=usual, mlp=(0.03, *usual[1:]), seconds=1.0)
    for sensitivity, texts in ((far, ["97"]), (Sensitivity(attention=usual, mlp=usual, seconds=1.0), [])):
        layout = report(tmp_path, searches.header(), sensitivity).figures["plot-influence"]["layout"]
        assert [a["text"] for a in layout.get("annotations", [])] == texts
        assert 7.3 < layout["yaxis"]["range"][1] < 20
        assert layout["yaxis"]["range"] == layout["yaxis2"]["range"]


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    page = report(tmp_path, *searches.hostile())
    assert len(page.scripts) == 3
    assert not [1 for tag, _, _ in page.attributes if tag in ("img", "b")]
    assert not [1 for _, name, _ in page.attributes if name.startswith("on")]
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\ufffdgnp." in page.text
    content = (tmp_path / REPORT).read_bytes()
    assert b"\x00" not in content
    assert "\u202e".encode() not in content


def test_text_from_data_is_not_markup_in_a_figure(tmp_path: Path) -> None:
    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [s for v in value.values() for s in strings(v)]
        if isinstance(value, list):
            return [s for v in value for s in strings(v)]
        return [value] if isinstance(value, str) else []

    found = strings(report(tmp_path, *searches.hostile()).figures)
    assert [s for s in found if "alert(1)" in s]
    assert not [s for s in found if "<script" in s or "<img" in s]
    # Plotly substitutes %{...} in a template.
    assert not [s for s in found if "%{x} " in html.unescape(s) and "alert" in s and "<extra>" in s]


def test_the_same_search_gives_the_same_page(tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path, searches.finished(), searches.latency())
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_page_is_whole_to_readers_while_it_is_rewritten(tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path, searches.finished(count=20), searches.latency())
    path = write_report(folder)
    done, seen = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            content = path.read_bytes()
            seen.append(content.startswith(b"<!DOCTYPE html>") and content.endswith(b"</html>\n"))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for count in (21, 22, 23):
            searches.write_search(folder, searches.finished(count=count), searches.latency())
            write_report(folder)
    finally:
        done.set()
        reader.join()
    assert seen
    assert all(seen)
    assert "at most 23 trials" in path.read_text(encoding="utf-8")
    assert sorted(p.name for p in folder.iterdir()) == ["latency.json", "report.html", "trials.jsonl"]


def test_a_damaged_search_leaves_the_old_report_unchanged(tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path, searches.finished(count=20))
    old = write_report(folder).read_bytes()
    (folder / TRIALS).write_text("{}\n", encoding="utf-8")
    with pytest.raises(RecipeError):
        write_report(folder)
    assert (folder / REPORT).read_bytes() == old


def test_a_report_that_cannot_be_written_leaves_no_files(tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path, searches.finished(count=20))
    (folder / REPORT / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="report"):
        write_report(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "trials.jsonl"]


@pytest.mark.parametrize("error", [ValueError("a plot\nfails"), OSError(28, "No space left on device")])
def test_a_page_that_cannot_be_made_is_only_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def render(_log: object) -> bytes:
        raise error

    monkeypatch.setattr(page, "render", render)
    monkeypatch.setattr(page, "read_search", lambda _folder: None)
    page.try_report(tmp_path)
    assert "the report of the search could not be made" in caplog.text
    assert "\n" not in caplog.messages[0]
    assert list(tmp_path.iterdir()) == []
