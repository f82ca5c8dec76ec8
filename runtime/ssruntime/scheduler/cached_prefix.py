"""What one request finds in the prefix cache, and leaves there."""

from __future__ import annotations

from ssruntime.backends.base import Slot
from ssruntime.prefix_cache import BLOCK, PrefixCache
from ssruntime.sequence import Sequence


class CachedPrefix:
    """The use that a request makes of the prefix cache, between passes of its KV cache."""

    def __init__(self, cache: PrefixCache, namespace: str) -> None:
        """Takes the cache.

        Args:
            cache: prefix cache of the engine.
            namespace: the request finds only what requests of this namespace have left.
        """
        self._cache = cache
        self._namespace = namespace
        self._is_asked = False
        self._known = 0
        """Leading tokens of the text that the cache has seen."""

    def begin(self, sequence: Sequence, slot: Slot) -> None:
        """Copies what is known of the prompt, before its first pass; does nothing later.

        A request that waited for the prefill of others so finds what they have left meanwhile.
        """
        if not self._is_asked:
            self._is_asked = True
            self._known = self._cache.fill(self._namespace, sequence.ids, slot)
            if self._known:
                sequence.begin_at(self._known)

    def keep(self, sequence: Sequence, slot: Slot) -> None:
        """Keeps the KV of the tokens so far, if they fill another block."""
        # Past `start`, entries may be those of rejected tokens. A text that ended in the middle of a round is
        # even shorter.
        ids = sequence.ids[: sequence.start]
        if len(ids) // BLOCK > self._known // BLOCK:
            self._cache.keep(self._namespace, ids, slot)
            self._known = len(ids)
