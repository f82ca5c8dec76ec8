"""A log keeps every record that was appended, however the process ends; a truncated line is not read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from sstool.jsonl_log import JsonlLog, whole_lines

KILLED: Final = """
import os, sys
from pathlib import Path
from sstool.jsonl_log import JsonlLog

log = JsonlLog(Path(sys.argv[1]))
for n in range(3):
    log.append({"n": n})
os.kill(os.getpid(), 9)
"""
FULL: Final = """
import resource, sys
from pathlib import Path
from sstool.jsonl_log import JsonlLog

log = JsonlLog(Path(sys.argv[1]))
log.append({"n": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
for attempt in range(2):
    try:
        log.append({"text": "x" * 100})
    except OSError as error:
        print(error.strerror)
"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", []), (b"cut", []), (b"one\n", [b"one"]), (b"one\ntwo\ncut", [b"one", b"two"]), (b"\n\n", [b"", b""])],
)
def test_a_line_without_a_line_end_is_not_read(content: bytes, expected: list[bytes]) -> None:
    assert whole_lines(content) == expected


def test_records_are_readable_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path)
    assert path.read_bytes() == b""
    records: list[dict[str, object]] = [{"kind": "a", "text": "line\nbreak \u00e9"}, {"kind": "b", "numbers": [1, 2.5, None]}]
    for count, record in enumerate(records, start=1):
        log.append(record)
        assert [json.loads(line) for line in whole_lines(path.read_bytes())] == records[:count]
    log.close()


def test_a_log_that_keeps_nothing_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"old\n")
    JsonlLog(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("content", [b"one\ntwo\ncut", b"one\ntwo\nthree\n", b"one\nx\ntwo\n", None])
def test_lines_that_are_not_kept_are_removed(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_bytes(content)
    log = JsonlLog(path, kept=iter([b"one", b"two"]))
    log.append({"n": 3})
    log.close()
    assert path.read_bytes() == b'one\ntwo\n{"n": 3}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_that_keeps_every_line_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"one\ntwo\n")
    before = path.stat()
    JsonlLog(path, kept=[b"one", b"two"]).close()
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_killed_process_leaves_every_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9
    assert [json.loads(line) for line in whole_lines(path.read_bytes())] == [{"n": n} for n in range(3)]


def test_a_full_disk_is_an_error_and_keeps_earlier_records(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], check=False, capture_output=True, text=True)
    assert done.stdout == "File too large\n" * 2
    assert whole_lines(path.read_bytes()) == [b'{"n": 0}']


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JsonlLog(tmp_path / "missing" / "log.jsonl")
