"""Reading a search: every log that a search writes is read, finished or not, and any other is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssruntime.errors import RecipeError
from sstool.search.log.read import find_search, read_search
from sstool.search.log.records import LATENCY, TRIALS, Finalist, Result, Trial
from tests.search_report import searches

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def lines() -> list[str]:
    """Returns the lines of a small finished search: header, sensitivity, 20 trials, 4 finalists, result."""
    return [searches.line(r) for r in searches.finished(count=20)]


def write(folder: Path, lines: list[str], *, end: str = "\n") -> Path:
    (folder / TRIALS).write_text("\n".join(lines) + end, encoding="utf-8")
    return folder


def refusal(folder: Path) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read_search(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_finished_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    records, table = searches.finished(), searches.latency()
    log = read_search(searches.write_search(tmp_path, records, table))
    assert [log.header, log.sensitivity, *log.trials, *log.finalists, log.result] == records
    assert log.latency == table


def test_an_unfinished_search_is_read_up_to_its_last_record(tmp_path: Path) -> None:
    records = searches.finished()
    log = read_search(searches.write_search(tmp_path, records[:9]))
    assert [log.header, log.sensitivity, *log.trials] == records[:9]
    assert (log.finalists, log.result, log.latency) == ((), None, None)


def test_a_search_without_trials_is_read(tmp_path: Path) -> None:
    log = read_search(searches.write_search(tmp_path, [searches.header()]))
    assert (log.sensitivity, log.trials) == (None, ())


def test_trials_come_in_the_order_of_their_indices(tmp_path: Path) -> None:
    records = searches.finished()[:9]
    log = read_search(searches.write_search(tmp_path, [*records[:2], *reversed(records[2:])]))
    assert [t.index for t in log.trials] == list(range(7))


def test_a_last_line_that_was_cut_anywhere_is_ignored(tmp_path: Path, lines: list[str]) -> None:
    whole = read_search(write(tmp_path, lines[:5]))
    content = ("\n".join(lines[:6])).encode()
    start = len("\n".join(lines[:5])) + 1
    for cut in (start, start + 1, (start + len(content)) // 2, len(content)):
        (tmp_path / TRIALS).write_bytes(content[:cut])
        assert read_search(tmp_path) == whole


def test_a_last_line_that_was_cut_inside_a_character_is_ignored(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / TRIALS).write_bytes(lines[0].encode() + b'\n{"kind": "trial", "source": "\xe2\x82')
    assert read_search(tmp_path).trials == ()


@pytest.mark.parametrize("content", [b"", b'{"kind": "search", "form'])
def test_a_file_without_a_whole_line_holds_no_search_yet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TRIALS).write_bytes(content)
    assert "holds no search yet" in refusal(tmp_path).message


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    assert "holds no search" in refusal(tmp_path / "nowhere").message
    assert TRIALS in refusal(tmp_path).message
    (tmp_path / TRIALS).mkdir()
    assert "cannot be read" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected an object"),
        (b'{"kind": "trail"}', "unknown kind 'trail'"),
        (b'{"kind": ["trial"]}', "unknown kind"),
        (b"{}", "unknown kind None"),
    ],
)
def test_a_line_that_no_search_wrote_is_refused_with_its_number(tmp_path: Path, lines: list[str], content: bytes, says: str) -> None:
    (tmp_path / TRIALS).write_bytes(b"\n".join([lines[0].encode(), lines[1].encode(), content, lines[2].encode(), b""]))
    message = refusal(tmp_path).message
    assert f"{tmp_path / TRIALS}, line 3: " in message
    assert says in message


def changed(number: int, change: Change) -> Callable[[list[str]], list[str]]:
    """Returns a function that changes the line with a 0-based number in the lines of a search."""

    def apply(lines: list[str]) -> list[str]:
        data = json.loads(lines[number])
        change(data)
        return [*lines[:number], json.dumps(data), *lines[number + 1 :]]

    return apply


BROKEN: list[tuple[Callable[[list[str]], list[str]], int, str]] = [
    (changed(0, lambda d: d.update(format=1)), 1, "expected format 4, found 1"),
    (changed(0, lambda d: d.update(surprise=1)), 1, "unknown key 'surprise'"),
    (changed(0, lambda d: d.pop("model")), 1, "key 'model' is missing"),
    (changed(0, lambda d: d.update(num_layers=0)), 1, "num_layers"),
    (changed(1, lambda d: d["mlp"].pop()), 2, "expected 24 layers"),
    (changed(2, lambda d: d.update(speedup=float("nan"))), 3, "not JSON"),
    (changed(2, lambda d: d.update(speedup="fast")), 3, "expected float"),
    (changed(2, lambda d: d.update(speedup=None)), 3, "a completed trial must have one"),
    (changed(2, lambda d: d.update(status="done")), 3, "unknown status 'done'"),
    (changed(2, lambda d: d["stopping"].update(max_draft=99)), 3, "max_draft is out of range: 99"),
    (changed(2, lambda d: d.update(stopping=None)), 3, "stopping: a completed trial must have one"),
    (changed(2, lambda d: d["skip"].update(mlp=[24])), 3, "layer 24 does not exist"),
    (changed(2, lambda d: d["skip"].update(attention=[-1])), 3, "layer -1 does not exist"),
    (changed(2, lambda d: d["counts"]["greedy"].update(accepted=10**6)), 3, "expected 0 <= accepted <= proposed"),
    (changed(2, lambda d: d["counts"]["greedy"]["kept"].pop()), 3, "expected as many values in kept as in reached"),
    (changed(2, lambda d: d.update(timed={"tokens": 47, "measured": 0.0, "modelled": 80.0})), 3, "tokens and speeds above 0"),
    (changed(3, lambda d: d.update(index=0)), 4, "trial 0 occurs twice"),
    (changed(22, lambda d: d.update(trial=20)), 23, "trial: there is no trial 20"),
    (changed(22, lambda d: d.update(interval_95=[1.0])), 23, "expected two numbers"),
    (changed(26, lambda d: d.update(trial=99)), 27, "there is no trial 99"),
    (lambda lines: lines[1:], 1, "the first line"),
    (lambda lines: [lines[0], *lines], 2, "the first line"),
    (lambda lines: [*lines[:2], *lines[1:]], 3, "a second line of kind 'influence'"),
    (lambda lines: [*lines, lines[2]], 28, "a line after the result"),
]


@pytest.mark.parametrize(("spoil", "number", "says"), BROKEN)
def test_a_search_that_contradicts_itself_is_refused(
    tmp_path: Path, lines: list[str], spoil: Callable[[list[str]], list[str]], number: int, says: str
) -> None:
    read_search(write(tmp_path, lines))
    message = refusal(write(tmp_path, spoil(lines))).message
    assert f"{TRIALS}, line {number}: " in message
    assert says in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format=9), "expected format 4, found 9"),
        (lambda d: d["rows"][1]["draft"]["sizes"].reverse(), "rows[1].draft: sizes: expected ascending values without duplicates"),
        (lambda d: d["rows"][0]["draft"]["later"].pop(), "rows[0].draft: sizes, first, later: expected equally many values"),
        (lambda d: d["rows"][0]["draft"]["first"].__setitem__(1, 0.0), "rows[0].draft: first, later: expected factors above 0"),
        (lambda d: d.update(weights_sha256="5" * 64), "another model"),
        (lambda d: d.update(rows=[]), "expected at least one"),
        (lambda d: d["rows"][1]["draft"]["attention"].pop(), "rows[1].draft: expected costs of 24 layers"),
        (lambda d: d["rows"][1]["verify"].pop(), "rows[1]: verify: expected 16 query lengths, found 15"),
        (lambda d: d["rows"][0].update(verify=[0.0] * 16), "rows[0]: verify: expected times above 0"),
        (lambda d: d["rows"][0].update(int4=d["rows"][0]["draft"]), "rows[1]: int4: expected costs in all rows or in none"),
        (lambda d: [row.update(int4=dict(row["draft"], mlp=[])) for row in d["rows"]], "rows[0].int4: expected costs of 24 layers"),
        (lambda d: d.update(fit=0), "unknown key 'fit'"),
    ],
)
def test_a_latency_table_of_another_search_or_a_damaged_one_is_refused(tmp_path: Path, change: Change, says: str) -> None:
    searches.write_search(tmp_path, searches.finished(count=20))
    data = dataclasses.asdict(searches.latency())
    data = json.loads(json.dumps(data))
    change(data)
    (tmp_path / LATENCY).write_text(json.dumps(data), encoding="utf-8")
    message = refusal(tmp_path).message
    assert LATENCY in message
    assert says in message


def test_a_latency_table_that_is_not_json_is_refused(tmp_path: Path) -> None:
    searches.write_search(tmp_path, [searches.header()])
    (tmp_path / LATENCY).write_text('{"format": 1, "rows"', encoding="utf-8")
    assert f"{tmp_path / LATENCY}: not JSON" in refusal(tmp_path).message


def test_a_search_is_found_in_its_folder_and_in_an_artifact(tmp_path: Path) -> None:
    inner = searches.write_search(tmp_path / "search", [searches.header()])
    assert find_search(tmp_path) == inner
    assert find_search(inner) == inner


def test_a_folder_and_an_artifact_without_a_search_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no folder"):
        find_search(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="holds no search"):
        find_search(tmp_path)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"the artifact .* has no search"):
        find_search(tmp_path)


def test_the_made_up_searches_have_what_the_tests_assume() -> None:
    records = searches.finished()
    trials = [r for r in records if isinstance(r, Trial)]
    assert {t.status for t in trials} == {"completed", "stopped", "failed"}
    assert len([r for r in records if isinstance(r, Finalist)]) == 4
    assert isinstance(records[-1], Result)
    assert records[-1].trial is not None
    last = searches.finished(slow=True)[-1]
    assert isinstance(last, Result)
    assert last.trial is None
