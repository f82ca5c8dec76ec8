"""Measures a large random model on one target: its passes against what the bytes allow."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ssruntime.artifact import VERIFY_GRAPH, Artifact
from ssruntime.backends.onnx_wire import external_data, external_initializers
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from sstool.selftest.exactness import write_artifact
from sstool.selftest.models import Shape, write_large
from sstool.selftest.rows import Rows
from sstool.skip_set import SkipSpec
from sstool.targets.base import GraphTarget

MAX_CONTEXT: Final = 2048
_CONTEXT: Final = 128
_WIDTHS: Final = (2, 4, 8, 16)
_TURNS: Final = 12
_NEW_TOKENS: Final = 96
_FLOOR_SHARE: Final = 0.7
_DRAFT_EXCESS: Final = 1.1
_VERIFY_COST: Final = 1.15
_HOST_SHARE: Final = 0.05
_COPY: Final = 2**28
"""Bytes of the copies that measure the processor's bandwidth: more than its caches hold."""


def measure_speed(rows: Rows, target: GraphTarget, shape: Shape, folder: Path, *, bandwidth: float) -> None:
    """Adds the rows of a large model on a target's own device.

    Args:
        rows: rows to add to.
        target: the target.
        shape: size of the model.
        folder: empty folder for the checkpoint and the artifact.
        bandwidth: bytes that the device reads in a second.
    """
    dtype = "fp32" if target.name == "ort-cpu" else "fp16"
    model = write_large(folder / "model", shape, max_context=MAX_CONTEXT, dtype=dtype)
    skip = SkipSpec(attention=shape.attention, mlp=shape.mlp)
    artifact = write_artifact(target, model, folder / "artifact", max_context=MAX_CONTEXT, skip=skip)
    with load(artifact.folder, max_sequences=1, prefix_cache=0) as engine:
        _check_steps(_Judge(rows, shape.title, target.name != "ort-cpu"), engine, artifact, shape, bandwidth=bandwidth)


def host_bandwidth() -> float:
    """Returns the bytes that the processor reads in a second, with all threads."""
    from concurrent.futures import ThreadPoolExecutor

    from ssruntime.machine import default_threads

    threads = default_threads()
    parts = [np.ones(_COPY // threads, dtype=np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.sum, parts))
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(lambda part: part.view(np.uint64).max(), parts))
            times.append(time.perf_counter() - begun)
    return sum(part.nbytes for part in parts) / min(times)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Adds rows; the bars are for GPUs, where verifying several tokens costs about one step."""

    rows: Rows
    title: str
    has_bars: bool

    def add(self, check: str, figure: str, *, holds: bool, bar: str, why: str | None = None) -> None:
        """Adds a row, judged where there are bars."""
        if self.has_bars:
            self.rows.judge(f"{self.title}: {check}", figure, holds=holds, bar=bar, why=why)
        else:
            self.rows.tell(f"{self.title}: {check}", figure, why)


def _check_steps(judge: _Judge, engine: Engine, artifact: Artifact, shape: Shape, *, bandwidth: float) -> None:
    slot = engine.backend.acquire(None)
    ids = [int(i) for i in np.random.default_rng(1).integers(3, artifact.manifest.model.vocab_size, _CONTEXT)]
    slot.prefill(ids)
    runs = {str(width): functools.partial(slot.verify, ids[:width], _CONTEXT) for width in _WIDTHS}
    runs["plain"] = functools.partial(slot.verify, ids[:1], _CONTEXT)
    runs["draft"] = functools.partial(slot.draft, ids[:1], _CONTEXT)
    seconds = _in_turns(runs)
    engine.backend.release(slot)
    draft, step = artifact.manifest.drafts[0], seconds["plain"]
    whole, own = (_weight_bytes(artifact, name) for name in (VERIFY_GRAPH, draft.graph))
    floor, share, ratio = whole / bandwidth, own / whole, seconds["draft"] / step
    judge.add(
        "plain step",
        f"{1e3 * step:.2f} ms, {floor / step:.0%} of the floor",
        holds=floor / step >= _FLOOR_SHARE,
        bar=f"{_FLOOR_SHARE:.0%} of the bandwidth floor",
        why=f"{whole / 1e9:.2f} GB at {bandwidth / 1e9:.0f} GB/s; random weights",
    )
    skipped = f"skips {len(draft.skip.attention)} attention and {len(draft.skip.mlp)} MLP sublayers ({shape.source})"
    figure = f"{ratio:.3f} of a plain step, at {share:.3f} of the bytes"
    judge.add("draft step", figure, holds=ratio <= _DRAFT_EXCESS * share, bar="its share of the bytes, and a tenth", why=skipped)
    ratios = ", ".join(f"{width}: {seconds[str(width)] / step:.2f}" for width in _WIDTHS)
    bar = f"8 tokens within {_VERIFY_COST}"
    judge.add("verify pass in plain steps", ratios, holds=seconds["8"] / step <= _VERIFY_COST, bar=bar)
    _check_host(judge, engine, ids)


def _check_host(judge: _Judge, engine: Engine, ids: list[int]) -> None:
    how = GenerationConfig(mode="speculative", temperature=0.0, max_new_tokens=_NEW_TOKENS, ignore_eos=True, exit="fixed", max_draft=4)
    engine.generate(ids, how)
    stats = engine.generate(ids, how).stats
    share = 1 - stats.engine_s / stats.decode_s
    judge.add("host time of speculative decoding", f"{share:.1%}", holds=share <= _HOST_SHARE, bar=f"{_HOST_SHARE:.0%}")


def _in_turns(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the median time of each run in seconds; they take turns, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_TURNS + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(found) for name, found in times.items()}


def _weight_bytes(artifact: Artifact, graph: str) -> int:
    """Returns the bytes that one pass of a graph reads: of an embedding, a few rows only."""
    found = external_initializers(artifact.path(graph).read_bytes())
    sizes = {name: int(external_data(tensor)["length"]) for name, tensor in found.items()}
    return sum(size for name, size in sizes.items() if "embed" not in name)
