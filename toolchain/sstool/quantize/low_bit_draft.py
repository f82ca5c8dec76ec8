"""Gives parts of a draft weights of their own, of 4 bits: a draft step then reads an eighth of the bytes.

A draft need not be exact. So the scales are chosen from the weights alone, without calibration text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime.artifact import LowBitSet, SkipSet
from sstool.artifact_files.graph_files import PAGE, is_large
from sstool.graph.passes.block_products import BlockMatrix, BlockProductsPass
from sstool.graph.products import Product, product_groups, products_of
from sstool.graph.sequential import run_passes
from sstool.graph.sublayers import Sublayer
from sstool.quantize.formats.int4_blocks import Int4Blocks

_FORMAT: Final = Int4Blocks(128)
"""Larger blocks are faster, and a draft needs no better weights."""
_CLIPPING: Final = (1.0, 0.9, 0.8)
_SCALE_BYTES: Final = 4
_PER_BYTE: Final = 2


LowBits = Callable[[ir.Model, LowBitSet], ir.Model]
"""Gives some parts of a draft graph weights of 4 bits, as `with_low_bits` does."""


def with_low_bits(draft: ir.Model, parts: LowBitSet) -> ir.Model:
    """Returns a draft graph, changed in place, in which some parts have weights of 4 bits, which stay lazy.

    Args:
        draft: draft graph whose weights are in fp32.
        parts: the parts; none of them is skipped.
    """
    if not parts:
        return draft
    return run_passes(draft, BlockProductsPass({product.name: _matrix(product) for product in _products(draft, parts)}))


class LowBitStore:
    """Quantizes parts of many drafts of one model to int4: each weight once, into a file that they share.

    Attributes:
        room: most bytes of int4 weights that one draft may have.
    """

    def __init__(self, file: Path, room: int) -> None:
        """Creates an empty store.

        Args:
            file: where to keep the weights; an older file there is overwritten. It must stay as long as
                drafts use it.
            room: most bytes of int4 weights that one draft may have.
        """
        file.write_bytes(b"")
        self._file = file
        self.room = room
        self._matrices: dict[str, BlockMatrix] = {}
        self._tensors: dict[str, ir.ExternalTensor] = {}
        self._arrays: dict[str, NDArray[Any]] = {}

    def apply(self, draft: ir.Model, parts: LowBitSet) -> ir.Model:
        """Returns a draft graph, changed in place, whose weights of 4 bits lie in the store's file.

        Args:
            draft: draft graph whose weights are in fp32.
            parts: the parts; none of them is skipped.

        Raises:
            OSError: if the disk is full or refuses.
        """
        if not parts:
            return draft
        matrices = {}
        for product in _products(draft, parts):
            if product.name not in self._matrices:
                self._matrices[product.name] = _matrix(product)
            matrices[product.name] = self._matrices[product.name]
        changed = run_passes(draft, BlockProductsPass(matrices))
        for name, value in changed.graph.initializers.items():
            if is_large(value) and not isinstance(value.const_value, ir.ExternalTensor):
                if name not in self._tensors:
                    assert value.const_value is not None
                    self._tensors[name] = self._written(name, value.const_value)
                value.const_value = self._tensors[name]
        return changed

    def arrays(self, draft: ir.Model) -> dict[str, NDArray[Any]]:
        """Returns the weights of a draft that lie in the store's file, by initializer name."""
        return {name: self._arrays[name] for name in draft.graph.initializers if name in self._arrays}

    def _written(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        try:
            with self._file.open("r+b") as file:
                offset = file.seek(0, os.SEEK_END)
                offset = file.seek(offset + -offset % PAGE)
                file.write(tensor.tobytes())
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(self._file)) from err
        shape = tuple(tensor.shape.numpy())
        self._arrays[name] = np.memmap(self._file, dtype=tensor.dtype.numpy(), mode="r", offset=offset, shape=shape)
        return ir.ExternalTensor(
            self._file.name, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(shape), name=name, base_dir=self._file.parent
        )


def is_in(part: Sublayer | None, parts: LowBitSet) -> bool:
    """Returns whether a sublayer, or the LM head (None), is one of some parts."""
    if part is None:
        return parts.head
    return part.layer in _layers(parts, part)


def bytes_of_parts(model: ir.Model) -> dict[Sublayer | None, int]:
    """Returns the size of the weights of 4 bits, in bytes, of each part of a model; None is the LM head."""
    sizes: dict[Sublayer | None, int] = {}
    for product in products_of(product_groups(model.graph)):
        rows, columns = product.shape
        blocks = -(-rows // _FORMAT.block)
        one = blocks * _FORMAT.block // _PER_BYTE + _SCALE_BYTES * blocks + -(-blocks // _PER_BYTE)
        sizes[product.sublayer] = sizes.get(product.sublayer, 0) + columns * one
    return sizes


def fitting_parts(sizes: Mapping[Sublayer | None, int], skip: SkipSet, room: float) -> LowBitSet:
    """Returns the parts that a draft keeps, largest first, as far as there is room for them in int4.

    Args:
        sizes: bytes that each part takes in int4; None stands for the LM head.
        skip: sublayers that the draft skips.
        room: most bytes that the chosen parts take.
    """
    kept = (part for part in sizes if part is None or part.layer not in _layers(skip, part))
    chosen, left = [], room
    for part in sorted(kept, key=lambda part: (-sizes[part], part is not None and part.layer)):
        if sizes[part] <= left:
            chosen.append(part)
            left -= sizes[part]
    return _low_bit_set(chosen)


def _layers(parts: SkipSet | LowBitSet, part: Sublayer) -> tuple[int, ...]:
    """Returns the layers of those parts that are of a sublayer's kind."""
    return parts.attention if part.kind == "attention" else parts.mlp


def _low_bit_set(parts: Sequence[Sublayer | None]) -> LowBitSet:
    def layers(kind: str) -> tuple[int, ...]:
        return tuple(sorted(part.layer for part in parts if part is not None and part.kind == kind))

    return LowBitSet(attention=layers("attention"), mlp=layers("mlp"), head=None in parts)


def _products(draft: ir.Model, parts: LowBitSet) -> list[Product]:
    return [product for product in products_of(product_groups(draft.graph)) if is_in(product.sublayer, parts)]


def _matrix(product: Product) -> BlockMatrix:
    return _FORMAT.choose(product.matrix(), None, _CLIPPING).matrix(product)
