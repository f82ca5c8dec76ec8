"""Replaces ONNX Runtime's activations and products by standard operators."""

from __future__ import annotations

import onnx_ir as ir

from sstool.targets.passes.inserter import Inserter, model_dtype, replace


class StandardActivationsPass(ir.passes.InPlacePass):
    """Replaces `QuickGelu`, `Gelu`, `FastGelu`, `BiasGelu` and `FusedMatMul` of com.microsoft.

    Requires: nothing.
    Ensures: none of these is left.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for node in [n for n in graph if n.domain == "com.microsoft" and n.op_type in _REPLACEMENTS]:
            insert = Inserter(graph, node, f"{node.name}.standard")
            replace(graph, node, _REPLACEMENTS[node.op_type](insert, node, model_dtype(graph)))
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _quick_gelu(insert: Inserter, node: ir.Node, dtype: ir.DataType) -> ir.Value:
    x = node.inputs[0]
    alpha = node.attributes["alpha"].as_float()
    assert x is not None
    scaled = x if alpha == 1 else insert.add("Mul", [x, insert.scalar(alpha, dtype)], dtype, x.shape)
    return insert.add("Mul", [x, insert.add("Sigmoid", [scaled], dtype, x.shape)], dtype, x.shape)


def _gelu(insert: Inserter, node: ir.Node, dtype: ir.DataType) -> ir.Value:
    x, *bias = node.inputs
    assert x is not None
    shape = x.shape
    if bias and bias[0] is not None:
        x = insert.add("Add", [x, bias[0]], dtype, shape)
    attributes = {"approximate": "tanh"} if node.op_type == "FastGelu" else {}
    return insert.add("Gelu", [x], dtype, shape, attributes)


def _product(insert: Inserter, node: ir.Node, dtype: ir.DataType) -> ir.Value:
    x, weight = node.inputs[:2]
    for name in ("transA", "transBatchA", "transBatchB"):
        assert name not in node.attributes or not node.attributes[name].as_int(), f"{node.name}: {name}"
    assert weight is not None
    if "transB" in node.attributes and node.attributes["transB"].as_int():
        dims = None if weight.shape is None else [*weight.shape][::-1]
        weight = insert.add("Transpose", [weight], dtype, dims, {"perm": [1, 0]})
    result = insert.add("MatMul", [x, weight], dtype, node.outputs[0].shape)
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    return result if alpha == 1 else insert.add("Mul", [result, insert.scalar(alpha, dtype)], dtype, node.outputs[0].shape)


_REPLACEMENTS = {"QuickGelu": _quick_gelu, "Gelu": _gelu, "FastGelu": _gelu, "BiasGelu": _gelu, "FusedMatMul": _product}
