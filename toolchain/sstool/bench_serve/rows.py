"""One request and what became of it: the record that every figure is computed from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from sstool.bench_serve.acceptance import Speculation
from sstool.bench_serve.stream import StreamRecorder

Status = Literal["ok", "refused", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRow:
    """One request. Times are seconds.

    Attributes:
        id: name of the prompt in its file.
        index: 0-based position of the request in its run; its seed derives from it.
        start_s: when it was sent, after the start of the run.
        wait_s: how long it waited between its arrival and being sent, because the arrivals were late or too
            many requests were in flight; None in a closed loop, where requests have no arrival.
        ttft_s: from being sent to the first chunk with text; None if no text came.
        itl_s: inter-token latency: (last token - first token) / (tokens - 1). The last token came with the
            last text or with the reason of the end, whichever was later. None with fewer than two tokens.
        chunk_gaps_s: times between chunks with text; a chunk may hold several tokens.
        latency_s: from being sent to `[DONE]`, or to the failure.
        prompt_tokens: number of tokens of the prompt, if the server says it.
        tokens: number of tokens of the output.
        tokens_are_chunks: whether `tokens` counts chunks with text, because the server counts no tokens.
        finish_reason: why the server ended the text; None if it does not say it.
        status: `ok`, `refused` (status 429), `failed`, or `cancelled` by an interrupt.
        error: what happened to a request that is not ok; else None.
        text_sha256: SHA-256 of the text, as far as it came.
        speculation: what the response says about its draft tokens; None if it says nothing.
    """

    id: str
    index: int
    start_s: float
    wait_s: float | None
    ttft_s: float | None
    itl_s: float | None
    chunk_gaps_s: tuple[float, ...]
    latency_s: float
    prompt_tokens: int | None
    tokens: int
    tokens_are_chunks: bool
    finish_reason: str | None
    status: Status
    error: str | None
    text_sha256: str
    speculation: Speculation | None

    def to_json(self) -> dict[str, object]:
        """Returns the object that `--save` writes for the request."""
        names = [name for name in self.__dataclass_fields__ if name != "speculation"]
        speculation = None if self.speculation is None else self.speculation.to_json()
        return {**{name: getattr(self, name) for name in names}, "speculative_decoding": speculation}


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a request was due, sent and over, in seconds of one clock.

    Attributes:
        origin: start of the run.
        due: arrival of the request; None in a closed loop.
        sent: when it was sent.
        ended: when it succeeded or failed.
    """

    origin: float
    due: float | None
    sent: float
    ended: float


def make_row(*, id: str, index: int, timing: Timing, stream: StreamRecorder, status: Status, error: str | None) -> RequestRow:  # noqa: A002 - the name in the file
    """Returns the row of a request whose stream was recorded, as far as it came."""
    times = stream.chunk_times
    tokens = len(times) if stream.completion_tokens is None else stream.completion_tokens
    return RequestRow(
        id=id,
        index=index,
        start_s=timing.sent - timing.origin,
        wait_s=None if timing.due is None else timing.sent - timing.due,
        ttft_s=times[0] - timing.sent if times else None,
        itl_s=_inter_token_latency(stream),
        chunk_gaps_s=tuple(b - a for a, b in itertools.pairwise(times)),
        latency_s=timing.ended - timing.sent,
        prompt_tokens=stream.prompt_tokens,
        tokens=tokens,
        tokens_are_chunks=stream.completion_tokens is None,
        finish_reason=stream.finish_reason,
        status=status,
        error=error,
        text_sha256=stream.text_sha256,
        speculation=stream.speculation,
    )


def _inter_token_latency(stream: StreamRecorder) -> float | None:
    times = stream.chunk_times
    if stream.completion_tokens is None:  # an end-of-sequence token has no text, so it is not counted, and its time neither
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    if not times or stream.completion_tokens < 2:
        return None
    last = times[-1] if stream.finished_at is None else max(times[-1], stream.finished_at)
    return (last - times[0]) / (stream.completion_tokens - 1)
