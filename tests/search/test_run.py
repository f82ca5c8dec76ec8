"""A whole search is repeatable and resumable, and never mixes its trials with those of another search."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssruntime.artifact import LowBitSet, SkipSet
from ssruntime.errors import ConfigError, PromptError, RecipeError
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.search.log.read import read_search
from sstool.search.log.records import COMPLETED, FAILED, LATENCY, TRIALS, Trial
from sstool.search.progress import Progress
from sstool.search.run import SearchOutcome, SearchRequest, Start, run_search
from sstool.search.settings import SearchSettings
from sstool.skip_set import SkipSpec
from tests.toolchain.tiny_llama import VOCAB, make_llama

WARM = 21
"""Largest number of warm starts. Some may be the same skip set, which depends on measured costs."""


def settings(calibration: Path, **changes: Any) -> SearchSettings:
    given = {"trials": WARM + 4, "budget": None, "sampled_tokens": 12, "greedy_tokens": 8, "finalists": 2}
    return SearchSettings(calibration=str(calibration), **{**given, **changes})


def search(artifact: Path, work: Path, calibration: Path, *, latency: Path | None = None, **changes: Any) -> SearchOutcome:
    return run_search(
        SearchRequest(
            folder=artifact,
            work=work,
            settings=settings(calibration, **changes),
            starts=(Start(source="recipe", skip=SkipSet(attention=(1,), mlp=(0, 2))), Start(source="earlier", skip=SkipSet(mlp=(1,)))),
            known_latency=() if latency is None else (latency,),
            threads=1,
        )
    )


def without_times(trial: Trial) -> object:
    """Returns a trial without its measured times."""
    return dataclasses.replace(trial, timed=None, seconds=0.0, suggest_seconds=0.0)


@pytest.fixture(scope="module")
def finished(tiny_artifact: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchOutcome]:
    work = tmp_path_factory.mktemp("work") / "tiny.search"
    return work, search(tiny_artifact, work, calibration)


def test_a_search_logs_everything_that_it_did(finished: tuple[Path, SearchOutcome]) -> None:
    work, outcome = finished
    log = read_search(work)
    assert log.result == outcome.result
    assert len(log.trials) == outcome.num_trials == WARM + 4
    assert log.trials[0].source == "recipe"
    sources = [t.source for t in log.trials]
    assert sources[-4:].count("ax") >= 1
    assert {"every-other", "block"} <= set(sources)
    assert len({t.skip for t in log.trials}) == len(log.trials)
    assert log.sensitivity is not None
    assert log.latency is not None
    assert all(t.seconds > 0 for t in log.trials)
    assert all((t.timed is not None) == (t.status == COMPLETED) for t in log.trials)
    # All texts are shorter than the first measured context, so an autoregressive step costs the same in all.
    assert log.header.plain == pytest.approx(1 / log.latency.rows[0].verify[0])
    scored = [t for t in log.trials if t.status != FAILED]
    for trial in scored:
        assert trial.tokens_per_second is not None
        assert trial.speedup == pytest.approx(trial.tokens_per_second / log.header.plain)
    completed = [t for t in scored if t.status == COMPLETED]
    assert {f.trial for f in log.finalists} >= {t.index for t in sorted(completed, key=lambda t: -(t.speedup or 0))[:2]}
    assert log.trials[1].source == "earlier"
    for finalist in log.finalists:
        assert finalist.speedup == pytest.approx(finalist.measured / finalist.plain)
    assert outcome.result.seconds["total"] >= outcome.result.seconds["candidates"] + outcome.result.seconds["ax"]


def test_the_same_seed_and_latency_table_give_the_same_trials(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path
) -> None:
    work, _ = finished
    search(tiny_artifact, tmp_path / "again", calibration, latency=work / LATENCY)
    first, second = read_search(work), read_search(tmp_path / "again")
    assert [without_times(t) for t in first.trials] == [without_times(t) for t in second.trials]
    assert first.header == second.header


def resumed(work: Path, artifact: Path, calibration: Path, **changes: Any) -> SearchOutcome:
    request = SearchRequest(folder=artifact, work=work, settings=settings(calibration, **changes), threads=1, resume=True)
    return run_search(request)


def test_a_killed_search_continues_after_its_last_complete_trial(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path
) -> None:
    work, _ = finished
    before = read_search(work)
    killed = Path(shutil.copytree(work, tmp_path / "killed"))
    lines = (killed / TRIALS).read_text(encoding="utf-8").splitlines(keepends=True)
    trials = [n for n, line in enumerate(lines) if json.loads(line)["kind"] == "trial"]
    # The process was killed while it wrote the third trial from the end.
    cut = trials[-3]
    (killed / TRIALS).write_text("".join(lines[:cut]) + lines[cut][:40], encoding="utf-8")
    resumed(killed, tiny_artifact, calibration)
    after = read_search(killed)
    assert after.trials[:-3] == before.trials[:-3]
    assert len(after.trials) == len(before.trials)
    assert after.result is not None
    assert after.sensitivity == before.sensitivity


def test_a_finished_search_can_be_given_more_trials(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path
) -> None:
    more = Path(shutil.copytree(finished[0], tmp_path / "more"))
    resumed(more, tiny_artifact, calibration, trials=WARM + 6)
    assert len(read_search(more).trials) == WARM + 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 5}, "seed"),
        ({"sampled_tokens": 14}, "its calibration texts differ"),
        ({"greedy_weight": 0.5}, "weights"),
        ({"batch": 3}, "batch"),
    ],
)
def test_a_search_is_not_resumed_with_other_settings(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    content = (copy / TRIALS).read_bytes()
    with pytest.raises(RecipeError, match=f"belongs to another search: {named}"):
        resumed(copy, tiny_artifact, calibration, **changes)
    assert (copy / TRIALS).read_bytes() == content


def test_another_model_s_trials_are_refused(
    finished: tuple[Path, SearchOutcome], demo_artifact: Path, calibration: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished[0], tmp_path / "copy"))
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    with pytest.raises(RecipeError, match="belongs to another search: num_layers was 3, and is 16 now"):
        resumed(copy, demo_artifact, calibration, sampled_tokens=8, greedy_weight=0.0)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def test_a_candidate_that_fails_is_recorded_and_does_not_end_the_search(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sstool.search.drafts.builder import DraftBuilder

    opened = DraftBuilder.open

    def failing(self: DraftBuilder, skip: SkipSet, int4: LowBitSet) -> Any:
        if len(skip.mlp) == 2:
            raise ConfigError("this one\nfails", "")
        return opened(self, skip, int4)

    monkeypatch.setattr(DraftBuilder, "open", failing)
    search(tiny_artifact, tmp_path / "work", calibration, latency=finished[0] / LATENCY)
    trials = read_search(tmp_path / "work").trials
    # Ax suggests other sets; it does not repeat the failed ones.
    assert len({t.skip for t in trials}) == len(trials) == WARM + 4
    failed = [t for t in trials if t.status == FAILED]
    assert failed
    assert all(t.error == "this one fails" and len(t.skip.mlp) == 2 for t in failed)
    assert any(t.status == COMPLETED for t in trials)


def test_the_limit_of_trials_ends_the_search(tiny_artifact: Path, calibration: Path, tmp_path: Path) -> None:
    outcome = search(tiny_artifact, tmp_path / "work", calibration, trials=5)
    assert outcome.num_trials == 5
    assert outcome.result.gain == 0
    assert "gained nothing" in outcome.result.remark or "No draft beat autoregressive" in outcome.result.remark


def test_the_search_ends_when_every_skip_set_was_tried(calibration: Path, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", num_hidden_layers=1)
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "artifact", skip=SkipSpec(mlp=(0,)))).folder
    outcome = run_search(SearchRequest(folder=artifact, work=tmp_path / "work", settings=settings(calibration), threads=1))
    assert {t.skip for t in read_search(tmp_path / "work").trials} == {SkipSet(attention=(0,)), SkipSet(mlp=(0,))}
    assert outcome.num_trials == 2
    assert "Ax failed" not in outcome.result.remark


def test_a_budget_that_is_too_small_is_refused_with_one_that_suffices(tiny_artifact: Path, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too small for one trial") as caught:
        search(tiny_artifact, tmp_path / "work", calibration, budget="0.01s")
    assert caught.value.hint.startswith("give at least ")


def test_prompts_that_cannot_be_used_are_left_out_or_refused(tiny_artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "prompts.jsonl"
    long = json.dumps({"id": "long", "prompt": "w1 " * 300})
    path.write_text(long + "\n", encoding="utf-8")
    with pytest.raises(PromptError, match="none of the 1 calibration prompts can be used"):
        search(tiny_artifact, tmp_path / "work", path)
    path.write_text('{"prompt": "w1"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(PromptError, match="line 2: not JSON"):
        search(tiny_artifact, tmp_path / "work", path)
    path.write_text(long + '\n{"prompt": "w1 w2"}\n{"id": "empty", "prompt": ""}\n', encoding="utf-8")
    search(tiny_artifact, tmp_path / "work", path, trials=2)
    assert [m for m in caplog.messages if "prompt long is left out" in m]
    assert [m for m in caplog.messages if "prompt empty is left out" in m]


def test_progress_reports_the_parts_and_the_best_speed(tiny_artifact: Path, calibration: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    request = SearchRequest(
        folder=tiny_artifact, work=tmp_path / "work", settings=settings(calibration, trials=4), threads=1, progress=reports.append
    )
    run_search(request)
    assert {"writing calibration texts", "measuring the engines", "trying candidates", "timing the finalists"} <= {p.part for p in reports}
    assert [p.done for p in reports if p.part == "trying candidates"] == [1, 2, 3, 4]
    assert reports[-1].best is not None


def test_a_search_in_which_ax_fails_still_has_finalists(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ax.api.client import Client

    def broken(*_: object, **__: object) -> Any:
        raise ArithmeticError("singular\nmatrix")

    monkeypatch.setattr(Client, "get_next_trials", broken)
    outcome = search(tiny_artifact, tmp_path / "work", calibration, latency=finished[0] / LATENCY)
    assert outcome.finalists
    assert outcome.result.remark.endswith("Ax failed during the search: ArithmeticError: singular matrix")


def test_a_full_disk_is_not_reported_as_a_failure_of_ax(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sstool.search.log.write import SearchWriter

    write = SearchWriter.write

    def full(self: SearchWriter, record: Any) -> None:
        if isinstance(record, Trial) and record.source == "ax":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, record)

    monkeypatch.setattr(SearchWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        search(tiny_artifact, tmp_path / "work", calibration, latency=finished[0] / LATENCY)


def test_a_model_that_ends_every_text_at_its_first_token_is_refused(calibration: Path, tmp_path: Path) -> None:
    silent = make_llama(tmp_path / "model", num_hidden_layers=2, eos_token_id=list(range(VOCAB)))
    artifact = export_artifact(ExportRequest(model=silent, out=tmp_path / "artifact", skip=SkipSpec(mlp=(1,)))).folder
    with pytest.raises(PromptError, match="ends its continuation of each of the 4 calibration prompts at the first token"):
        search(artifact, tmp_path / "work", calibration)


@pytest.mark.parametrize("content", ["{", '{"key": 1, "texts": []}', "[" * 100_000])
def test_damaged_texts_of_a_killed_search_are_made_again(
    content: str, finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path
) -> None:
    killed = Path(shutil.copytree(finished[0], tmp_path / "killed"))
    key = json.loads((killed / "texts.json").read_text())["key"]
    (killed / "texts.json").write_text(content.replace('"key": 1', f'"key": "{key}"'), encoding="utf-8")
    resumed(killed, tiny_artifact, calibration, trials=WARM + 5)
    assert len(read_search(killed).trials) == WARM + 5


def test_a_damaged_latency_table_of_an_earlier_search_is_measured_again(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = json.loads((finished[0] / LATENCY).read_text())
    table["rows"][0]["draft"]["attention"].pop()
    (tmp_path / "latency.json").write_text(json.dumps(table), encoding="utf-8")
    search(tiny_artifact, tmp_path / "work", calibration, latency=tmp_path / "latency.json", trials=2)
    assert "cannot be used and is measured again" in caplog.text
    assert len(read_search(tmp_path / "work").trials) == 2


def test_a_log_with_a_missing_trial_is_not_resumed(
    finished: tuple[Path, SearchOutcome], tiny_artifact: Path, calibration: Path, tmp_path: Path
) -> None:
    holed = Path(shutil.copytree(finished[0], tmp_path / "holed"))
    lines = (holed / TRIALS).read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "trial" and json.loads(line)["index"] == 9)
    content = "".join(line for n, line in enumerate(lines[: place + 3]) if n != place)
    (holed / TRIALS).write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match="trials are missing"):
        resumed(holed, tiny_artifact, calibration)
    assert (holed / TRIALS).read_text(encoding="utf-8") == content
