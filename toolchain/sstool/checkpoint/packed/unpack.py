"""Unpacks one matrix of a GPTQ or AWQ checkpoint: codes, zero points and scales.

Eight codes of 4 bits lie in an int32, the first in its lowest bits. GPTQ packs the codes of a column's rows,
and its zero points along the columns. AWQ (`gemm`) packs both along the columns, in the order 0, 2, 4, 6, 1,
3, 5, 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ssruntime.errors import CheckpointError, UnsupportedModelError
from sstool.checkpoint.packed.layout import BITS, GPTQ, WHOLE_COLUMN, PackedLayout

if TYPE_CHECKING:
    import torch

WEIGHTS: Final = ".qweight"
ZEROS: Final = ".qzeros"
SCALES: Final = ".scales"
ORDER: Final = ".g_idx"

_PER_WORD: Final = 32 // BITS
_LAST: Final = 2**BITS - 1
_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ keeps each of eight columns in a word."""
_AGAIN: Final = "download the checkpoint again"


class Unpacked(NamedTuple):
    """A matrix: `weight[k, n] = (codes[k, n] - zeros[k // group, n]) * scales[k // group, n]`.

    `codes` is uint8[rows, columns]; `zeros` uint8 and `scales`, in the checkpoint's dtype, [groups, columns].
    """

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    group: int

    def dense(self) -> torch.Tensor:
        """Returns the matrix, float32[rows, columns]: each number is the exact product."""
        steps = self.codes.float() - self.zeros.float().repeat_interleave(self.group, dim=0)
        return steps * self.scales.float().repeat_interleave(self.group, dim=0)

    def marked(self) -> torch.Tensor:
        """Returns codes and zero points as one float16[rows, columns]: `codes + 16 * zeros`."""
        import torch

        zeros = self.zeros.to(torch.int16).repeat_interleave(self.group, dim=0)
        return (self.codes.to(torch.int16) + (_LAST + 1) * zeros).half()


def unpack(name: str, tensors: dict[str, torch.Tensor], layout: PackedLayout) -> Unpacked:
    """Returns the matrix of a module.

    Args:
        name: name of the module, for messages.
        tensors: the module's tensors by their suffixes.
        layout: how they are stored.

    Raises:
        CheckpointError: if a tensor is missing, or their shapes do not fit each other.
        UnsupportedModelError: if the rows are grouped in an order of their own, or a number has no place in
            4 bits.
    """
    import torch

    missing = [suffix for suffix in (WEIGHTS, ZEROS, SCALES) if suffix not in tensors]
    if missing:
        raise CheckpointError(f"the weights lack the tensor {name + missing[0]!r}", _AGAIN)
    packed, packed_zeros, scales = tensors[WEIGHTS], tensors[ZEROS], tensors[SCALES]
    if any(t.ndim != 2 for t in (packed, packed_zeros, scales)) or {packed.dtype, packed_zeros.dtype} != {torch.int32}:
        raise CheckpointError(f"{name}: its packed tensors are no matrices of int32", _AGAIN)
    if scales.dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedModelError(f"{name}: its scales are {scales.dtype}; float16 and bfloat16 are read", "save them as float16")
    if not torch.isfinite(scales).all():
        raise CheckpointError(f"{name}: its scales hold numbers that are NaN or infinite", "the weights are damaged or diverged")
    is_gptq = layout.method == GPTQ
    codes = _along_rows(packed) if is_gptq else _along_columns(packed)[:, _columns_of(packed)]
    zeros = _along_columns(packed_zeros) if is_gptq else _along_columns(packed_zeros)[:, _columns_of(packed_zeros)]
    group = len(codes) if layout.group == WHOLE_COLUMN else layout.group
    shapes = {tuple(zeros.shape), tuple(scales.shape)}
    if len(codes) % group or shapes != {(len(codes) // group, codes.shape[1])}:
        raise CheckpointError(f"{name}: its packed tensors do not fit groups of {layout.group}", _AGAIN)
    _require_order(name, tensors.get(ORDER), len(codes), group)
    zeros = zeros + layout.zero_offset
    if int(zeros.max()) > _LAST:
        raise UnsupportedModelError(f"{name} has a zero point of {int(zeros.max())}, more than 4 bits hold", "quantize it symmetrically")
    return Unpacked(codes, zeros, scales, group)


def _along_rows(words: torch.Tensor) -> torch.Tensor:
    parts = [(words >> (BITS * place)) & _LAST for place in range(_PER_WORD)]
    return _stack(parts, dim=1).reshape(-1, words.shape[1])


def _along_columns(words: torch.Tensor) -> torch.Tensor:
    parts = [(words >> (BITS * place)) & _LAST for place in range(_PER_WORD)]
    return _stack(parts, dim=2).reshape(len(words), -1)


def _stack(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    import torch

    return torch.stack([part.to(torch.uint8) for part in parts], dim=dim)


def _columns_of(words: torch.Tensor) -> torch.Tensor:
    """Returns, for each column of an AWQ matrix, where its codes lie among the unpacked ones."""
    import torch

    return (torch.arange(words.shape[1])[:, None] * _PER_WORD + torch.tensor(_PLACES)).reshape(-1)


def _require_order(name: str, order: torch.Tensor | None, rows: int, group: int) -> None:
    import torch

    if order is None:
        return
    if not torch.equal(order.long(), torch.arange(rows) // group):
        raise UnsupportedModelError(
            f"{name}: its rows are grouped in an order of their own (desc_act), which the kernels cannot follow",
            "use a checkpoint that was quantized with desc_act=False",
        )
