"""Engines of one checkpoint for every target, on the processor, and how far their logits are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from ssruntime import load
from ssruntime.backends.base import Slot
from ssruntime.proposal import Alternative
from sstool.artifact_files.assemble import Lowering, assemble
from sstool.checkpoint.describe import describe_checkpoint
from sstool.hub import ResolvedModel
from sstool.skip_set import SkipSpec
from sstool.targets.registry import GRAPH_TARGETS
from tests.toolchain.tiny_llama import VOCAB

CONTEXT: Final = 64
"""More than twice the largest sliding window of the tests."""
IDS: Final = [int(i) for i in np.random.default_rng(3).integers(0, VOCAB, CONTEXT)]
PREFILL: Final = 20
WIDTHS: Final = (1, 4, 16, 1, 7, 2, 1, 12)
"""Query lengths of the passes after the prompt; together with it they fill the context."""
TREE_AT: Final = 6
Rows = NDArray[np.float32]


def write_engines(model: Path, out: Path, target: str, dtype: str) -> Path:
    """Writes an artifact that no gate has checked, and returns its folder."""
    checkpoint = describe_checkpoint(model)
    skip = SkipSpec(attention=(1, 2, checkpoint.num_layers - 1), mlp=(0, 2, 3))
    out.mkdir()
    lowering = Lowering(target=GRAPH_TARGETS[target], dtype=dtype, max_context=CONTEXT)
    assemble(out, ResolvedModel(source="model", folder=model, revision=None), checkpoint, skip, lowering)
    return out


@contextlib.contextmanager
def opened(folder: Path, *, on_cpu: bool) -> Iterator[Slot]:
    """Yields a slot of an artifact's engines."""
    with load(folder, threads=1, max_sequences=1, on_cpu=on_cpu) as engine:
        slot = engine.backend.acquire(0)
        yield slot
        engine.backend.release(slot)


def verify_rows(slot: Slot) -> Rows:
    """Returns the logits of a prompt, and of passes of many query lengths up to the context's end."""
    rows = [slot.forward(IDS[:PREFILL], 0, range(PREFILL)).logits.copy()]
    start = PREFILL
    for width in WIDTHS:
        rows.append(slot.verify(IDS[start : start + width], start).logits.copy())
        start += width
    assert start == CONTEXT
    return np.concatenate(rows)


def draft_rows(slot: Slot) -> Rows:
    """Returns the logits of the draft for the whole context."""
    return slot.draft_forward(IDS, 0, range(CONTEXT)).logits.copy()


def tree_rows(slot: Slot) -> Rows:
    """Returns the logits of a token tree, and of the chain after it, which overwrites its side branches."""
    slot.prefill(IDS[:TREE_AT])
    branches = [Alternative(0, 3), Alternative(0, 9), Alternative(2, 5)]
    tree = slot.verify(IDS[TREE_AT : TREE_AT + 4], TREE_AT, branches).logits.copy()
    return np.concatenate([tree, slot.verify(IDS[TREE_AT + 1 : TREE_AT + 5], TREE_AT + 1).logits.copy()])


def row_errors(first: Path, second: Path, rows: Sequence[Callable[[Slot], Rows]]) -> NDArray[np.float32]:
    """Returns the largest difference of two artifacts in each row, as a fraction of the largest logit."""
    errors = []
    with opened(first, on_cpu=False) as ours, opened(second, on_cpu=True) as theirs:
        for of in rows:
            expected = of(ours)
            errors.append(np.abs(of(theirs) - expected).max(axis=-1) / np.abs(expected).max())
    return np.concatenate(errors)


def operators(folder: Path, graph: str) -> list[str]:
    """Returns the operators of an artifact's graph."""
    return [node.op_type for node in onnx.load(folder / graph, load_external_data=False).graph.node]
