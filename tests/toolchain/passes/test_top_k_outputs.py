"""The graph's most probable tokens, their logits and the best one's probability are those of numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.top_k_outputs import TopKOutputsPass
from tests.toolchain.passes.small_graphs import drawn, floats, model_of, named, run, typed


def model(vocab: int | str | None, *, name: str = "logits", dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """Returns a model with an output that stands for a KV cache, and with its input as `logits`."""
    x = floats("x", 1, "num_logits", vocab if isinstance(vocab, int) else "vocab")
    cache, logits = named(ir.node("Neg", [x]), "present.0.key"), named(ir.node("Cast", [x], attributes={"to": dtype.value}), name)
    typed(logits.outputs[0], dtype, None if vocab is None else [1, "num_logits", vocab])
    return model_of([x], [cache.outputs[0], logits.outputs[0]], [cache, logits])


@pytest.mark.parametrize("vocab", [5, graph_io.MAX_TOP_TOKENS, graph_io.MAX_TOP_TOKENS + 20])
def test_the_top_tokens_are_those_of_the_logits(vocab: int) -> None:
    done = TopKOutputsPass()(model(vocab))
    assert done.modified
    logits = drawn(1, 3, vocab)
    found = run(done.model, x=logits)
    assert list(found) == ["token", "confidence", "top_tokens", "top_logits", "logits", "present.0.key"]
    order = np.argsort(-logits, axis=-1, kind="stable")[..., : graph_io.MAX_TOP_TOKENS]
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_array_equal(found["top_tokens"], order)
    np.testing.assert_array_equal(found["top_logits"], np.take_along_axis(logits, order, axis=-1))
    np.testing.assert_array_equal(found["token"], order[..., 0])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found["confidence"], probabilities.max(axis=-1), rtol=1e-5)


def test_of_equal_logits_the_lower_token_comes_first() -> None:
    logits = np.zeros((1, 1, 6), dtype=np.float32)
    logits[0, 0, [4, 2]] = 1
    found = run(TopKOutputsPass()(model(6)).model, x=logits)
    assert found["top_tokens"][0, 0].tolist() == [2, 4, 0, 1, 3, 5]
    assert found["token"][0, 0] == 2


def test_the_shapes_of_the_outputs() -> None:
    outputs = {v.name: (v.dtype, v.shape) for v in TopKOutputsPass()(model(5)).model.graph.outputs}
    assert outputs["token"] == (ir.DataType.INT64, ir.Shape(["batch", "num_logits"]))
    assert outputs["confidence"] == (ir.DataType.FLOAT, ir.Shape(["batch", "num_logits"]))
    assert outputs["top_tokens"] == (ir.DataType.INT64, ir.Shape(["batch", "num_logits", 5]))
    assert outputs["top_logits"] == (ir.DataType.FLOAT, ir.Shape(["batch", "num_logits", 5]))


@pytest.mark.parametrize("changes", [{"name": "scores"}, {"dtype": ir.DataType.FLOAT16}])
def test_a_graph_without_fp32_logits_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModelError, match="no fp32 output 'logits'"):
        TopKOutputsPass().call(model(5, **changes))  # type: ignore[arg-type] # one of the keywords


@pytest.mark.parametrize("vocab", ["vocab", None])
def test_an_unknown_vocabulary_is_refused(vocab: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match="how large its vocabulary is"):
        TopKOutputsPass().call(model(vocab))
