"""After an export is killed at any moment, the old artifact loads and the next export cleans up."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Final

import pytest

import ssruntime
from ssruntime.artifact import check_digests, read_artifact
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from tests.toolchain.conftest import SKIP

KILLS: Final = 50
OTHER_SKIP: Final = SkipSpec(attention=(1,), mlp=(0, 3))


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Returns a context whose processes are forked from a server that has only made the imports.

    A fork of this process would wait for torch's threads, which a fork does not have.
    """
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sstool.pipelines.export", "sstool.validation.reference", "torch", "transformers", "mobius"])
    return context


def started_export(forks: ForkServerContext, model: Path, out: Path, skip: SkipSpec) -> ForkServerProcess:
    child = forks.Process(target=export_artifact, args=(ExportRequest(model=model, out=out, force=True, skip=skip),))
    child.start()
    return child


def seconds_of_an_export(forks: ForkServerContext, model: Path, out: Path) -> float:
    begun = time.monotonic()
    child = started_export(forks, model, out, SKIP)
    child.join()
    assert child.exitcode == 0
    return time.monotonic() - begun


@pytest.mark.slow
def test_an_export_killed_at_any_moment_keeps_the_old_artifact(tiny_model: Path, tmp_path: Path, forks: ForkServerContext) -> None:
    out = tmp_path / "artifacts" / "tiny"
    seconds_of_an_export(forks, tiny_model, out)  # starts the server, too
    longest = seconds_of_an_export(forks, tiny_model, out)
    moments = random.Random(0)
    finished = 0
    for number in range(KILLS):
        child = started_export(forks, tiny_model, out, (SKIP, OTHER_SKIP)[number % 2])
        time.sleep(moments.uniform(0.0, longest))
        child.kill()
        child.join()
        finished += child.exitcode == 0
        check_digests(read_artifact(out))
        assert len(list(out.parent.iterdir())) <= 2, "more than the temporary folder of the last kill is left"
    assert finished < KILLS
    assert seconds_of_an_export(forks, tiny_model, out) > 0
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]
    with ssruntime.load(out, verify=True) as engine:
        assert engine.generate([5, 6, 7], ssruntime.GenerationConfig(max_new_tokens=4, temperature=0.0, ignore_eos=True)).token_ids
    entries = [p for p in (tmp_path / "cache").rglob("*") if "sstool-tmp" in p.name]
    assert not entries
