"""A request that begins again elsewhere gives its reader each token and each character once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssruntime import Chunk, DecodeStats, TokenLogprob
from ssruntime.server.resumed import resumed

TEXT = "The text of thirty tokens, or so."
TOKENS = tuple(range(30))


class DeadError(Exception):
    """An engine died."""


def chunks(token_cuts: list[int], text_cuts: list[int]) -> list[Chunk]:
    """Returns the request's chunks, cut at these places."""
    cuts = list(zip(sorted(token_cuts), sorted(text_cuts), strict=True))
    found = []
    for (t0, c0), (t1, c1) in zip([(0, 0), *cuts], [*cuts, (len(TOKENS), len(TEXT))], strict=True):
        found.append(Chunk(TEXT[c0:c1], TOKENS[t0:t1], logprobs=tuple(TokenLogprob(-float(t)) for t in TOKENS[t0:t1])))
    last = found[-1]
    return [*found[:-1], Chunk(last.text, last.token_ids, "length", DecodeStats(), last.logprobs)]


pieces = st.integers(0, 12).flatmap(
    lambda count: st.builds(
        chunks,
        st.lists(st.integers(0, len(TOKENS)), min_size=count, max_size=count),
        st.lists(st.integers(0, len(TEXT)), min_size=count, max_size=count),
    )
)


@given(st.lists(st.tuples(pieces, st.integers(0, 13)), max_size=3), pieces)
def test_nothing_comes_twice(died: list[tuple[list[Chunk], int]], whole: list[Chunk]) -> None:
    lives = [(one[: min(count, len(one) - 1)], True) for one, count in died] + [(whole, False)]
    begun = 0

    async def begin() -> AsyncIterator[Chunk]:
        nonlocal begun
        content, dies = lives[begun]
        begun += 1
        for chunk in content:
            yield chunk
        if dies:
            raise DeadError

    async def read(attempts: int) -> list[Chunk]:
        return [chunk async for chunk in resumed(begin, (DeadError,), attempts=attempts)]

    found = asyncio.run(read(len(lives)))
    assert "".join(chunk.text for chunk in found) == TEXT
    assert tuple(token for chunk in found for token in chunk.token_ids) == TOKENS
    assert [one.logprob for chunk in found for one in chunk.logprobs] == [-float(token) for token in TOKENS]
    assert [chunk.finish_reason for chunk in found] == [None] * (len(found) - 1) + ["length"]
    if died:
        begun = 0
        with pytest.raises(DeadError):
            asyncio.run(read(len(died)))


def test_other_errors_are_the_reader_s() -> None:
    async def begin() -> AsyncIterator[Chunk]:
        yield Chunk("a", (1,))
        raise ValueError("not dead")

    async def read() -> None:
        async for _ in resumed(begin, (DeadError,), attempts=9):
            pass

    with pytest.raises(ValueError, match="not dead"):
        asyncio.run(read())
