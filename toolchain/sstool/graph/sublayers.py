"""Finds the sublayer of each node, and the residual adds, in any decoder graph that mobius builds.

The code needs no list of model families. A node's sublayer follows from its module path, which is in its
metadata. A residual add is an addition of two computed values outside every sublayer. It is a node of its
own, or fused with the norm that follows it.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from dataclasses import dataclass
from typing import Final, Literal

import onnx_ir as ir

Kind = Literal["attention", "mlp"]

_SCOPES: Final = "pkg.onnxscript.name_scopes"
_LAYER: Final = re.compile(r"(?:layers|h|blocks)\.(\d+)")
_MLP_NAMES: Final = frozenset({"mlp", "feed_forward", "ffn", "block_sparse_moe"})
NORM_OF_FUSED_ADD: Final = {"SkipSimplifiedLayerNormalization": "RMSNormalization", "SkipLayerNormalization": "LayerNormalization"}
"""Operators that fuse a residual add with a norm, and the operator of that norm alone."""
SUM_OUTPUT: Final = 3
"""Output of a fused residual add that is the sum; output 0 is the norm of the sum."""


@dataclass(frozen=True, order=True, slots=True)
class Sublayer:
    """The attention or the MLP of one decoder layer."""

    layer: int
    kind: Kind


def sublayer_of_path(path: tuple[str, ...]) -> Sublayer | None:
    """Returns the sublayer of a module path; None for norms, embeddings, the LM head and whole layers.

    Args:
        path: module names from the root on, for example `("model", "layers.1", "self_attn", "o_proj")`.
    """
    for part, child in itertools.pairwise(path):
        match = _LAYER.fullmatch(part)
        if match is None:
            continue
        if child in _MLP_NAMES:
            return Sublayer(int(match[1]), "mlp")
        if "attn" in child or child == "attention":
            # A norm named after the attention it follows (`post_attn_norm`) is not part of it.
            return None if "norm" in child else Sublayer(int(match[1]), "attention")
    return None


def sublayer_of(node: ir.Node) -> Sublayer | None:
    """Returns the sublayer that a node is part of; None for a node outside every sublayer."""
    return _sublayer_of_scopes(node.metadata_props.get(_SCOPES, "[]"))


def is_residual_add(node: ir.Node) -> bool:
    """Returns whether a node is a residual add: the sum of two computed values, outside every sublayer."""
    if node.op_type not in NORM_OF_FUSED_ADD and node.op_type != "Add":
        return False
    if len(node.inputs) < 2 or sublayer_of(node) is not None:
        return False
    return all(v is not None and v.const_value is None for v in node.inputs[:2])


def is_fused_residual_add(node: ir.Node) -> bool:
    """Returns whether a residual add is fused with a norm: output 0 is the norm of the sum, 3 the sum."""
    return node.op_type in NORM_OF_FUSED_ADD


def branch_of(value: ir.Value | None) -> Sublayer | None:
    """Returns the sublayer whose result a value is; None for the residual stream.

    A result that is then normalized or scaled still counts as the sublayer's.
    """
    node = None if value is None else value.producer()
    if node is None:
        return None
    found = sublayer_of(node)
    if found is not None or is_residual_add(node):
        return found
    computed = [v for v in node.inputs if v is not None and v.const_value is None]
    branches = {branch_of(v) for v in computed}
    return branches.pop() if len(branches) == 1 else None


@functools.lru_cache(maxsize=4096)
def _sublayer_of_scopes(scopes: str) -> Sublayer | None:
    path = ast.literal_eval(scopes)
    return sublayer_of_path(tuple(str(p) for p in path))
