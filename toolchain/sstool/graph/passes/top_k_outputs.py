"""The graph itself says the most probable tokens and how sure it is, so that decoding seldom looks at the logits."""

from __future__ import annotations

import onnx_ir as ir

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.constants import int64_constant


class TopKOutputsPass(ir.passes.InPlacePass):
    """Adds the best tokens of `logits` (`token`, `top_tokens`, `top_logits`) and the best one's softmax probability (`confidence`).

    The best of thousands of logits are found in the graph because that costs what finding the one best does, and because Python would
    need several array operations for it, each of them slow after a pass of the engine has emptied the processor's caches.
    Softmax, then the probability at the token, is 3 to 5 times faster on ONNX Runtime's CPU kernels than the maximum and
    ReduceLogSumExp, and at 8 positions faster than a second maximum over the probabilities (vocabulary 4,096 and 32,000).

    Requires: an output `logits` of 32-bit floats `[batch, num_logits, vocab]`, the last dimension known.
    Ensures: outputs, in this order, `token: int64[batch, num_logits]`, `confidence: float32[batch, num_logits]`,
    `top_tokens: int64[batch, num_logits, num_top]` and their `top_logits: float32[batch, num_logits, num_top]`, falling, `logits`,
    caches.
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
        top = _top(graph, logits, min(graph_io.MAX_TOP_TOKENS, vocab))
        token, confidence = _best(graph, logits, top[0])
        others = [v for v in graph.outputs if v is not logits]
        graph.outputs[:] = [token, confidence, *top, logits, *others]
        return ir.passes.PassResult(model, modified=True)


def _top(graph: ir.Graph, logits: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
    """Adds the `count` best tokens of each row, and their logits."""
    number = int64_constant(graph, "sstool.num_top", [count])
    values = _value(graph_io.TOP_LOGITS, ir.DataType.FLOAT, count)
    tokens = _value(graph_io.TOP_TOKENS, ir.DataType.INT64, count)
    graph.append(ir.node("TopK", [logits, number], attributes={"axis": -1}, outputs=[values, tokens], name="sstool.top"))
    return tokens, values


def _best(graph: ir.Graph, logits: ir.Value, top_tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Adds the best token of each row, and its probability."""
    token = _value(graph_io.TOKEN, ir.DataType.INT64)
    confidence = _value(graph_io.CONFIDENCE, ir.DataType.FLOAT)
    first = int64_constant(graph, "sstool.first", 0)
    chosen = ir.node("Gather", [top_tokens, first], attributes={"axis": -1}, outputs=[token], name="sstool.token")
    probabilities = ir.node("Softmax", [logits], attributes={"axis": -1}, name="sstool.probabilities")
    # Of all the top tokens: the first one's alone would take reshaping before and behind, one node more.
    top = ir.node("GatherElements", [probabilities.outputs[0], top_tokens], attributes={"axis": -1}, name="sstool.top_probabilities")
    best = ir.node("Gather", [top.outputs[0], first], attributes={"axis": -1}, outputs=[confidence], name="sstool.confidence")
    graph.extend([chosen, probabilities, top, best])
    return token, confidence


def _value(name: str, dtype: ir.DataType, *inner: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(["batch", "num_logits", *inner]))
