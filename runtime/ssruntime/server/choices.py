"""The running completions of one HTTP request, as one stream of pieces."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, Literal, NamedTuple

from ssruntime.errors import SelfSpecError
from ssruntime.logprobs import TokenLogprob
from ssruntime.preparation import Request
from ssruntime.results import DecodeStats
from ssruntime.server.errors import ApiError, api_error, engine_failed, stopping
from ssruntime.server.metrics import ServerMetrics
from ssruntime.server.schema.answer import Metrics, PromptTokensDetails, SpeculativeDecoding, Usage
from ssruntime.server.served_engine import RunningRequest

FinishReason = Literal["stop", "length"]
_REASONS: Final[dict[str, FinishReason]] = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


class Piece(NamedTuple):
    """New output of one choice.

    Attributes:
        choice: number of the choice.
        text: new text; it may be empty.
        tokens: new tokens.
        logprobs: their log probabilities, if these were asked for.
        finish_reason: set with the choice's last piece.
    """

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None


class Choices:
    """The completions of one HTTP request.

    Attributes:
        finish_reasons: those of the finished choices, in the order in which they finished.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        running: Sequence[RunningRequest],
        *,
        arrived: float,
        metrics: ServerMetrics,
        on_end: Callable[[Choices, float | None], None],
    ) -> None:
        """Takes requests that have begun.

        Args:
            requests: a request for each choice.
            running: the same, running.
            arrived: time of `time.perf_counter` at which the HTTP request came.
            metrics: where tokens and times are counted.
            on_end: called with this object, and the seconds since the arrival if all choices finished, once
                nothing runs any more.
        """
        self._requests = requests
        self._running = running
        self._arrived = arrived
        self._metrics = metrics
        self._on_end = on_end
        self._tokens = [0] * len(requests)
        self._stats: dict[int, DecodeStats] = {}
        """Statistics of the finished choices."""
        self.finish_reasons: list[FinishReason] = []
        self._is_closed = False

    @property
    def count(self) -> int:
        """The number of choices."""
        return len(self._requests)

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Yields the pieces of all choices as they come. Closing the generator ends what still runs.

        Raises:
            ApiError: if a choice failed or was not finished in time.
        """
        try:
            async with contextlib.aclosing(self._pieces_of(0) if self.count == 1 else self._merged()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.close()

    def cancel(self) -> None:
        """Ends what still runs: the reader of the pieces gets an error."""
        for one in self._running:
            one.cancel()

    def close(self) -> None:
        """Ends what still runs, when nobody reads the pieces any more; of no effect the second time."""
        for one in self._running:
            one.cancel()
        if not self._is_closed:
            self._is_closed = True
            is_finished = len(self._stats) == self.count
            self._on_end(self, time.perf_counter() - self._arrived if is_finished else None)

    def usage(self) -> Usage:
        """Returns the numbers of tokens so far; a prompt counts once for all of its choices.

        Of a prompt, those tokens were cached that none of its finished choices had to compute.
        """
        prompts = {id(request.ids): len(request.ids) for request in self._requests}
        cached: dict[int, int] = {}
        for index, stats in self._stats.items():
            own = id(self._requests[index].ids)
            cached[own] = min(cached.get(own, stats.cached_tokens), stats.cached_tokens)
        prompt, completion = sum(prompts.values()), sum(self._tokens)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(cached.values())),
        )

    def figures(self) -> Metrics | None:
        """Returns how well the drafts of finished choices were accepted; None if nothing was drafted."""
        histogram: list[int] = []
        proposed = 0
        for stats in self._stats.values():
            for (sources, accepted), rounds in stats.outcomes.items():
                histogram += [0] * (accepted + 1 - len(histogram))
                histogram[accepted] += rounds
                proposed += rounds * len(sources)
        steps = sum(histogram)
        if not steps:
            return None
        accepted = sum(count * rounds for count, rounds in enumerate(histogram))
        return Metrics(
            speculative_decoding=SpeculativeDecoding(
                mean_acceptance_length=1 + accepted / steps,
                draft_acceptance_rate=accepted / proposed,
                acceptance_histogram=histogram,
                num_spec_steps=steps,
                num_draft_tokens=proposed,
                num_accepted_draft_tokens=accepted,
            )
        )

    async def _merged(self) -> AsyncGenerator[Piece]:
        found: asyncio.Queue[Piece | ApiError | None] = asyncio.Queue()

        async def read(index: int) -> None:
            try:
                async for piece in self._pieces_of(index):
                    found.put_nowait(piece)
            except ApiError as err:
                found.put_nowait(err)
            else:
                found.put_nowait(None)

        readers = [asyncio.create_task(read(index)) for index in range(self.count)]
        left = self.count
        try:
            while left:
                piece = await found.get()
                if piece is None:
                    left -= 1
                elif isinstance(piece, ApiError):
                    raise piece
                else:
                    yield piece
        finally:
            for reader in readers:
                reader.cancel()

    async def _pieces_of(self, index: int) -> AsyncGenerator[Piece]:
        """Yields the pieces of a choice.

        Raises:
            ApiError: if it failed or was not finished in time.
        """
        before = self._arrived
        is_finished = False
        try:
            async for chunk in self._running[index]:
                now, count = time.perf_counter(), len(chunk.token_ids)
                self._metrics.count_tokens(count)
                if count and not self._tokens[index]:
                    self._metrics.add_first_token(len(self._requests[index].ids), now - before)
                elif count:
                    self._metrics.add_tokens(count, now - before)
                before = now if count else before
                self._tokens[index] += count
                reason = None
                if chunk.finish_reason is not None:
                    reason, is_finished = self._end(index, chunk.finish_reason, chunk.stats or DecodeStats()), True
                yield Piece(index, chunk.text, chunk.token_ids, chunk.logprobs, reason)
            if not is_finished:  # it was cancelled while it waited for a sequence
                raise self._unfinished("cancelled")
        except SelfSpecError as err:
            raise api_error(err) from err
        except ApiError:
            raise
        except Exception as err:
            raise engine_failed(err) from err

    def _end(self, index: int, engine_reason: str, stats: DecodeStats) -> FinishReason:
        reason = _REASONS.get(engine_reason)
        if reason is None:
            raise self._unfinished(engine_reason)
        self._stats[index] = stats
        self.finish_reasons.append(reason)
        seconds = time.perf_counter() - self._arrived
        self._metrics.add_end(reason, len(self._requests[index].ids), self._tokens[index], seconds, stats)
        return reason

    def _unfinished(self, engine_reason: str) -> ApiError:
        """Returns the error of a choice that ended before its text did."""
        if engine_reason == "timeout":
            return ApiError(503, "the request was not finished within the server's time limit", code="timeout")
        return stopping("the server stopped before the request was finished")
