"""Exported graphs have the contract's names, each weight once, and nothing for ONNX Runtime to rewrite."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ssruntime.artifact import DRAFT_GRAPH, STEP_GRAPH, VERIFY_GRAPH, WEIGHTS, SkipSet
from sstool.artifact_files.graph_files import EXTERNAL_FROM_BYTES
from sstool.checkpoint.describe import describe_checkpoint
from sstool.graph.build import build_decoder
from sstool.graph.lower import lower_draft, lower_verify, plan_lowering
from tests.toolchain.conftest import RunGraph, open_graph
from tests.toolchain.tiny_llama import LAYERS, VARIANTS, VOCAB, make_llama

IDS = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB, 24)]


def test_inputs_and_outputs_are_the_contract_s(verify_graph: ir.Model) -> None:
    session = open_graph(verify_graph)
    caches = {f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")}
    inputs = {v.name: (v.type, v.shape) for v in session.get_inputs()}
    tables = {"rope.every_layer.cos", "rope.every_layer.sin"}
    lengths = {"query_seqlens", "seqlens_k", "total_sequence_length", "past_length"}
    assert set(inputs) == {*tables, *lengths, "input_ids", "position_ids", "tree_mask", "logits_index", *(f"past.{c}" for c in caches)}
    assert inputs["query_seqlens"] == ("tensor(int32)", ["batch"])
    assert inputs["seqlens_k"] == ("tensor(int32)", ["batch"])
    assert inputs["total_sequence_length"] == ("tensor(int32)", [])
    assert inputs["position_ids"] == ("tensor(int64)", ["batch", "sequence_len"])
    assert inputs["past_length"] == ("tensor(int64)", ["batch"])
    assert inputs["tree_mask"] == ("tensor(float)", ["batch", 1, "sequence_len", "sequence_len"])
    assert inputs["logits_index"] == ("tensor(int64)", ["batch", "num_logits"])
    assert {tuple(inputs[name][1]) for name in tables} == {("positions", 8)}
    assert inputs["past.0.key"] == ("tensor(float)", ["batch", 2, "max_context", 16])
    outputs = {v.name: (v.type, v.shape) for v in session.get_outputs()}
    assert set(outputs) == {"token", "confidence", "top_tokens", "top_logits", "logits", *(f"present.{c}" for c in caches)}
    assert outputs["token"] == ("tensor(int64)", ["batch", "num_logits"])
    assert outputs["top_tokens"] == ("tensor(int64)", ["batch", "num_logits", min(64, VOCAB)])
    assert outputs["top_logits"] == ("tensor(float)", ["batch", "num_logits", min(64, VOCAB)])
    assert outputs["logits"] == ("tensor(float)", ["batch", "num_logits", VOCAB])
    assert outputs["present.0.key"] == inputs["past.0.key"]


def test_tokens_and_confidence_agree_with_the_logits(verify_graph: ir.Model, run_graph: RunGraph) -> None:
    result = run_graph(verify_graph, IDS)
    logits = result["logits"].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_array_equal(result["token"], logits.argmax(axis=-1))
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :64]
    np.testing.assert_array_equal(result["top_tokens"], order)
    np.testing.assert_array_equal(result["top_logits"], np.take_along_axis(result["logits"], order, axis=-1))
    np.testing.assert_allclose(result["confidence"], probabilities.max(axis=-1), rtol=1e-5)


def test_only_the_requested_positions_reach_the_lm_head(verify_graph: ir.Model, run_graph: RunGraph) -> None:
    every = run_graph(verify_graph, IDS)
    some = run_graph(verify_graph, IDS, [23, 0, 7])
    assert some["logits"].shape == (1, 3, VOCAB)
    np.testing.assert_allclose(some["logits"][0], every["logits"][0, [23, 0, 7]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gqa", "untied", "attention-bias", "yarn"])
def test_onnx_runtime_finds_nothing_to_rewrite(name: str, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", **VARIANTS[name])
    verify = lower_verify(build_decoder(model), plan_lowering(describe_checkpoint(model)))
    for graph in (verify, lower_draft(verify, SkipSet(attention=(1, 2), mlp=(0, 2)))):
        saved = tmp_path / "extended.onnx"
        open_graph(graph, level=ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, save_to=saved)
        extended = onnx.load(saved)
        assert Counter(n.op_type for n in extended.graph.node) == Counter(n.op_type for n in graph.graph)
        assert {i.name for i in extended.graph.initializer} == set(graph.graph.initializers)
        assert not graph.functions


def test_a_tied_embedding_is_stored_once(verify_graph: ir.Model) -> None:
    of_vocabulary = [
        name for name, value in verify_graph.graph.initializers.items() if value.shape is not None and VOCAB in value.shape.numpy()
    ]
    assert of_vocabulary == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", [STEP_GRAPH, DRAFT_GRAPH])
def test_every_weight_is_one_of_the_verify_graph(name: str, tiny_artifact: Path) -> None:
    verify = onnx.load(tiny_artifact / VERIFY_GRAPH, load_external_data=False)
    other = onnx.load(tiny_artifact / name, load_external_data=False)
    records = {i.name: i.SerializeToString() for i in verify.graph.initializer}
    assert other.graph.initializer
    for initializer in other.graph.initializer:
        assert initializer.SerializeToString() == records[initializer.name]


def test_small_tensors_stay_in_the_graph_and_large_ones_share_a_file(tiny_artifact: Path) -> None:
    end = 0
    for initializer in onnx.load(tiny_artifact / VERIFY_GRAPH, load_external_data=False).graph.initializer:
        size = int(np.prod(initializer.dims)) * onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type).itemsize
        assert (initializer.data_location == onnx.TensorProto.EXTERNAL) == (size >= EXTERNAL_FROM_BYTES)
        place = {entry.key: entry.value for entry in initializer.external_data}
        if place:
            assert place["location"] == WEIGHTS
            assert int(place["length"]) == size
            end = max(end, int(place["offset"]) + size)
    assert end == (tiny_artifact / WEIGHTS).stat().st_size


def test_graphs_do_not_contain_the_path_of_the_checkpoint(tiny_artifact: Path, tiny_model: Path) -> None:
    for name in (VERIFY_GRAPH, STEP_GRAPH, DRAFT_GRAPH):
        assert str(tiny_model.parent).encode() not in (tiny_artifact / name).read_bytes()
