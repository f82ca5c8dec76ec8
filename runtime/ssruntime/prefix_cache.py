"""Keeps the KV of earlier texts, so that a prompt that begins like one of them need not compute it again.

The KV entries of a prefix depend only on the tokens of the prefix. They are kept in blocks of `BLOCK` tokens,
which are copied from and to the KV caches of sequences. The blocks form a tree: a block is the child of the
block before it, and its key among its siblings is its token ids. A lookup therefore compares all token ids
from the first one on; there is no digest that could collide. A prefix that several texts share is kept once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import OrderedDict, abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

BLOCK: Final = 16
"""Tokens of a block. Half a block of a shared beginning is computed again on average."""
SLAB: Final = 32 * 2**20
"""Bytes that are reserved together: enough for huge pages, which are written at half the cost."""
PATIENCE: Final = 1.0
"""Longest wait for another thread's copy, in seconds; after that the cache is not used this time."""
_TOKEN: Final = np.dtype(np.int64)
_caches: Final[weakref.WeakSet[PrefixCache]] = weakref.WeakSet()


class KvEntries(Protocol):
    """The KV cache of one sequence; every `Slot` is one."""

    def read_kv(self, start: int, blocks: abc.Sequence[NDArray[np.uint8]]) -> None:
        """Fills blocks from the entries that begin with `start`."""

    def write_kv(self, start: int, blocks: abc.Sequence[NDArray[np.uint8]]) -> None:
        """Writes blocks to the entries that begin with `start`."""


class PrefixCacheStats(NamedTuple):
    """Counts of a prefix cache.

    Attributes:
        asked_tokens: prompt tokens of the requests that looked for their beginning.
        found_tokens: of these, the tokens whose KV was copied.
        kept_tokens: tokens whose KV is kept now.
        kept_bytes: size of that KV.
        capacity_bytes: size of the most KV that may be kept; 0 if the cache is off.
    """

    asked_tokens: int
    found_tokens: int
    kept_tokens: int
    kept_bytes: int
    capacity_bytes: int


@dataclass(slots=True, eq=False)
class _Node:
    """A block, and what continues it.

    Attributes:
        key: its token ids, as bytes.
        parent: the block before it; None for the root of a namespace, which is no block: its key is the name.
        memory: its KV; empty for a root.
        children: the blocks after it.
    """

    key: bytes
    parent: _Node | None
    memory: NDArray[np.uint8]
    children: dict[bytes, _Node] = field(default_factory=dict)


_NO_MEMORY: Final = np.empty(0, dtype=np.uint8)


class PrefixCache:
    """Blocks of KV, of which the least recently used go first. Safe to use from several threads.

    Copies are made with the lock held, so no block changes while it is copied. No thread waits for the lock
    without a limit: the garbage collector may end a request in the middle of a copy, in a thread that then
    waits for the pass of another thread, which may want this cache.
    """

    def __init__(self, capacity: int, entry_bytes: int) -> None:
        """Makes an empty cache.

        Args:
            capacity: size of the most KV to keep, in bytes; 0 switches the cache off.
            entry_bytes: size of the KV of one token, in bytes.
        """
        self._block_bytes = BLOCK * entry_bytes
        self._capacity = capacity // self._block_bytes if entry_bytes else 0
        """Most blocks."""
        self._made = 0
        """Blocks that memory is reserved for."""
        self._free: list[NDArray[np.uint8]] = []
        self._roots: dict[bytes, _Node] = {}
        # The least recently used first, and every block before the one that it hangs below. The first one
        # therefore has no children.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        self._asked = self._found = 0
        self._lock = threading.Lock()
        self._owner: int | None = None
        _caches.add(self)

    @property
    def is_on(self) -> bool:
        """Whether anything can be kept."""
        return self._capacity > 0

    def fill(self, namespace: str, ids: abc.Sequence[int], kv: KvEntries) -> int:
        """Copies the KV of the longest known beginning of a prompt, without its last token.

        Args:
            namespace: where to look; nothing is found that was kept in another namespace.
            ids: token ids of the prompt.
            kv: KV cache that the entries from 0 on are written to.

        Returns:
            Number of tokens whose entries were written.
        """
        found: list[_Node] = []
        with self._locked() as is_locked:
            if is_locked:
                found = self._chain(namespace, _keys(ids, (len(ids) - 1) // BLOCK))
                self._touch(found)
                if found:
                    kv.write_kv(0, [node.memory for node in found])
                self._asked += len(ids)
                self._found += len(found) * BLOCK
        return len(found) * BLOCK

    def keep(self, namespace: str, ids: abc.Sequence[int], kv: KvEntries) -> None:
        """Keeps the KV of a text as far as it fills blocks; what is kept already is not copied again.

        Args:
            namespace: where it can be found.
            ids: token ids whose entries in the KV cache are valid, from 0 on.
            kv: KV cache to copy from.
        """
        with self._locked() as is_locked:
            if not is_locked:
                return
            keys = _keys(ids, min(len(ids) // BLOCK, self._capacity))
            chain = self._chain(namespace, keys)
            self._touch(chain)
            missing = keys[len(chain) :]
            memory = self._take(len(missing), beside=len(chain)) if missing else []
            if not memory:
                return
            kv.read_kv(len(chain) * BLOCK, memory)
            name = _name(namespace)
            parent = chain[-1] if chain else self._roots.setdefault(name, _Node(name, None, _NO_MEMORY))
            for key, one in zip(missing, memory, strict=False):  # less memory than wanted keeps the beginning
                node = _Node(key, parent, one)
                parent.children[key] = node
                chain.append(node)
                parent = node
            self._touch(chain)

    def stats(self) -> PrefixCacheStats:
        """Returns the counts."""
        kept = len(self._nodes)
        size = self._block_bytes
        return PrefixCacheStats(self._asked, self._found, kept * BLOCK, kept * size, self._capacity * size)

    def close(self) -> None:
        """Keeps nothing from now on, and frees the memory."""
        self._capacity = 0
        with self._locked(even_if_off=True) as is_locked:
            if is_locked:
                self._forget()

    def abandon(self) -> None:
        """Switches the cache off in a forked process, where a thread that was changing it does not exist."""
        self._lock, self._owner, self._capacity = threading.Lock(), None, 0
        self._forget()

    @contextlib.contextmanager
    def _locked(self, *, even_if_off: bool = False) -> Iterator[bool]:
        """Returns a context manager that holds the lock, if it yields True."""
        # This thread may be in here already: the garbage collector ends requests at any moment.
        own = threading.get_ident()
        if not (self.is_on or even_if_off) or self._owner == own or not self._lock.acquire(timeout=PATIENCE):
            yield False
            return
        self._owner = own
        try:
            yield True
        except BaseException:  # an interrupt perhaps, in the middle of a change
            self._forget()
            raise
        finally:
            self._owner = None
            self._lock.release()

    # The functions below are called with the lock held.

    def _chain(self, namespace: str, keys: abc.Sequence[bytes]) -> list[_Node]:
        """Returns the kept blocks of a text from its beginning on."""
        node, chain = self._roots.get(_name(namespace)), list[_Node]()
        for key in keys:
            node = None if node is None else node.children.get(key)
            if node is None:
                break
            chain.append(node)
        return chain

    def _touch(self, chain: abc.Sequence[_Node]) -> None:
        """Makes a chain the most recently used one, or adds it."""
        for node in reversed(chain):
            self._nodes[node] = None
            self._nodes.move_to_end(node)

    def _take(self, wanted: int, *, beside: int) -> list[NDArray[np.uint8]]:
        """Returns memory for blocks; for fewer than wanted if the system has no more.

        Args:
            wanted: number of blocks.
            beside: number of the most recently used blocks, which stay.
        """
        while len(self._free) < wanted and self._made < self._capacity:
            count = min(self._capacity - self._made, max(1, SLAB // self._block_bytes))
            try:
                self._free.extend(np.empty((count, self._block_bytes), dtype=np.uint8))
            except MemoryError:
                logger.warning("the prefix cache stays at %d MB: there is no more memory", self._made * self._block_bytes >> 20)
                self._capacity = self._made
            else:
                self._made += count
        wanted = min(wanted, self._capacity - beside)
        while len(self._free) < wanted:
            self._free.append(self._evict())
        taken, self._free = self._free[:wanted], self._free[wanted:]
        return taken

    def _evict(self) -> NDArray[np.uint8]:
        """Forgets the least recently used block; returns its memory."""
        node, _ = self._nodes.popitem(last=False)
        parent = node.parent
        assert not node.children
        assert parent is not None
        del parent.children[node.key]
        if parent.parent is None and not parent.children:
            del self._roots[parent.key]
        return node.memory

    def _forget(self) -> None:
        self._roots, self._nodes, self._free, self._made = {}, OrderedDict(), [], 0


def _name(namespace: str) -> bytes:
    return namespace.encode("utf-8", "surrogatepass")


def _keys(ids: abc.Sequence[int], count: int) -> list[bytes]:
    """Returns the keys of the first `count` blocks of a text."""
    content = np.fromiter(ids, dtype=_TOKEN, count=count * BLOCK).tobytes()
    size = BLOCK * _TOKEN.itemsize
    return [content[at : at + size] for at in range(0, len(content), size)]


def _abandon_all() -> None:
    for cache in list(_caches):
        cache.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_abandon_all)
