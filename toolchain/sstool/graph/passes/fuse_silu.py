"""Fuses SiLU into one kernel; ONNX Runtime would do so only at a level that also renames values."""

from __future__ import annotations

import onnx_ir as ir


class FuseSiluPass(ir.passes.InPlacePass):
    """Turns `Mul(x, Sigmoid(x))` into `com.microsoft.QuickGelu(x, alpha=1)`.

    Requires: nothing.
    Ensures: no such pair is left, unless its Sigmoid has another use.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for node in list(graph):
            sigmoid = _sigmoid_of_silu(node)
            if sigmoid is None:
                continue
            fused = ir.node(
                "QuickGelu",
                [sigmoid.inputs[0]],
                attributes={"alpha": 1.0},
                domain="com.microsoft",
                name=node.name,
                metadata_props=dict(node.metadata_props),
            )
            ir.convenience.replace_nodes_and_values(graph, node, [node, sigmoid], [fused], node.outputs, fused.outputs)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _sigmoid_of_silu(node: ir.Node) -> ir.Node | None:
    """Returns the Sigmoid of the SiLU that ends in `node`; None for any other node."""
    if node.op_type != "Mul":
        return None
    for own, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        sigmoid = None if own is None else own.producer()
        if (
            sigmoid is not None
            and sigmoid.op_type == "Sigmoid"
            and sigmoid.inputs[0] is other
            and len(list(sigmoid.outputs[0].uses())) == 1
        ):
            return sigmoid
    return None
