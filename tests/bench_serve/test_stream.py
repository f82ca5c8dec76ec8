"""A recorder takes text, times, ends and token counts from the chunks of completions and chats."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from sstool.bench_serve.errors import RequestFailedError
from sstool.bench_serve.rows import Timing, make_row
from sstool.bench_serve.sse import Event, EventReader
from sstool.bench_serve.stream import StreamRecorder
from tests.bench_serve.scripted_server import DONE, delta, event, text, usage


def record(*pieces: bytes) -> StreamRecorder:
    """Records events that come one second apart, the first at second 1."""
    recorder, reader = StreamRecorder(), EventReader()
    for at, piece in enumerate(pieces, start=1):
        for found in reader.feed(piece):
            recorder.take(found, float(at))
    return recorder


def row_of(recorder: StreamRecorder) -> Any:
    timing = Timing(origin=-2.0, due=-1.0, sent=0.5, ended=9.0)
    return make_row(id="a", index=0, timing=timing, stream=recorder, status="ok", error=None)


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def test_a_completion() -> None:
    recorder = record(text("Hé"), text("llo"), text("", "stop"), usage(3, 9), DONE)
    assert recorder.is_done
    row = row_of(recorder)
    assert (row.ttft_s, row.chunk_gaps_s, row.latency_s, row.start_s, row.wait_s) == (0.5, (1.0,), 8.5, 2.5, 1.5)
    assert (row.prompt_tokens, row.tokens, row.tokens_are_chunks, row.finish_reason) == (3, 9, False, "stop")
    assert row.text_sha256 == sha256("Héllo")


def test_inter_token_latency_counts_tokens_and_not_chunks() -> None:
    assert row_of(record(text("a"), text("bcd"), text("e", "length"), usage(1, 5), DONE)).itl_s == pytest.approx(2 / 4)


def test_the_token_that_ends_a_text_counts_with_its_time() -> None:
    assert row_of(record(text("a"), text("b"), text("", "stop"), usage(1, 3), DONE)).itl_s == pytest.approx(2 / 2)


def test_without_usage_chunks_are_counted() -> None:
    row = row_of(record(text("a"), text("b"), text("c"), text("", "stop"), DONE))
    assert (row.tokens, row.tokens_are_chunks, row.prompt_tokens) == (3, True, None)
    assert row.itl_s == pytest.approx(2 / 2)


@pytest.mark.parametrize("pieces", [(text("a", "stop"), usage(1, 1), DONE), (text("a"), DONE), (text("", "stop"), usage(1, 4), DONE)])
def test_one_token_has_no_inter_token_latency(pieces: tuple[bytes, ...]) -> None:
    assert row_of(record(*pieces)).itl_s is None


def test_a_text_without_tokens_has_no_first_token() -> None:
    row = row_of(record(text("", "stop"), usage(2, 1), DONE))
    assert (row.ttft_s, row.tokens, row.chunk_gaps_s) == (None, 1, ())


def test_a_chat_with_reasoning_and_tool_calls() -> None:
    call = {"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}
    pieces = (
        delta(role="assistant", content=""),
        delta(reasoning_content="hm", reasoning="hm"),
        delta(content="Hi"),
        delta(tool_calls=[call]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
        delta("tool_calls"),
    )
    recorder = record(*pieces, usage(1, 6), DONE)
    assert recorder.chunk_times == [2.0, 3.0, 4.0, 5.0]
    assert recorder.text_sha256 == sha256("hmHif{}")
    assert recorder.finish_reason == "tool_calls"


def test_the_digest_does_not_depend_on_chunks() -> None:
    assert record(text("ab"), text("c")).text_sha256 == record(text("a"), text("bc")).text_sha256 == sha256("abc")


def test_only_the_first_choice_and_nothing_after_the_end_counts() -> None:
    second = event({"choices": [{"index": 1, "text": "no"}]})
    recorder = record(text("a"), second, DONE, text("b"), event("not JSON"))
    assert recorder.chunk_times == [1.0]


def test_usage_in_every_chunk_and_nulls_are_taken() -> None:
    nulls = event({"choices": None, "usage": None, "metrics": None})
    recorder = record(event({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}), nulls, usage(2, 7), DONE)
    assert (recorder.prompt_tokens, recorder.completion_tokens) == (2, 7)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Event(name="message", data='{"error": {"message": "out of memory", "code": 500}}'), "error in the stream: out of memory"),
        (Event(name="message", data='{"error": "broken"}'), "error in the stream: broken"),
        (Event(name="message", data='{"object": "error", "message": "old form"}'), "error in the stream: old form"),
        (Event(name="error", data='{"message": "named"}'), "error in the stream: named"),
        (Event(name="error", data="plain"), "error in the stream: plain"),
        (Event(name="message", data="{nope"), "an event is not JSON: {nope"),
        (Event(name="message", data="[" * 100_000), "an event is not JSON: [[["),
        (Event(name="message", data="[1]"), "an event is not an object: [1]"),
    ],
)
def test_errors_within_a_stream(found: Event, reason: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        StreamRecorder().take(found, 0.0)
    assert caught.value.reason.startswith(reason)
    assert len(caught.value.reason) < 250


def test_texts_of_a_server_are_bounded_printable_and_without_the_key() -> None:
    secret = "sk-very-secret"
    message = "\x1b[31mred\n" + "x" * 190 + secret + "y" * 1000
    with pytest.raises(RequestFailedError) as caught:
        StreamRecorder(secret=secret).take(Event(name="message", data=json.dumps({"error": {"message": message}})), 0.0)
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) < 250
    assert "sk-" not in caught.value.reason
