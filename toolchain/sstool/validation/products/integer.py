"""Compares each product of 8 bits of an engine with the same arithmetic in PyTorch, on the same inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.backends.base import Backend
from sstool.artifact_files.graph_files import serialize
from sstool.graph.feeds import whole_text
from sstool.graph.lower import lower_draft
from sstool.graph.passes.integer_products import LEVELS, ZERO

if TYPE_CHECKING:
    import torch

_TOKENS: Final = 24
_SEED: Final = 3
_BLOCK: Final = 2**24
"""Weights that are multiplied at once."""


@dataclass(frozen=True, kw_only=True)
class IntegerErrors:
    """How an engine's products of 8 bits compare with PyTorch's.

    Attributes:
        errors: error of each product by its name, as a fraction of its largest result; infinite for NaN.
        activations: number of compared integers that activations were quantized to.
        activations_differing: number of those that differ.
    """

    errors: Mapping[str, float]
    activations: int
    activations_differing: int


@dataclass(frozen=True, slots=True)
class _IntegerProduct:
    """The values of one integer product in a graph."""

    source: str
    integers: str
    bound: str
    result: str
    weights: ir.TensorProtocol
    scales: ir.TensorProtocol


def integer_errors(backend: Backend, base: ir.Model) -> IntegerErrors:
    """Returns the comparison for a random text; all products run in the engine's own graph.

    Args:
        backend: open engines of a quantized artifact.
        base: its base graph.
    """
    model = lower_draft(base, SkipSet())
    products = _products(model.graph)
    if not products:
        return IntegerErrors(errors={}, activations=0, activations_differing=0)
    values = {value.name: value for node in model.graph for value in node.outputs}
    wanted = sorted({name for p in products for name in (p.source, p.integers, p.bound, p.result)})
    model.graph.outputs[:] = [values[name] for name in wanted]
    graph = backend.open_graph(serialize(model), "the graph of integer products")
    count = min(_TOKENS, backend.max_context)
    ids = [int(i) for i in np.random.default_rng(_SEED).integers(0, backend.vocab_size, count)]
    found = dict(zip(wanted, graph.run(wanted, whole_text(ids)), strict=True))
    compared = differing = 0
    for name in {p.integers: p for p in products}.values():
        expected = _quantized(found[name.source], found[name.bound])
        compared += expected.size
        differing += int(np.count_nonzero(found[name.integers] != expected))
    errors = {p.result: _error(found[p.integers], found[p.bound], found[p.result], p) for p in products}
    return IntegerErrors(errors=errors, activations=compared, activations_differing=differing)


def _products(graph: ir.Graph) -> list[_IntegerProduct]:
    found = []
    for node in graph:
        if node.op_type != "MatMulIntegerToFloat":
            continue
        quantize = node.inputs[0].producer()  # type: ignore[union-attr]
        divide = quantize.inputs[0].producer()  # type: ignore[union-attr]
        (use,) = node.outputs[0].uses()
        names = [divide.inputs[0], node.inputs[0], divide.inputs[1], use.node.outputs[0]]  # type: ignore[union-attr]
        weights, scales = node.inputs[1].const_value, node.inputs[3].const_value  # type: ignore[union-attr]
        assert weights is not None
        assert scales is not None
        source, integers, bound, result = (value.name or "" for value in names if value is not None)
        found.append(_IntegerProduct(source, integers, bound, result, weights, scales))
    return found


def _quantized(source: NDArray[np.float32], bound: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns the integers of activations, as PyTorch rounds them."""
    import torch

    unit = torch.from_numpy(source) / torch.from_numpy(bound)
    step = torch.tensor(np.float32(1 / LEVELS))
    integers: NDArray[np.uint8] = ((unit / step).round() + ZERO).clamp(0, 255).to(torch.uint8).numpy()
    return integers


def _error(integers: NDArray[np.uint8], bound: NDArray[np.float32], result: NDArray[np.float32], product: _IntegerProduct) -> float:
    """Returns the largest error of a product, as a fraction of its largest result."""
    import torch

    rows = torch.from_numpy(integers.reshape(-1, integers.shape[-1]).astype(np.float64) - ZERO)
    weights, scales = product.weights.numpy(), torch.from_numpy(product.scales.numpy().astype(np.float64))
    width = max(1, _BLOCK // weights.shape[0])
    # Sums of integers are exact in float64.
    sums = [rows @ torch.from_numpy(weights[:, at : at + width].astype(np.float64)) for at in range(0, weights.shape[1], width)]
    expected = torch.cat(sums, dim=1) * scales * torch.from_numpy(bound.reshape(-1, 1).astype(np.float64))
    ours = torch.from_numpy(result.reshape(expected.shape).astype(np.float64))
    return relative_error(ours, expected)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference of two tensors as a fraction of the largest number; infinite for NaN."""
    error = float((ours - expected).abs().max() / expected.abs().max().clamp_min(sys.float_info.min))
    return math.inf if math.isnan(error) else error
