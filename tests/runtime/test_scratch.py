"""Scratch folders are published by one rename or removed; `sweep` removes only those of dead processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssruntime.scratch import remove_tree, scratch_folder, sweep, sync_tree

HOLD = """
import sys
from pathlib import Path
from ssruntime.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "file").write_text("x")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def hold(parent: Path, name: str) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process that holds a scratch folder until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, parent / process.stdout.readline().strip()


NAMES = ["pack", "a.b", "with space", "*", "[x]?", "ünï", "-", "a" * 200, "..", "{}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_scratch_folder_is_published_by_rename(tmp_path: Path, name: str) -> None:
    with scratch_folder(tmp_path, name) as folder:
        assert folder.name.startswith(f".{name}.")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
        sync_tree(folder)
        folder.rename(tmp_path / "published")
    assert [p.name for p in tmp_path.iterdir()] == ["published"]
    assert (tmp_path / "published" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_scratch_folder_is_removed_if_its_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with scratch_folder(tmp_path, "pack") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_parent_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch_folder(tmp_path / "none", "pack"):
        pass


def test_scratch_folders_in_use_are_not_swept(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "pack") as first, scratch_folder(tmp_path, "pack") as second:
        sweep(tmp_path, "pack")
        assert first != second
        assert first.exists()
        assert second.exists()


@pytest.mark.parametrize("name", ["pack", "*[?]"])
def test_scratch_folders_of_killed_processes_are_swept(tmp_path: Path, name: str) -> None:
    killed, debris = hold(tmp_path, name)
    running, held = hold(tmp_path, name)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert (debris / "file").exists()
        with scratch_folder(tmp_path, name) as mine:
            assert not debris.exists()
            assert held.exists()
            assert mine.exists()
    finally:
        running.communicate()
    assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_folders_of_other_names_files_and_links_are_not_swept(tmp_path: Path) -> None:
    kept = [".other.0123.sstool-tmp", ".pack.0123.tmp", "pack.0123.sstool-tmp", ".packs.0123.sstool-tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / ".pack.file.sstool-tmp").write_text("not a folder")
    (tmp_path / ".pack.link.sstool-tmp").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".pack.0123.sstool-tmp").mkdir()
    sweep(tmp_path, "pack")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, ".pack.file.sstool-tmp", ".pack.link.sstool-tmp"])
    sweep(tmp_path / "none", "pack")


def protected(parent: Path) -> Path:
    """Makes a folder and a subfolder without write permission; returns the folder."""
    folder = parent / "kept"
    (folder / "search").mkdir(parents=True)
    (folder / "search" / "file").write_text("x")
    (folder / "search").chmod(0o555)
    folder.chmod(0o555)
    return folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folders_are_removed_too(tmp_path: Path) -> None:
    remove_tree(protected(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_target_of_a_link_is_left_unchanged(tmp_path: Path) -> None:
    other = protected(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(other)
    remove_tree(folder)
    assert not folder.exists()
    folder.symlink_to(other)
    remove_tree(folder)
    assert (other / "search" / "file").read_text() == "x"
    assert other.stat().st_mode & 0o777 == (other / "search").stat().st_mode & 0o777 == 0o555
    remove_tree(other)
