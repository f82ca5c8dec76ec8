"""Turns products into MatMulNBits: weights of 4 bits, with a scale and a zero point for each block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.passes.constants import initializer
from sstool.graph.products import Product, product_groups, products_of

OPERATOR: Final = "MatMulNBits"
BITS: Final = 4
CODES: Final = 2**BITS
"""Number of codes."""
ZERO: Final = CODES // 2
"""The zero point of a symmetric block."""
INTEGER_ACTIVATIONS: Final = 4
"""Accuracy level of the kernel that rounds activations to 8 bits, with a scale for each row and block."""
FP32_ACTIVATIONS: Final = 1
"""Accuracy level of the kernel that does not round activations."""
_PER_BYTE: Final = 8 // BITS


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """A matrix as codes: `matrix[k, n] = (codes[k, n] - zeros[k // block, n]) * scales[k // block, n]`.

    Attributes:
        codes: uint8[columns, blocks, block / 2], two codes in a byte, the first in its lower half; may be
            lazy.
        scales: float32[blocks, columns].
        zeros: uint8[blocks, columns].
        block: rows of a block.
    """

    codes: ir.TensorProtocol
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    block: int


class BlockProductsPass(ir.passes.InPlacePass):
    """Replaces products with constant matrices by MatMulNBits.

    Requires: matrices by the names of products; activations in fp32.
    Ensures: matrices without another use are gone.
    Edits in place.
    """

    def __init__(self, matrices: Mapping[str, BlockMatrix], *, accuracy_level: int = INTEGER_ACTIVATIONS) -> None:
        """Takes the matrices by the names of their products, and the kernel's accuracy level."""
        super().__init__()
        self._matrices = matrices
        self._accuracy_level = accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        products = [product for product in products_of(product_groups(model.graph)) if product.name in self._matrices]
        assert len(products) == len(self._matrices), "a product is not in the graph"
        for product in products:
            _replace(model.graph, product, self._matrices[product.name], self._accuracy_level)
        return ir.passes.PassResult(model, modified=bool(products))


def lazy_codes(product: Product, block: int, read: Callable[[], NDArray[np.uint8]]) -> ir.LazyTensor:
    """Returns the tensor of packed codes that is made when it is read.

    Args:
        product: the product whose matrix the codes stand for.
        block: rows of a block.
        read: returns the codes uint8[blocks * block, columns].
    """
    rows, columns = product.shape
    name = f"{product.name}.int4"
    shape = ir.Shape((columns, -(-rows // block), block // _PER_BYTE))
    return ir.LazyTensor(lambda: ir.tensor(_packed(read(), block), name=name), dtype=ir.DataType.UINT8, shape=shape, name=name)


def unpacked(node: ir.Node) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Returns codes [columns, blocks, block], scales and zero points [columns, blocks] of a MatMulNBits."""
    codes, scales, zeros = (value.const_value.numpy() for value in node.inputs[1:4])  # type: ignore[union-attr]
    columns, blocks = codes.shape[:2]
    return _halves(codes), scales.reshape(columns, blocks), _halves(zeros.reshape(columns, -1))[:, :blocks]


def _replace(graph: ir.Graph, product: Product, matrix: BlockMatrix, accuracy_level: int) -> None:
    node, name = product.node, product.name
    rows, columns = product.shape
    inputs = [
        product.source,
        # Named after the product: a tied LM head shares its matrix with the embedding.
        initializer(graph, f"{name}.int4", matrix.codes),
        initializer(graph, f"{name}.scales", ir.tensor(np.ascontiguousarray(matrix.scales.T).reshape(-1), name=f"{name}.scales")),
        initializer(graph, f"{name}.zeros", ir.tensor(_packed_zeros(matrix.zeros), name=f"{name}.zeros")),
    ]
    attributes = {"K": rows, "N": columns, "bits": BITS, "block_size": matrix.block, "accuracy_level": accuracy_level}
    result = node.outputs[0]
    new = ir.node(OPERATOR, inputs, attributes=attributes, domain="com.microsoft", name=name, metadata_props=dict(node.metadata_props))
    new.outputs[0].type, new.outputs[0].shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
    if not product.weight.uses():
        del graph.initializers[product.weight.name or ""]


def _packed(codes: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
    rows, columns = codes.shape
    by_column = np.ascontiguousarray(codes.T).reshape(columns, rows // block, block)
    return _joined(by_column)


def _packed_zeros(zeros: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the zero points by columns, each column's ending on a whole byte."""
    by_column = np.pad(zeros.T, ((0, 0), (0, len(zeros) % _PER_BYTE)))
    return _joined(by_column).reshape(-1)


def _joined(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns bytes of two codes each, along the last axis."""
    joined: NDArray[np.uint8] = codes[..., 0::_PER_BYTE] | np.left_shift(codes[..., 1::_PER_BYTE], BITS, dtype=np.uint8)
    return joined


def _halves(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([packed & (CODES - 1), packed >> BITS], axis=-1).reshape(*packed.shape[:-1], -1)
