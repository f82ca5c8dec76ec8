"""Reads server-sent events from bytes; however the bytes are split, the events are the same.

The format is that of the WHATWG's HTML standard, section 9.2.6. Lines are found in the bytes and decoded
whole, so that a character split between two reads stays whole.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_DEFAULT_NAME: Final = "message"
ERROR_NAME: Final = "error"


class EventTooLongError(ValueError):
    """An event has more than `MAX_EVENT_BYTES` bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event.

    Attributes:
        name: its `event` field; `message` if it has none.
        data: its `data` fields, joined by line feeds.
    """

    name: str
    data: str


class EventReader:
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._after_return = False
        self._is_first_line = True
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    @property
    def is_between_events(self) -> bool:
        """Whether no part of an event has been read that has not ended."""
        return not self._line and not self._data

    def feed(self, chunk: bytes) -> list[Event]:
        """Returns the events that end in the next bytes of the stream.

        Raises:
            EventTooLongError: if an event has more than `MAX_EVENT_BYTES` bytes.
        """
        if self._after_return and chunk:
            # A line that ends with CR LF may be split between the two.
            self._after_return = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return []
        self._after_return = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        events = []
        for part in ended:
            self._extend_line(part)
            line = bytes(self._line)
            self._line.clear()
            event = self._take_line(line)
            events += [] if event is None else [event]
        self._extend_line(rest)
        return events

    def _extend_line(self, part: bytes) -> None:
        self._line += part
        self._size += len(part)
        if self._size > MAX_EVENT_BYTES:
            raise EventTooLongError(f"an event has more than {MAX_EVENT_BYTES} bytes")

    def _take_line(self, line: bytes) -> Event | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            return self._end_event()
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", errors="replace")
        if field == b"event":
            self._name = text
        elif field == b"data":
            self._data.append(text)
        elif field == b"error":  # not in the standard: llama.cpp's server reports errors in a field of this name
            self._name = ERROR_NAME
            self._data.append(text)
        else:  # a comment, or a field that means nothing here
            self._size -= len(line)
        return None

    def _end_event(self) -> Event | None:
        event = Event(name=self._name or _DEFAULT_NAME, data="\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event
