"""Adds on-graph TopK and the confidence as outputs, so that decoding seldom reads all logits."""

from __future__ import annotations

import onnx_ir as ir

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.constants import int64_constant


class TopKOutputsPass(ir.passes.InPlacePass):
    """Adds the top tokens of `logits`, their logits, and the softmax probability of the best one.

    In the graph, the top tokens cost as much as the best one alone. In Python, they would take several array
    operations, each of them slow because an engine's pass has just filled the processor's caches.
    `confidence` comes from a softmax and a gather, the fastest way on ONNX Runtime's CPU kernels.

    Requires: an output `logits: float32[batch, num_logits, vocab]` whose last dimension is known.
    Ensures: outputs in this order: `token: int64[batch, num_logits]`; `confidence: float32[batch,
    num_logits]`; `top_tokens: int64[batch, num_logits, num_top]`, best first; `top_logits: float32[batch,
    num_logits, num_top]`, the logits of these tokens; `logits`; the KV cache.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if there is no fp32 `logits`."""
        graph = model.graph
        logits = next((v for v in graph.outputs if v.name == graph_io.LOGITS), None)
        if logits is None or logits.dtype != ir.DataType.FLOAT:
            raise UnsupportedModelError("the graph has no fp32 output 'logits'", "this model cannot be exported yet")
        vocab = None if logits.shape is None else logits.shape[-1]
        if not isinstance(vocab, int):
            raise UnsupportedModelError("the graph does not say how large its vocabulary is", "this model cannot be exported yet")
        top = _add_top_tokens(graph, logits, min(graph_io.MAX_TOP_TOKENS, vocab))
        token, confidence = _add_best_token(graph, logits, top[0])
        others = [v for v in graph.outputs if v is not logits]
        graph.outputs[:] = [token, confidence, *top, logits, *others]
        return ir.passes.PassResult(model, modified=True)


def _add_top_tokens(graph: ir.Graph, logits: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
    """Adds the `count` most probable tokens of each row, best first; returns them and their logits."""
    number = int64_constant(graph, "sstool.num_top", [count])
    values = _value(graph_io.TOP_LOGITS, ir.DataType.FLOAT, count)
    tokens = _value(graph_io.TOP_TOKENS, ir.DataType.INT64, count)
    graph.append(ir.node("TopK", [logits, number], attributes={"axis": -1}, outputs=[values, tokens], name="sstool.top"))
    return tokens, values


def _add_best_token(graph: ir.Graph, logits: ir.Value, top_tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Adds the most probable token of each row; returns it and its probability."""
    token = _value(graph_io.TOKEN, ir.DataType.INT64)
    confidence = _value(graph_io.CONFIDENCE, ir.DataType.FLOAT)
    first = int64_constant(graph, "sstool.first", 0)
    best_token = ir.node("Gather", [top_tokens, first], attributes={"axis": -1}, outputs=[token], name="sstool.token")
    probabilities = ir.node("Softmax", [logits], attributes={"axis": -1}, name="sstool.probabilities")
    # For all top tokens: the best one alone would need reshapes before and after, one node more in all.
    top = ir.node("GatherElements", [probabilities.outputs[0], top_tokens], attributes={"axis": -1}, name="sstool.top_probabilities")
    best = ir.node("Gather", [top.outputs[0], first], attributes={"axis": -1}, outputs=[confidence], name="sstool.confidence")
    graph.extend([best_token, probabilities, top, best])
    return token, confidence


def _value(name: str, dtype: ir.DataType, *inner: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(["batch", "num_logits", *inner]))
