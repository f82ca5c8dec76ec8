"""Takes over the codes, zero points and scales of a checkpoint whose weights are packed already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime.errors import UnsupportedModelError
from sstool.checkpoint.packed.layout import WHOLE_COLUMN
from sstool.graph.passes.block_products import CODES, BlockMatrix, lazy_codes
from sstool.graph.products import Product, product_groups, products_of
from sstool.quantize.formats.base import column_parts
from sstool.quantize.plan import GroupPlan

if TYPE_CHECKING:
    import torch

_LARGEST_MARK: Final = CODES * CODES - 1


@dataclass(frozen=True, slots=True)
class ImportedBlocks:
    """The codes, scales and zero points of one matrix.

    Attributes:
        marks: the product whose matrix has `codes + 16 * zeros`.
        block: rows of a block.
        scales: float32[blocks, columns].
        zeros: uint8[blocks, columns].
    """

    marks: Product
    block: int
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]

    def matrix(self, product: Product) -> BlockMatrix:
        """Returns the codes, which stay lazy, the scales and the zero points of a product's matrix."""
        return BlockMatrix(lazy_codes(product, self.block, self._codes), self.scales, self.zeros, self.block)

    def _codes(self) -> NDArray[np.uint8]:
        return self.marks.matrix().astype(np.uint8) % CODES


def imported_groups(base: ir.Model, marked: ir.Model, *, group: int, block: int) -> dict[str, GroupPlan]:
    """Returns the plans of the groups with packed matrices, by name.

    Args:
        base: fp32 graph with the numbers that packed matrices stand for.
        marked: the same graph with `codes + 16 * zeros` in their place.
        group: rows of the checkpoint's groups; -1 for all rows.
        block: rows of a block in the artifact; a divisor of every matrix's group.

    Raises:
        UnsupportedModelError: if a matrix's numbers do not follow from its codes, which they do unless the
            graph changes them.
    """
    marks = {product.name: product for product in products_of(product_groups(marked.graph))}
    plans = {}
    for found in product_groups(base.graph):
        weights = {product.name: _imported(product, marks[product.name], group, block) for product in found.products}
        packed = {name: matrix for name, matrix in weights.items() if matrix is not None}
        if packed:
            plans[found.name] = GroupPlan(weights=packed)
    return plans


def _imported(product: Product, marks: Product, group: int, block: int) -> ImportedBlocks | None:
    """Returns what a packed matrix holds; None for one that is not packed, or only in part."""
    import torch

    numbers, marked = product.matrix(), marks.matrix()
    # Columns that are not packed hold the same numbers in both. Fused projections may have some.
    if ((numbers == marked).all(axis=0) & marked.any(axis=0)).any():
        return None
    rows, columns = product.shape
    group = rows if group == WHOLE_COLUMN else group
    if group % block:
        raise UnsupportedModelError(
            f"{product.name} has groups of {group} rows, and {block} do not divide them", "give a smaller --block-size"
        )
    scales, zeros = np.empty((rows // block, columns), np.float32), np.empty((rows // block, columns), np.uint8)
    for some in column_parts(numbers):
        found = _scales_and_zeros(torch.from_numpy(numbers[:, some].copy()), torch.from_numpy(marked[:, some].copy()), group)
        if found is None:
            raise UnsupportedModelError(
                f"the numbers of {product.name} do not follow from its packed weights", "export the checkpoint that it was quantized from"
            )
        scales[:, some] = np.repeat(found[0].numpy(), group // block, axis=0)
        zeros[:, some] = np.repeat(found[1].numpy().astype(np.uint8), group // block, axis=0)
    return ImportedBlocks(marks, block, scales, zeros)


def _scales_and_zeros(numbers: torch.Tensor, marked: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns the scales and zero points [groups, columns]; None unless they give the numbers, to the bit."""
    import torch

    if len(numbers) % group or float(marked.min()) < 0 or float(marked.max()) > _LARGEST_MARK or not torch.equal(marked, marked.round()):
        return None
    numbers, marked = (tensor.reshape(-1, group, tensor.shape[1]) for tensor in (numbers, marked))
    zeros = (marked[:, :1] / CODES).floor()
    steps = marked - CODES * zeros - zeros
    # The step that is farthest from 0 in each group; the scale is a number over its step, without rounding.
    places = steps.abs().argmax(dim=1, keepdim=True)
    farthest = steps.gather(1, places)
    scales = torch.where(farthest == 0, 0.0, numbers.gather(1, places) / farthest)
    same_zeros = torch.equal((marked / CODES).floor(), zeros.expand_as(marked))
    return (scales[:, 0], zeros[:, 0]) if same_zeros and torch.equal(steps * scales, numbers) else None
