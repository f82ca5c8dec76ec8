"""However a stream's bytes are split, its events are the same, and they are those of the standard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sstool.bench_serve.sse import MAX_EVENT_BYTES, Event, EventReader, EventTooLongError


def events(*chunks: bytes) -> list[Event]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


def messages(*data: str) -> list[Event]:
    return [Event(name="message", data=d) for d in data]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", messages("a", "b")),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", messages("a", "b")),
        (b"data: a\r\rdata: b\n\r\n", messages("a", "b")),
        (b"data: a\ndata: b\ndata:c\n\n", messages("a\nb\nc")),
        (b"data:  two spaces\n\n", messages(" two spaces")),
        (b"data\n\n", messages("")),
        (b"data: a:b\n\n", messages("a:b")),
        (b": ping\n\n:\n\ndata: a\n: within\n\n", messages("a")),
        (b"id: 7\nretry: 10\nunknown: x\ndata: a\n\n", messages("a")),
        (b"event: error\ndata: {}\n\ndata: a\n\n", [Event(name="error", data="{}"), *messages("a")]),
        (b"event: alone\n\ndata: a\n\n", messages("a")),
        (b'error: {"code": 500}\n\n', [Event(name="error", data='{"code": 500}')]),
        (b"\xef\xbb\xbfdata: a\n\n", messages("a")),
        (b"data: \xef\xbb\xbfa\n\n", messages("\ufeffa")),
        ("data: \u2028\x0b\x0c\x85\n\n".encode(), messages("\u2028\x0b\x0c\x85")),
        (b"data: \xff\n\n", messages("\ufffd")),
        (b"data: a\n\ndata: unfinished\n", messages("a")),
        (b"", []),
    ],
)
def test_events_are_the_standard_s(stream: bytes, expected: list[Event]) -> None:
    assert events(stream) == expected
    assert events(*(bytes([byte]) for byte in stream)) == expected


LINES = st.lists(
    st.one_of(
        st.just(""),
        st.text(max_size=8).map(lambda text: f"data: {text}"),
        st.sampled_from(["data", ": comment", "event: error", "data: 雪😀", "id: 1", "error: x"]),
    ),
    max_size=12,
)


@given(lines=LINES, ends=st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=12, max_size=12), data=st.data())
def test_any_split_gives_the_same_events(lines: list[str], ends: list[str], data: st.DataObject) -> None:
    stream = "".join(line + end for line, end in zip(lines, ends, strict=False)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert events(*pieces) == events(stream)


def test_a_reader_knows_whether_an_event_has_begun() -> None:
    reader = EventReader()
    assert reader.is_between_events
    reader.feed(b"data: a\n")
    assert not reader.is_between_events
    reader.feed(b"\n")
    assert reader.is_between_events
    reader.feed(b"dat")
    assert not reader.is_between_events


def test_an_endless_event_is_refused() -> None:
    reader = EventReader()
    reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES // 2))
    with pytest.raises(EventTooLongError):
        reader.feed(b"x" * (MAX_EVENT_BYTES // 2))


def test_many_events_and_comments_are_not_an_endless_one() -> None:
    reader = EventReader()
    for _ in range(3):
        reader.feed(b"data: " + b"x" * (MAX_EVENT_BYTES // 2) + b"\n\n:" + b"y" * (MAX_EVENT_BYTES // 2) + b"\n")
