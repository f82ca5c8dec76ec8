"""Compares each product of 4 bits of an engine with the same arithmetic in PyTorch, on the same integers.

The kernel rounds activations inside. It is given activations that are such rounded numbers already: integers
times a power of two, with the largest integer in every block. Every kernel rounds them to themselves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ssruntime.backends.base import Backend
from sstool.artifact_files.graph_files import serialize
from sstool.graph.passes.block_products import OPERATOR, unpacked
from sstool.validation.products.integer import relative_error

_ROWS: Final = 5
_LEVELS: Final = 127
_EXPONENTS: Final = (-8, 3)
_SEED: Final = 4
_COLUMNS: Final = 4096
"""Columns of a matrix that are restored at once."""


def block_errors(backend: Backend, base: ir.Model) -> dict[str, float]:
    """Returns the error of each product by its name, as a fraction of its largest result; infinite for NaN.

    Args:
        backend: open engines of a quantized artifact.
        base: its base graph.
    """
    nodes = [node for node in base.graph if node.op_type == OPERATOR]
    if not nodes:
        return {}
    model = base.clone()
    sources = _cut(model)
    graph = backend.open_graph(serialize(model), "the graph of products in 4 bits")
    outputs = [value.name or "" for value in model.graph.outputs]
    random = np.random.default_rng(_SEED)
    block = {source: node.attributes["block_size"].as_int() for node, source in zip(nodes, sources, strict=True)}
    width = {source: node.attributes["K"].as_int() for node, source in zip(nodes, sources, strict=True)}
    feeds = {source: _rounded_activations(random, width[source], block[source]) for source in block}
    results = graph.run(outputs, feeds)
    return {node.name or "": _error(node, feeds[source], result) for node, source, result in zip(nodes, sources, results, strict=True)}


def _cut(model: ir.Model) -> list[str]:
    """Leaves only the products, with new inputs and outputs; returns the name of each one's input."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == OPERATOR]
    inputs: dict[tuple[str, int], ir.Value] = {}
    sources = []
    for node in nodes:
        key = (node.inputs[0].name or "", node.attributes["block_size"].as_int())  # type: ignore[union-attr]
        if key not in inputs:
            shape = ir.Shape(["batch", "rows", node.attributes["K"].as_int()])
            inputs[key] = ir.Value(name=f"{key[0]}.in_blocks_of_{key[1]}", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        node.replace_input_with(0, inputs[key])
        sources.append(inputs[key].name or "")
    graph.inputs[:] = inputs.values()
    graph.outputs[:] = [node.outputs[0] for node in nodes]
    common.RemoveUnusedNodesPass()(model)
    return sources


def _rounded_activations(random: np.random.Generator, width: int, block: int) -> NDArray[np.float32]:
    """Returns activations float32[1, rows, width] that rounding to 8 bits does not change."""
    blocks = -(-width // block)
    integers = random.integers(-_LEVELS, _LEVELS + 1, (1, _ROWS, blocks, block))
    integers[..., 0] = _LEVELS
    scales = 2.0 ** random.integers(*_EXPONENTS, (1, _ROWS, blocks, 1))
    return (integers * scales).astype(np.float32).reshape(1, _ROWS, blocks * block)[..., :width]


def _error(node: ir.Node, given: NDArray[np.float32], result: NDArray[np.float32]) -> float:
    import torch

    rows = torch.from_numpy(given[0].astype(np.float64))
    codes, scales, zeros = unpacked(node)
    parts = []
    for first in range(0, len(codes), _COLUMNS):
        some = slice(first, first + _COLUMNS)
        steps = torch.from_numpy(codes[some].astype(np.float64)) - torch.from_numpy(zeros[some, :, None].astype(np.float64))
        matrix = (steps * torch.from_numpy(scales[some, :, None].astype(np.float64))).reshape(len(steps), -1)
        parts.append(rows @ matrix[:, : rows.shape[1]].T)
    return relative_error(torch.from_numpy(result[0].astype(np.float64)), torch.cat(parts, dim=1))
