"""Joins the gate and the up projection of an MLP into one product: half the calls, and the same sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sstool.graph.passes.constants import initializer
from sstool.graph.sublayers import Sublayer, sublayer_of


class FuseGateUpPass(ir.passes.InPlacePass):
    """Replaces two products of one MLP with the same input by one product and a split of its result.

    One product of twice the width keeps all threads busy for longer, which saves time at every query length.
    Each number of the result is the same sum as before.

    Requires: weights are initializers float[input, output] of MatMul nodes.
    Ensures: no such pair is left. A pair is two MatMul nodes of one MLP with the same input, the only ones
    with that input, whose weights have the same shape and no other use.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        products: dict[tuple[Sublayer, ir.Value], list[ir.Node]] = {}
        for node in model.graph:
            sublayer, source = sublayer_of(node), node.inputs[0] if node.inputs else None
            if node.op_type == "MatMul" and sublayer is not None and sublayer.kind == "mlp" and source is not None:
                products.setdefault((sublayer, source), []).append(node)
        pairs = [nodes for nodes in products.values() if len(nodes) == 2 and _fit(nodes)]
        for first, second in pairs:
            _fuse(model.graph, first, second)
        return ir.passes.PassResult(model, modified=bool(pairs))


def _fit(nodes: Sequence[ir.Node]) -> bool:
    weights = [node.inputs[1] for node in nodes]
    if any(w is None or not w.is_initializer() or len(w.uses()) > 1 for w in weights):
        return False
    tensors = [w.const_value for w in weights if w is not None]
    return len(tensors) == 2 and all(t is not None and len(t.shape) == 2 for t in tensors) and _kind(tensors[0]) == _kind(tensors[1])


def _kind(tensor: ir.TensorProtocol | None) -> tuple[object, ...]:
    assert tensor is not None
    return (tensor.dtype, *tensor.shape.numpy())


def _fuse(graph: ir.Graph, first: ir.Node, second: ir.Node) -> None:
    source, weights = first.inputs[0], [node.inputs[1] for node in (first, second)]
    results = [node.outputs[0] for node in (first, second)]
    joined = _joined(graph, [w for w in weights if w is not None])
    product = ir.node("MatMul", [source, joined], name=f"{first.name}.gate_up", metadata_props=dict(first.metadata_props))
    product.outputs[0].name, product.outputs[0].type = f"{results[0].name}.gate_up", results[0].type
    split = ir.node(
        "Split",
        [product.outputs[0]],
        attributes={"axis": -1, "num_outputs": 2},
        num_outputs=2,
        name=f"{first.name}.halves",
        metadata_props=dict(first.metadata_props),
    )
    for half, result in zip(split.outputs, results, strict=True):
        half.name, half.type, half.shape = f"{result.name}.half", result.type, result.shape
    graph.insert_before(first, [product, split])
    for half, result in zip(split.outputs, results, strict=True):
        ir.convenience.replace_all_uses_with(result, half)
    graph.remove([first, second], safe=True)
    for weight in weights:
        assert weight is not None
        del graph.initializers[weight.name or ""]


def _joined(graph: ir.Graph, weights: Sequence[ir.Value]) -> ir.Value:
    """Returns a new initializer of the weights side by side; they are read when it is written."""
    tensors = [weight.const_value for weight in weights]
    first = tensors[0]
    assert first is not None
    rows, columns = first.shape.numpy()
    name = f"{weights[0].name}.gate_up"

    def read() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([t.numpy() for t in tensors if t is not None], axis=1), name=name)

    lazy = ir.LazyTensor(read, dtype=first.dtype, shape=ir.Shape([rows, 2 * columns]), name=name)
    return initializer(graph, name, lazy)
