"""Gives parts of a draft weights of their own, of 4 bits: a draft step then reads an eighth of the bytes.

A draft need not be exact. So the scales are chosen from the weights alone, without calibration text.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ssruntime.artifact import LowBitSet
from sstool.graph.passes.block_products import BlockProductsPass
from sstool.graph.products import Product, product_groups, products_of
from sstool.graph.sequential import run_passes
from sstool.graph.sublayers import Sublayer
from sstool.quantize.formats.int4_blocks import Int4Blocks

_FORMAT: Final = Int4Blocks(128)
"""Larger blocks are faster, and a draft needs no better weights."""
_CLIPPING: Final = (1.0, 0.9, 0.8)
_SCALE_BYTES: Final = 4
_PER_BYTE: Final = 2


def with_low_bits(draft: ir.Model, parts: LowBitSet) -> ir.Model:
    """Returns a draft graph, changed in place, in which some parts have weights of 4 bits, which stay lazy.

    Args:
        draft: draft graph whose weights are in fp32.
        parts: the parts; none of them is skipped.
    """
    if not parts:
        return draft
    found = [product for product in products_of(product_groups(draft.graph)) if is_part(product, parts)]
    matrices = {product.name: _FORMAT.choose(product.matrix(), None, _CLIPPING).matrix(product) for product in found}
    return run_passes(draft, BlockProductsPass(matrices))


def is_part(product: Product, parts: LowBitSet) -> bool:
    """Returns whether a product belongs to some parts."""
    sublayer = product.sublayer
    if sublayer is None:
        return parts.head
    return sublayer.layer in (parts.attention if sublayer.kind == "attention" else parts.mlp)


def bytes_of_parts(model: ir.Model) -> dict[Sublayer | None, int]:
    """Returns the size of the weights of 4 bits, in bytes, of each part of a model; None is the LM head."""
    sizes: dict[Sublayer | None, int] = {}
    for product in products_of(product_groups(model.graph)):
        rows, columns = product.shape
        blocks = -(-rows // _FORMAT.block)
        one = blocks * _FORMAT.block // _PER_BYTE + _SCALE_BYTES * blocks + -(-blocks // _PER_BYTE)
        sizes[product.sublayer] = sizes.get(product.sublayer, 0) + columns * one
    return sizes
