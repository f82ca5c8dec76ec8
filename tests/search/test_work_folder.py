"""A search's folder: gone when it is done, kept while it can be resumed, never cleared without being asked, and no place for debris."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssruntime.errors import ArtifactError, RecipeError
from sstool.search.log.records import TEXTS, TRIALS
from sstool.search.log.work_folder import check_work, work_folder

TRIAL = '{"kind": "trial", "index": 0}\n'


def begin(out: Path, *names: str) -> Path:
    folder = out.with_name(f"{out.name}.search")
    folder.mkdir()
    for name in names:
        (folder / name).write_text(TRIAL)
    return folder


def test_it_is_there_for_the_block_only(tmp_path: Path) -> None:
    with work_folder(tmp_path / "deep" / "out", resume=False) as folder:
        assert folder == tmp_path / "deep" / "out.search"
        (folder / TRIALS).write_text(TRIAL)
    assert not folder.exists()


def test_what_can_be_resumed_outlives_a_failure(tmp_path: Path) -> None:
    def fail(*names: str) -> None:
        with work_folder(tmp_path / "deep" / "out", resume=False) as folder:
            for name in names:
                (folder / name).write_text(TRIAL)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        fail(TEXTS)
    assert (tmp_path / "deep" / "out.search" / TEXTS).exists()


def test_trials_are_not_thrown_away_unasked(tmp_path: Path) -> None:
    folder = begin(tmp_path / "out", TRIALS)
    with pytest.raises(RecipeError, match="holds an interrupted search of 1 trials") as caught, work_folder(tmp_path / "out", resume=False):
        pass
    assert "--resume" in caught.value.hint
    assert "--force" in caught.value.hint
    assert (folder / TRIALS).read_text() == TRIAL
    with work_folder(tmp_path / "out", resume=True):
        assert (folder / TRIALS).read_text() == TRIAL
    begin(tmp_path / "out", TRIALS)
    with work_folder(tmp_path / "out", resume=False, force=True):
        assert not list(folder.iterdir())


def test_a_live_search_is_not_taken_for_an_interrupted_one(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out", resume=False) as folder:
        (folder / TRIALS).write_text(TRIAL)
        for resume in (False, True):
            with pytest.raises(RecipeError, match="another process is searching"):
                check_work(tmp_path / "out", resume=resume, force=True)
    check_work(tmp_path / "out", resume=False, force=False)


def test_what_was_published_is_not_taken_for_interrupted(tmp_path: Path) -> None:
    folder = begin(tmp_path / "out", TRIALS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / TRIALS).write_text(TRIAL)
    with work_folder(tmp_path / "out", resume=False):
        assert not list(folder.iterdir())


def test_the_root_is_no_place() -> None:
    with pytest.raises(ArtifactError, match="/ cannot be the folder of"), work_folder(Path("/"), resume=False):
        pass


def test_debris_of_a_kill_is_swept_and_others_files_are_not(tmp_path: Path) -> None:
    folder = begin(tmp_path / "out", TEXTS)
    for name in (".artifact.0123.sstool-tmp", ".report.html.4567.sstool-tmp", ".texts.json.89ab.sstool-tmp"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    with work_folder(tmp_path / "out", resume=False):
        assert not list(folder.iterdir())
    (begin(tmp_path / "out") / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with (
            pytest.raises(ArtifactError, match="holds files that no search wrote"),
            work_folder(tmp_path / "out", resume=False, force=force),
        ):
            pass
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_one_process_has_it(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "out", resume=False),
        pytest.raises(RecipeError, match="another process is searching in"),
        work_folder(tmp_path / "out", resume=False),
    ):
        pass
