"""The inputs and the RoPE attribute of GroupQueryAttention, ONNX Runtime's fused attention."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

SEQLENS_INPUT: Final = 5
TOTAL_INPUT: Final = 6
TABLE_INPUTS: Final = (7, 8)
"""RoPE tables: cosines, sines."""
POSITIONS_INPUT: Final = 9
BIAS_INPUT: Final = 10
QUERY_LENGTHS_INPUT: Final = 16


def attentions(graph: ir.Graph) -> list[ir.Node]:
    """Returns the graph's GroupQueryAttention nodes, in its order."""
    return [node for node in graph if node.op_type == "GroupQueryAttention"]


def applies_rope(attention: ir.Node) -> bool:
    """Returns whether a GroupQueryAttention applies RoPE."""
    return "do_rotary" in attention.attributes and attention.attributes["do_rotary"].as_int() == 1
