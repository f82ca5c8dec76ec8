"""A cache that is too large loses its least recently used entries; engines that use them go on working."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssruntime.artifact import read_artifact
from ssruntime.backends.ort import packing
from ssruntime.engine import load
from tests.runtime.packing.entries import CONFIG, EXPECTED, PROMPT, artifacts, entries, entry_of, only_entry, opened


def size_of(entry: Path) -> int:
    return sum(p.stat().st_size for p in entry.iterdir())


def test_the_least_recently_used_goes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *older, newest = artifacts(tmp_path, 4)
    for age, folder in enumerate(older):
        load(folder, threads=1).close()
        os.utime(entry_of(cache, folder) / "entry.json", (1000 + age, 1000 + age))
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", str(3.5 * size_of(entry_of(cache, older[0])) / 1e9))
    load(older[0], threads=1).close()  # made first, but used now
    load(newest, threads=1).close()
    assert entries(cache) == sorted(entry_of(cache, folder) for folder in (older[0], older[2], newest))


def test_the_entry_in_use_stays_whatever_the_limit(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", "0")
    for folder in artifacts(tmp_path, 2):
        with load(folder, threads=1) as engine:
            assert engine.backend.packing == "shared"
        assert only_entry(cache) == entry_of(cache, folder)


@pytest.mark.parametrize("limit", ["much", "nan", "-1"])
def test_a_limit_that_is_no_size_is_named_once_and_evicts_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    first, second = artifacts(tmp_path, 2)
    load(first, threads=1).close()
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", limit)
    load(second, threads=1).close()
    assert len(entries(cache)) == 2
    (record,) = caplog.records
    assert f"SSTOOL_CACHE_MAX_GB must be a number of 0 or more, found {limit!r}" in record.getMessage()


def test_an_evicted_entry_that_is_mapped_goes_on_working(
    cache: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_MAX_GB", "0")
    with load(artifact, threads=1, max_sequences=2) as engine:
        (other,) = artifacts(tmp_path, 1)
        load(other, threads=1).close()
        assert not entry_of(cache, artifact).exists()
        held = engine.stream(PROMPT, CONFIG)  # so that the next request makes a cache that never ran before
        tokens = list(next(held).token_ids)
        assert engine.generate(PROMPT, CONFIG).token_ids == EXPECTED
        assert tokens + [t for chunk in held for t in chunk.token_ids] == EXPECTED


def test_discard_removes_the_one_entry_and_minds_none(cache: Path, artifact: Path, tmp_path: Path) -> None:
    packing.discard(read_artifact(artifact))  # there is not even a cache
    (other,) = artifacts(tmp_path, 1)
    opened(artifact)
    load(other, threads=1).close()
    for _ in range(2):
        packing.discard(read_artifact(artifact))
        assert only_entry(cache) == entry_of(cache, other)
    assert opened(artifact) == "shared"
