"""Verify and draft graphs saved as small files over one weights file, in which every weight lies once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx_ir as ir

from ssruntime.artifact import WEIGHTS

EXTERNAL_FROM_BYTES: Final = 1024
"""Tensors of at least this size go to the weights file; smaller ones (axes, shapes) stay where shape inference can read them."""
_PAGE: Final = 4096


def save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> None:
    """Writes graphs and their weights; one tensor is in memory at a time.

    Args:
        folder: where to write.
        graphs: graphs by file name; the first one holds every weight, the others some of the same, under the same names.

    Raises:
        OSError: if the disk is full or refuses.
    """
    first, *others = graphs.values()
    _externalize(first, folder)
    for other in others:
        for name, value in other.graph.initializers.items():
            value.const_value = first.graph.initializers[name].const_value
    for name, model in graphs.items():
        ir.save(model, folder / name)


def _externalize(model: ir.Model, folder: Path) -> None:
    # Not ir.external_data's writer: numpy, which it writes through, loses the reason when a disk is full.
    with (folder / WEIGHTS).open("wb") as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < EXTERNAL_FROM_BYTES:
                continue
            if tensor.nbytes >= _PAGE:
                file.seek(-file.tell() % _PAGE, os.SEEK_CUR)
            offset = file.tell()
            file.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                WEIGHTS, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or "", base_dir=folder
            )
