"""A search removes its work folder at the end, keeps it to be resumed, and clears it only with force."""

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


def test_the_folder_exists_only_within_the_block(tmp_path: Path) -> None:
    with work_folder(tmp_path / "deep" / "out", resume=False) as folder:
        assert folder == tmp_path / "deep" / "out.search"
        (folder / TRIALS).write_text(TRIAL)
    assert not folder.exists()


def test_a_folder_that_can_be_resumed_is_kept_after_a_failure(tmp_path: Path) -> None:
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


def test_trials_are_deleted_only_with_force(tmp_path: Path) -> None:
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


def test_a_running_search_is_not_taken_for_an_interrupted_one(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out", resume=False) as folder:
        (folder / TRIALS).write_text(TRIAL)
        for resume in (False, True):
            with pytest.raises(RecipeError, match="another process is searching"):
                check_work(tmp_path / "out", resume=resume, force=True)
    check_work(tmp_path / "out", resume=False, force=False)


def test_a_published_search_is_not_taken_for_an_interrupted_one(tmp_path: Path) -> None:
    folder = begin(tmp_path / "out", TRIALS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / TRIALS).write_text(TRIAL)
    with work_folder(tmp_path / "out", resume=False):
        assert not list(folder.iterdir())


def test_the_root_folder_is_refused() -> None:
    with pytest.raises(ArtifactError, match="/ cannot be the folder of"), work_folder(Path("/"), resume=False):
        pass


def test_temporary_files_of_a_killed_search_are_removed_and_other_files_are_kept(tmp_path: Path) -> None:
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


def test_only_one_process_can_use_the_folder(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "out", resume=False),
        pytest.raises(RecipeError, match="another process is searching in"),
        work_folder(tmp_path / "out", resume=False),
    ):
        pass
