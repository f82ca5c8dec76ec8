"""A folder is published whole or not at all; after a kill the old one is whole and the next run cleans up."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ssruntime.artifact import MANIFEST
from ssruntime.errors import ArtifactError
from ssruntime.scratch import scratch_folder
from sstool.artifact_files import publish
from sstool.artifact_files.publish import recover, staged_folder, write_error

OURS = json.dumps({"schema_version": 1, "drafts": []})


def fill(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(OURS)
    (folder / "content").write_text(text)


def make_old(out: Path) -> None:
    out.mkdir()
    fill(out, "old")


def interrupted(out: Path, interrupt: BaseException) -> None:
    """Raises `interrupt` while `out` is being built."""
    with staged_folder(out, force=True) as folder:
        fill(folder, "half")
        raise interrupt


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_is_published_under_its_name_with_the_usual_permissions(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down" / "new"
    with staged_folder(out, force=False) as folder:
        assert folder.parent == out.parent
        assert not out.exists()
        fill(folder, "new")
    assert (out / "content").read_text() == "new"
    assert names(out.parent) == ["new"]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), ValueError("broken")])
def test_a_block_that_fails_leaves_no_files(interrupt: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(interrupt)):
        interrupted(tmp_path / "deep" / "new", interrupt)
    assert names(tmp_path) == []


def test_an_existing_folder_is_replaced_only_with_force(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists") as caught, staged_folder(tmp_path / "out", force=False):
        pass
    assert "--force" in caught.value.hint
    assert (tmp_path / "out" / "content").read_text() == "old"


def test_force_exchanges_old_and_new(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with staged_folder(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
        assert (tmp_path / "out" / "content").read_text() == "old"
    assert (tmp_path / "out" / "content").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_force_keeps_the_old_folder_if_the_block_fails(tmp_path: Path) -> None:
    make_old(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out", KeyboardInterrupt())
    assert (tmp_path / "out" / "content").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_there_is_a_whole_folder_at_every_moment_of_an_exchange(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_old(out)
    done = threading.Event()
    gone: list[str] = []

    def watch() -> None:
        while not done.is_set():
            try:
                (out / "content").read_text()
            except OSError as err:
                # The lookup may have entered the old folder just before its removal, which is allowed. A
                # missing `out` is not.
                if not out.exists():
                    gone.append(str(err))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(10):
            with staged_folder(out, force=True) as folder:
                fill(folder, f"number {number}")
    finally:
        done.set()
        watcher.join()
    assert not gone
    assert (out / "content").read_text() == "number 9"


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "out" / "content").read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("manifest", [None, '{"name": "a web app"}', "[]", "{"])
def test_force_never_replaces_a_folder_that_is_not_an_artifact(manifest: str | None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (out / MANIFEST).write_text(manifest)
    with pytest.raises(ArtifactError, match="no sstool artifact"), staged_folder(out, force=True):
        pass
    assert (out / "thesis.txt").read_text() == "years of work"


def test_force_replaces_an_artifact_with_a_truncated_manifest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("verify.onnx", "draft.onnx", "weights.bin", MANIFEST):
        (out / name).write_text("{")
    with staged_folder(out, force=True) as folder:
        fill(folder, "new")
    assert (out / "content").read_text() == "new"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_refused(force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError, match="is a file"), staged_folder(tmp_path / "out", force=force):
        pass
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("out", ["/proc/sstool-test", "/proc/deep/sstool-test", "{tmp}/file/out"])
def test_a_path_that_cannot_be_written_is_refused(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written") as caught, staged_folder(Path(out.format(tmp=tmp_path)), force=False):
        pass
    assert "--out" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(ArtifactError, match="cannot be written"), staged_folder(tmp_path / "out", force=False):
            pass
    finally:
        tmp_path.chmod(0o755)


def test_a_full_disk_is_an_error_that_leaves_no_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ArtifactError, match="no room on the disk"), staged_folder(tmp_path / "out", force=False) as folder:
            (folder / "weights").write_bytes(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []
    assert "no room" in write_error(tmp_path, OSError(errno.ENOSPC, "No space left on device")).message


def test_a_folder_created_while_the_block_runs_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="exists"), staged_folder(tmp_path / "out", force=False):
        make_old(tmp_path / "out")
    assert (tmp_path / "out" / "content").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    make_old(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with staged_folder(tmp_path / "link", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "content").read_text() == "new"


def killed_within(out: Path) -> None:
    """Runs a process that is killed while it builds `out`."""
    code = (
        "import os, signal, sys; from pathlib import Path; from sstool.artifact_files.publish import staged_folder\n"
        "with staged_folder(Path(sys.argv[1]), force=True) as folder:\n"
        "    (folder / 'weights').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_kill_keeps_the_old_folder_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_old(out)
    killed_within(out)
    assert (out / "content").read_text() == "old"
    assert len(names(tmp_path)) == 2
    with staged_folder(out, force=True) as folder:
        assert names(tmp_path) == sorted([folder.name, "out"])
        fill(folder, "new")
    assert names(tmp_path) == ["out"]
    assert (out / "content").read_text() == "new"


def test_the_temporary_folder_of_a_running_process_is_kept(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "out") as living:
        (living / "weights").write_text("in progress")
        with staged_folder(tmp_path / "out", force=False) as folder:
            fill(folder, "new")
        assert (living / "weights").read_text() == "in progress"
    assert names(tmp_path) == ["out"]


def without_exchange(source: Path, target: Path, flag: int) -> bool:
    if flag == publish._RENAME_EXCHANGE:
        return False
    source.rename(target)
    return True


def test_without_an_atomic_exchange_the_old_folder_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_rename", without_exchange)
    make_old(tmp_path / "out")
    with staged_folder(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "out" / "content").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_exchange_interrupted_after_its_first_step_is_undone(tmp_path: Path) -> None:
    make_old(tmp_path / ".out.sstool-aside")
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "content").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_an_exchange_interrupted_after_its_second_step_is_finished(tmp_path: Path) -> None:
    make_old(tmp_path / ".out.sstool-aside")
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "new")
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "content").read_text() == "new"
    assert names(tmp_path) == ["out"]


# File systems that cannot do everything


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOSYS, errno.ENOLCK])
def test_folders_are_published_where_they_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(_handle: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    make_old(tmp_path / "out")
    leftover = tmp_path / ".out.0123456789ab.sstool-tmp"
    leftover.mkdir()
    with staged_folder(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "out" / "content").read_text() == "new"
    assert names(tmp_path) == [leftover.name, "out"]  # it may be another process's


def test_folders_are_published_where_folders_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with staged_folder(tmp_path / "out", force=False) as folder:
        fill(folder, "new")
    assert (tmp_path / "out" / "content").read_text() == "new"


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(ArtifactError, match="is a mount point") as caught, staged_folder(tmp_path / "out", force=True):
        pytest.fail("the work began")
    assert str(tmp_path / "out" / "artifact") in caught.value.hint


def test_a_file_system_that_cannot_rename_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(*_: object) -> bool:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(publish, "_rename", rename)
    with pytest.raises(ArtifactError, match="cannot be written: Operation not permitted"), staged_folder(tmp_path / "out", force=False):
        pytest.fail("the work began")
    assert names(tmp_path) == []


def test_an_error_of_another_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    out = tmp_path / "outputs" / "out"
    for path, message in [
        (tmp_path / "weights", rf"{tmp_path}/weights cannot be used: Input/output error"),
        (out.parent / "model" / "weights", rf"{out.parent}/model/weights cannot be used: Input/output error"),
        (out.parent / ".out.x.sstool-tmp", rf"{out} cannot be written"),
    ]:
        with pytest.raises(ArtifactError, match=message), staged_folder(out, force=False):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    error = write_error(out, OSError(errno.EACCES, "Permission denied", str(out.parent / ".out.x.sstool-tmp")))
    assert error.message == f"{out.parent} cannot be written: Permission denied"


def cross_device(_source: Path, target: Path, flag: int) -> bool:
    """Renames as an overlay of a container does: folders of a lower layer cannot be renamed."""
    if flag == publish._RENAME_EXCHANGE:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(target))
    _source.rename(target)
    return True


def test_a_folder_that_cannot_be_renamed_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_rename", cross_device)
    make_old(tmp_path / "out")
    with staged_folder(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert (tmp_path / "out" / "content").read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("left", ["all", "a part", "nothing"])
def test_such_a_replacement_is_finished_after_a_kill(tmp_path: Path, left: str) -> None:
    """A kill comes before, while or after the old folder is removed."""
    out, upcoming = tmp_path / "out", tmp_path / ".out.sstool-next"
    if left != "nothing":
        make_old(out)
    if left == "a part":
        (out / MANIFEST).unlink()
    upcoming.mkdir()
    fill(upcoming, "new")
    recover(out)
    assert (out / "content").read_text() == "new"
    assert names(tmp_path) == ["out"]
