"""Scripted artifacts: a test chooses the logits, and how they differ between query lengths.

Their ONNX graphs look the logits up in a table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ssruntime import Engine, load
from ssruntime.artifact import (
    DRAFT_GRAPH,
    MANIFEST,
    SCHEMA_VERSION,
    STEP_GRAPH,
    VERIFY_GRAPH,
    WEIGHTS,
    DraftEntry,
    FileEntry,
    KvLayout,
    Manifest,
    ModelInfo,
    SkipSet,
    file_digest,
)

VOCAB = 32
CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class Script:
    """A model whose logits depend only on the last token.

    Attributes:
        verify: float32[VOCAB, VOCAB], logits of the verify engine by last token.
        draft: the same for the draft engine; None for an artifact without a draft.
        bump: float32[VOCAB, VOCAB], added to `verify` in passes of query length `bump_width`, in place of
            rounding differences.
        bump_width: query length of those passes; 0 for every query length above 1.
    """

    verify: NDArray[np.float32]
    draft: NDArray[np.float32] | None
    bump: NDArray[np.float32] = field(default_factory=lambda: np.zeros((VOCAB, VOCAB), dtype=np.float32))
    bump_width: int = 0


def successor_table(best: float = 20.0) -> NDArray[np.float32]:
    """Returns logits float32[VOCAB, VOCAB]: after token i, token i + 1 has the logit `best`, all others 0."""
    table = np.zeros((VOCAB, VOCAB), dtype=np.float32)
    table[np.arange(VOCAB), (np.arange(VOCAB) + 1) % VOCAB] = best
    return table


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty cache folder that only this test uses."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[[Script], Path]:
    """Returns a function that writes a scripted artifact and returns its folder."""

    def make(script: Script) -> Path:
        folder = tmp_path / f"artifact{len(list(tmp_path.glob('artifact*')))}"
        folder.mkdir()
        write_artifact(folder, script)
        return folder

    return make


@pytest.fixture
def open_script(make_artifact: Callable[[Script], Path]) -> Iterator[Callable[[Script], Engine]]:
    """Yields a function that opens an engine on a scripted artifact; engines are closed after the test."""
    engines: list[Engine] = []

    def opened(script: Script) -> Engine:
        engines.append(load(make_artifact(script), threads=1, max_sequences=1))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()


def write_artifact(folder: Path, script: Script) -> None:
    """Writes an artifact: the graphs, a tokenizer with the words `t0` to `t31`, and the manifest."""
    verify = _graph("verify", script.verify, script.bump, script.bump_width)
    onnx.save_model(
        verify, str(folder / VERIFY_GRAPH), save_as_external_data=True, location=WEIGHTS, size_threshold=1024, convert_attribute=False
    )
    shutil.copyfile(folder / VERIFY_GRAPH, folder / STEP_GRAPH)
    if script.draft is not None:
        draft = _graph("draft", script.draft, np.zeros_like(script.draft), 0)
        onnx.save_model(draft, str(folder / DRAFT_GRAPH))
    vocabulary = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    files = {p.name: FileEntry(size=p.stat().st_size, sha256=file_digest(p)) for p in sorted(folder.iterdir())}
    drafts = (DraftEntry(name="draft", graph=DRAFT_GRAPH, dtype="fp32", skip=SkipSet(attention=(0,))),)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            source="scripted", revision=None, family="scripted", architecture="Table", num_layers=1, hidden_size=1, vocab_size=VOCAB,
            num_parameters=VOCAB * VOCAB, weight_bytes=4 * VOCAB * VOCAB, window=None,
        ),
        target="ort-cpu",
        dtype="fp32",
        max_context=CONTEXT,
        kv=KvLayout(num_layers=1, kv_heads=1, head_dim=16, dtype="fp32"),
        rope={},
        weights=(WEIGHTS,),
        drafts=drafts if script.draft is not None else (),
        files=files,
        tools={},
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _graph(name: str, table: NDArray[np.float32], bump: NDArray[np.float32], bump_width: int) -> onnx.ModelProto:
    """Returns a graph with the inputs and outputs of a real artifact's.

    It computes `logits = table[ids]`, and adds `bump[ids]` in passes of query length `bump_width`, or of
    every query length above 1 if `bump_width` is 0.
    """
    initializers = [
        numpy_helper.from_array(table.astype(np.float32), "table"),
        numpy_helper.from_array(bump.astype(np.float32), "bump"),
        numpy_helper.from_array(np.array([bump_width or 1], dtype=np.int64), "bump_width"),
        numpy_helper.from_array(np.array([-1], dtype=np.int64), "last_axis"),
        numpy_helper.from_array(np.array([VOCAB], dtype=np.int64), "num_top"),
        numpy_helper.from_array(np.array(0, dtype=np.int64), "best"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["plain_rows"]),
        helper.make_node("Gather", ["bump", "input_ids"], ["bump_rows"]),
        helper.make_node("Shape", ["input_ids"], ["width"], start=1, end=2),
        helper.make_node("Equal" if bump_width else "Greater", ["width", "bump_width"], ["is_bumped"]),
        helper.make_node("Cast", ["is_bumped"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bump_rows", "factor"], ["bump_used"]),
        helper.make_node("Add", ["plain_rows", "bump_used"], ["all_rows"]),
        helper.make_node("Unsqueeze", ["logits_index", "last_axis"], ["chosen"]),
        helper.make_node("GatherND", ["all_rows", "chosen"], ["logits"], batch_dims=1),
        helper.make_node("TopK", ["logits", "num_top"], ["top_logits", "top_tokens"], axis=-1),
        helper.make_node("Gather", ["top_tokens", "best"], ["token"], axis=-1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ReduceMax", ["probabilities"], ["confidence"], axes=[-1], keepdims=0),
    ]
    shapes = {"input_ids": ["B", "S"], "seqlens_k": ["B"], "total_sequence_length": [], "logits_index": ["B", "N"]}
    shapes |= {"position_ids": ["B", "S"], "past_length": ["B"], "tree_mask": ["B", 1, "S", "S"], "query_seqlens": ["B"]}
    types = dict.fromkeys(("query_seqlens", "seqlens_k", "total_sequence_length"), TensorProto.INT32) | {"tree_mask": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(k, types.get(k, TensorProto.INT64), v) for k, v in shapes.items()]
    outputs = [
        helper.make_tensor_value_info("token", TensorProto.INT64, ["B", "N"]),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["B", "N"]),
        helper.make_tensor_value_info("top_tokens", TensorProto.INT64, ["B", "N", VOCAB]),
        helper.make_tensor_value_info("top_logits", TensorProto.FLOAT, ["B", "N", VOCAB]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "N", VOCAB]),
    ]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
