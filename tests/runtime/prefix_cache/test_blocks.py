"""The prefix cache itself: what is found, what goes first, and what happens when something goes wrong."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssruntime import prefix_cache
from ssruntime.prefix_cache import BLOCK, PrefixCache

ENTRY = 8
SIZE = BLOCK * ENTRY


class Entries:
    """A KV cache whose entries tell which text they belong to."""

    def __init__(self, text: str = "", ids: Sequence[int] = ()) -> None:
        # As in a model, an entry depends on all tokens up to its own.
        self.entries = [hash((text, *ids[: at + 1])) for at in range(len(ids))]
        self.num_read = 0

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Fills blocks."""
        for block in blocks:
            block[...] = np.array(self.entries[start : start + BLOCK], dtype=np.int64).view(np.uint8)
            start += BLOCK
            self.num_read += 1

    def write_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Keeps the content of blocks."""
        assert start == 0
        self.entries = [int(one) for block in blocks for one in block.view(np.int64)]


def ids_of(letters: str) -> list[int]:
    """Returns a text with a block for each letter."""
    return [ord(letter) for letter in letters for _ in range(BLOCK)]


def keep(cache: PrefixCache, letters: str, namespace: str = "") -> int:
    """Keeps a text; returns the number of blocks that were copied."""
    kv = Entries(namespace, ids_of(letters))
    cache.keep(namespace, ids_of(letters), kv)
    return kv.num_read


def known(cache: PrefixCache, letters: str, namespace: str = "") -> int:
    """Returns the number of blocks that are found of a text, and checks their content."""
    ids, kv = [*ids_of(letters), 0], Entries()
    count = cache.fill(namespace, ids, kv)
    assert kv.entries == Entries(namespace, ids[:count]).entries
    return count // BLOCK


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(4 * SIZE, ENTRY)


def test_a_beginning_is_kept_once_and_found_by_every_text_that_has_it(cache: PrefixCache) -> None:
    assert [keep(cache, "abc"), keep(cache, "abc"), keep(cache, "abd")] == [3, 0, 1]
    assert [known(cache, text) for text in ("abc", "abd", "abx", "axc", "b", "")] == [3, 3, 2, 1, 0, 0]
    asked = (4 * 3 + 1) * BLOCK + 6  # each prompt has a token more
    assert cache.stats() == (asked, 9 * BLOCK, 4 * BLOCK, 4 * SIZE, 4 * SIZE)


def test_the_last_token_of_a_prompt_is_never_found(cache: PrefixCache) -> None:
    ids = ids_of("abc")
    cache.keep("", ids, Entries("", ids))
    found = [cache.fill("", ids[:length], Entries()) for length in (1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK)]
    assert found == [0, 0, BLOCK, BLOCK, 2 * BLOCK, 2 * BLOCK]


def test_a_block_that_is_not_full_is_not_kept(cache: PrefixCache) -> None:
    ids = ids_of("ab")[:-1]
    cache.keep("", ids, Entries("", ids))
    assert known(cache, "ab") == 1


def test_namespaces_share_nothing(cache: PrefixCache) -> None:
    assert [keep(cache, "ab", "one"), keep(cache, "ab", "two")] == [2, 2]
    assert [known(cache, "ab", "one"), known(cache, "ab", "two"), known(cache, "ab"), known(cache, "ab", "on")] == [2, 2, 0, 0]


def test_the_least_recently_used_goes_first_and_ends_before_beginnings(cache: PrefixCache) -> None:
    keep(cache, "abc")
    keep(cache, "x")
    assert known(cache, "abc") == 3
    keep(cache, "y")
    assert [known(cache, text) for text in ("x", "abc", "y")] == [0, 3, 1]
    keep(cache, "z")
    assert [known(cache, text) for text in ("abc", "y", "z")] == [2, 1, 1]


def test_a_text_longer_than_the_cache_keeps_its_beginning(cache: PrefixCache) -> None:
    keep(cache, "xy")
    assert keep(cache, "abcdef") == 4
    assert keep(cache, "abcdef") == 0
    assert [known(cache, "abcdef"), known(cache, "xy")] == [4, 0]


def test_a_namespace_without_blocks_is_forgotten(cache: PrefixCache) -> None:
    for number in range(20):
        keep(cache, "ab", str(number))
    assert len(cache._roots) == 2


@pytest.mark.parametrize(("capacity", "entry"), [(0, ENTRY), (SIZE - 1, ENTRY), (SIZE, 0)])
def test_a_cache_without_room_is_off(capacity: int, entry: int) -> None:
    cache = PrefixCache(capacity, entry)
    assert not cache.is_on
    assert [keep(cache, "ab"), known(cache, "ab")] == [0, 0]
    assert cache.stats() == (0, 0, 0, 0, 0)


@given(st.integers(1, 6), st.lists(st.tuples(st.booleans(), st.text("ab", max_size=4), st.sampled_from("xy")), max_size=30))
def test_any_use_finds_what_a_plain_list_of_blocks_would(capacity: int, uses: list[tuple[bool, str, str]]) -> None:
    """The list has the beginnings of all texts: the most recently used first, short ones before long ones."""
    cache, kept = PrefixCache(capacity * SIZE, ENTRY), list[tuple[str, str]]()
    for is_kept, letters, namespace in uses:
        chain = [(namespace, letters[: at + 1]) for at in range(len(letters))]
        found = next((at for at, one in enumerate(chain) if one not in kept), len(chain))
        if is_kept:
            keep(cache, letters, namespace)
            used = chain
        else:
            assert known(cache, letters, namespace) == found
            used = chain[:found]
        kept = ([*used, *(one for one in kept if one not in used)])[:capacity]
        assert cache.stats().kept_bytes == len(kept) * SIZE
    for namespace, letters in kept:
        assert known(cache, letters, namespace) == len(letters)


def test_several_threads(cache: PrefixCache) -> None:
    texts = ["abc", "abd", "ax", "y", "yz", "abcd"]

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            text = texts[rng.integers(len(texts))]
            keep(cache, text) if rng.random() < 0.5 else known(cache, text)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.stats().kept_tokens <= 4 * BLOCK
    assert keep(cache, "abcd") + known(cache, "abcd") >= 4


class Failing(Entries):
    """A KV cache that cannot be copied."""

    error: BaseException = ValueError("a copy fails")

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Fails."""
        raise self.error

    def write_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Fails."""
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a copy fails"), KeyboardInterrupt()])
def test_after_a_copy_that_failed_nothing_is_known_and_all_goes_on(cache: PrefixCache, error: BaseException) -> None:
    kv = Failing("", ids_of("abcd"))
    kv.error = error
    for use in (cache.keep, cache.fill):
        keep(cache, "ab")
        with pytest.raises(type(error)):
            use("", ids_of("abcd"), kv)
        assert known(cache, "ab") == 0
    assert [keep(cache, "abcd"), known(cache, "abcd")] == [4, 4]


class Reentrant(Entries):
    """A KV cache during whose copy the garbage collector ends another request, in the same thread."""

    def __init__(self, cache: PrefixCache, ids: Sequence[int]) -> None:
        super().__init__("", ids)
        self.cache = cache

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Uses the cache in the middle of a copy."""
        assert [keep(self.cache, "xy"), known(self.cache, "ab")] == [0, 0]
        super().read_kv(start, blocks)


def test_a_use_in_the_middle_of_a_copy_does_nothing(cache: PrefixCache) -> None:
    keep(cache, "a")
    cache.keep("", ids_of("ab"), Reentrant(cache, ids_of("ab")))
    assert [known(cache, "ab"), known(cache, "xy")] == [2, 0]


class Waiting(Entries):
    """A KV cache whose copy takes long."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__("", ids)
        self.is_copied, self.may_end = threading.Event(), threading.Event()

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Waits."""
        self.is_copied.set()
        assert self.may_end.wait(60)
        super().read_kv(start, blocks)


def test_no_thread_waits_for_ever(cache: PrefixCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "PATIENCE", 0.01)
    kv = Waiting(ids_of("ab"))
    thread = threading.Thread(target=cache.keep, args=("", ids_of("ab"), kv))
    thread.start()
    assert kv.is_copied.wait(60)
    assert [keep(cache, "xy"), known(cache, "ab")] == [0, 0]
    kv.may_end.set()
    thread.join()
    assert known(cache, "ab") == 2


def test_a_fork_in_the_middle_of_a_copy_leaves_a_cache_that_is_off(cache: PrefixCache) -> None:
    keep(cache, "a")
    kv = Waiting(ids_of("ab"))
    thread = threading.Thread(target=cache.keep, args=("", ids_of("ab"), kv))
    thread.start()
    assert kv.is_copied.wait(60)
    child = os.fork()
    if child == 0:
        is_right = [keep(cache, "xy"), known(cache, "a"), *cache.stats()[2:]] == [0, 0, 0, 0, 0]
        cache.close()
        os._exit(0 if is_right else 1)
    _, status = os.waitpid(child, 0)
    kv.may_end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert known(cache, "ab") == 2


def test_without_memory_the_cache_stays_as_large_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    cache = PrefixCache(2**62, 2**50)
    assert [keep(cache, "ab"), known(cache, "ab")] == [0, 0]
    assert not cache.is_on
    assert "there is no more memory" in caplog.text


def test_a_closed_cache_keeps_nothing(cache: PrefixCache) -> None:
    keep(cache, "ab")
    cache.close()
    assert [keep(cache, "ab"), known(cache, "ab")] == [0, 0]
    assert cache.stats()[2:] == (0, 0, 0)
