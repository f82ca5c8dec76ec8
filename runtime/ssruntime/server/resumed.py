"""Resumes a request on another engine when its engine dies; the reader receives each token once.

A seed gives one text, so the other engine decodes the request from its beginning, and the output that the
reader has received already is dropped. The new chunks may be cut differently, but their text is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from ssruntime.results import Chunk


class Progress:
    """Counts the tokens and characters of a request that its reader has received."""

    def __init__(self) -> None:
        self._tokens = 0
        self._characters = 0

    async def rest(self, chunks: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk]:
        """Yields the part of a request's output that its reader has not received.

        Args:
            chunks: all chunks of the request, from its beginning.
        """
        old_tokens, old_characters = self._tokens, self._characters
        async for chunk in chunks:
            tokens, text = chunk.token_ids[old_tokens:], chunk.text[old_characters:]
            logprobs = chunk.logprobs[old_tokens:]
            old_tokens -= min(old_tokens, len(chunk.token_ids))
            old_characters -= min(old_characters, len(chunk.text))
            self._tokens += len(tokens)
            self._characters += len(text)
            if tokens or text or chunk.finish_reason is not None:
                yield dataclasses.replace(chunk, token_ids=tokens, text=text, logprobs=logprobs)


async def resumed(
    begin: Callable[[], AsyncIterator[Chunk]], dead: tuple[type[BaseException], ...], *, attempts: int
) -> AsyncGenerator[Chunk]:
    """Yields the chunks of a request, which begins again when its engine dies.

    Args:
        begin: begins the request on a living engine; returns all of its chunks.
        dead: errors that say that an engine died.
        attempts: how often the request may begin; the last of these errors is raised.
    """
    progress = Progress()
    for left in reversed(range(attempts)):
        try:
            async for chunk in progress.rest(begin()):
                yield chunk
        except dead:
            if not left:
                raise
        else:
            return
