"""Kills at random moments of an export: the old artifact loads every time, the next export succeeds, and nothing piles up."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Final

import pytest

import ssruntime
from ssruntime.artifact import check_digests, read_artifact
from sstool.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from tests.toolchain.conftest import SKIP

KILLS: Final = 50
OTHER_SKIP: Final = SkipSpec(attention=(1,), mlp=(0, 3))


def forked_export(model: Path, out: Path, skip: SkipSpec) -> int:
    """Starts an export in a child that shares this process's imports; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        export_artifact(ExportRequest(model=model, out=out, force=True, skip=skip))
        status = 0
    finally:
        os._exit(status)


def seconds_of_an_export(model: Path, out: Path) -> float:
    begun = time.monotonic()
    _, status = os.waitpid(forked_export(model, out, SKIP), 0)
    assert status == 0
    return time.monotonic() - begun


@pytest.mark.slow
def test_kills_at_random_moments_of_an_export(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    # A child has none of its parent's threads, so it must not wait for torch's.
    torch.set_num_threads(1)
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "artifacts" / "tiny"
    longest = seconds_of_an_export(tiny_model, out)
    moments = random.Random(0)
    finished = 0
    for number in range(KILLS):
        child = forked_export(tiny_model, out, (SKIP, OTHER_SKIP)[number % 2])
        time.sleep(moments.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        finished += status == 0
        check_digests(read_artifact(out))
        assert len(list(out.parent.iterdir())) <= 2, "the debris of one kill, until the next export sweeps it"
    assert finished < KILLS
    assert seconds_of_an_export(tiny_model, out) > 0
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]
    with ssruntime.load(out, verify=True) as engine:
        assert engine.generate([5, 6, 7], ssruntime.GenerationConfig(max_new_tokens=4, temperature=0.0, ignore_eos=True)).token_ids
    entries = [p for p in (tmp_path / "cache").rglob("*") if "sstool-tmp" in p.name]
    assert not entries
