"""Logs of JSON Lines that survive a kill: records are appended whole, and an incomplete line is not read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from ssruntime.scratch import write_whole


def whole_lines(content: bytes) -> list[bytes]:
    """Returns the complete lines, without line breaks; a last line without a line break is incomplete."""
    return content.split(b"\n")[:-1]


class JsonlLog:
    """An open log; append-only."""

    def __init__(self, path: Path, *, kept: Iterable[bytes] = ()) -> None:
        """Opens a log for appending.

        Args:
            path: path of the log; its folder must exist.
            kept: lines of the file to keep, in their order; all others are removed first. By default the log
                starts empty.

        Raises:
            OSError: if the file cannot be written.
        """
        content = b"".join(line + b"\n" for line in kept)
        if not path.exists() or path.read_bytes() != content:
            write_whole(path, content)
        self._handle: IO[bytes] = path.open("ab")

    def append(self, record: Mapping[str, object]) -> None:
        """Writes one record as one line. Raises OSError if the file cannot be written."""
        self._handle.write(json.dumps(record).encode() + b"\n")
        self._handle.flush()

    def close(self) -> None:
        """Closes the file."""
        self._handle.close()
