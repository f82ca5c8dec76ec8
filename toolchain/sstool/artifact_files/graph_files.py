"""Saves an artifact's graphs as small checked files over weights files that hold every weight once."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir

from ssruntime.artifact import DRAFT_GRAPH, DRAFT_WEIGHTS, WEIGHTS
from ssruntime.errors import UnsupportedModelError

EXTERNAL_FROM_BYTES: Final = 1024
"""Tensors of at least this size go to the weights file.

Smaller ones (axes, shapes) stay in the graph, where shape inference can read them.
"""
PAGE: Final = 4096
"""Large weights begin at multiples of this in a weights file, so that they can be mapped."""
_MAX_REASON: Final = 300
"""Characters of a checker's message, which may list every node of a graph."""


def save_graphs(folder: Path, graphs: Mapping[str, ir.Model]) -> None:
    """Writes graphs and their weights; one tensor is in memory at a time.

    Args:
        folder: where to write.
        graphs: graphs by file name. The first one holds every shared weight; the others hold some of the same
            weights under the same names, and small constants of their own. The draft may have large ones too.

    Raises:
        UnsupportedModelError: if a graph is not valid ONNX.
        OSError: if the disk is full or refuses.
    """
    first, *others = graphs.values()
    _externalize(first.graph.initializers.values(), folder, WEIGHTS)
    for other in others:
        for name, value in other.graph.initializers.items():
            if name in first.graph.initializers:
                value.const_value = first.graph.initializers[name].const_value
    for name, model in graphs.items():
        if name == DRAFT_GRAPH:
            write_draft(model, folder)
        else:
            write_graph(model, folder / name)


def write_draft(model: ir.Model, folder: Path) -> None:
    """Writes a draft's graph, and its own weights if it has any; the shared weights lie in their file.

    Raises:
        UnsupportedModelError: if the graph is not valid ONNX.
        OSError: if the disk is full or refuses.
    """
    own = [value for value in model.graph.initializers.values() if is_large(value) and not _is_shared(value)]
    if own:
        _externalize(own, folder, DRAFT_WEIGHTS)
    write_graph(model, folder / DRAFT_GRAPH)


def write_graph(model: ir.Model, path: Path) -> None:
    """Writes a graph whose large tensors lie in the weights file beside it; an invalid graph is not written.

    Raises:
        UnsupportedModelError: if the graph is not valid ONNX.
        OSError: if the disk is full or refuses.
    """
    data = serialize(model)
    check_graph(data, path.name)
    path.write_bytes(data)


def serialize(model: ir.Model) -> bytes:
    """Returns a graph as the bytes of an ONNX file; weights that lie in a file are only referred to."""
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def check_graph(graph: bytes, name: str) -> None:
    """Checks a graph's structure with `onnx.checker`, and its dtypes and shapes with shape inference.

    ONNX has no schemas for the operators of com.microsoft: only the names of their inputs and outputs are
    checked here. ONNX Runtime checks the rest when the gate opens the graph.

    Args:
        graph: a serialized ONNX model.
        name: what errors call it.

    Raises:
        UnsupportedModelError: if the graph is not valid ONNX.
    """
    model = onnx.load_model_from_string(graph)
    # The checker refuses external data in a file with several hard links, and a search shares an artifact's
    # weights file in this way. So the weights are checked as graph inputs of the same type and shape.
    weights = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    small = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    del model.graph.initializer[:]
    model.graph.initializer.extend(small)
    model.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights)
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        reason = textwrap.shorten(str(err), _MAX_REASON, placeholder=" ...")
        raise UnsupportedModelError(
            f"{name} is not valid ONNX: {reason}", "please report this with the model's config.json; nothing was published"
        ) from err


def is_large(value: ir.Value) -> bool:
    """Returns whether an initializer belongs into a weights file."""
    return value.const_value is not None and value.const_value.nbytes >= EXTERNAL_FROM_BYTES


def _is_shared(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor) and str(value.const_value.location) == WEIGHTS


def _externalize(values: Iterable[ir.Value], folder: Path, name: str) -> None:
    """Writes the large ones of some initializers to a file, and lets them refer to it."""
    # Not ir.external_data's writer: numpy, which it writes through, loses the reason when a disk is full.
    with (folder / name).open("wb") as file:
        for value in values:
            tensor = value.const_value
            if tensor is None or not is_large(value):
                continue
            if tensor.nbytes >= PAGE:
                file.seek(-file.tell() % PAGE, os.SEEK_CUR)
            offset = file.tell()
            file.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                name, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or "", base_dir=folder
            )
