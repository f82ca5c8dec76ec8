"""Reads and replaces the initializers of a serialized ONNX model, without the onnx package.

The runtime edits graph files in two ways: it points their weights at another data file, or makes them inputs
of the graph. For that, the
wire format of Protocol Buffers is enough: a message is a list of (field number, wire type, payload), and
unknown fields are copied unchanged. The field numbers are those of onnx.proto: ModelProto.graph 7,
GraphProto.initializer 5 and .input 11, TensorProto.dims 1, .data_type 2, .name 8 and .external_data 13,
StringStringEntryProto.key 1 and .value 2, ValueInfoProto.name 1 and .type 2, TypeProto.tensor_type 1,
TypeProto.Tensor.elem_type 1 and .shape 2, TensorShapeProto.dim 1, Dimension.dim_value 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_GRAPH_INPUT: Final = 11
_TENSOR_DIMS: Final = 1
_TENSOR_TYPE: Final = 2
_TENSOR_NAME: Final = 8
_TENSOR_EXTERNAL_DATA: Final = 13
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2
_LOCATION: Final = "location"


def external_initializers(model: bytes) -> dict[str, bytes]:
    """Returns the initializers that are stored in an external data file, by name, as serialized TensorProtos.

    Raises:
        ValueError: if the bytes are not a model.
    """
    found = {}
    for graph in _payloads(model, _MODEL_GRAPH):
        for tensor in _payloads(graph, _GRAPH_INITIALIZER):
            if any(True for _ in _payloads(tensor, _TENSOR_EXTERNAL_DATA)):
                found[_text(tensor, _TENSOR_NAME)] = tensor
    return found


def external_data(tensor: bytes) -> dict[str, str]:
    """Returns the external data record (`location`, `offset`, `length`, ...) of a serialized TensorProto."""
    return {_text(e, _ENTRY_KEY): _text(e, _ENTRY_VALUE) for e in _payloads(tensor, _TENSOR_EXTERNAL_DATA)}


def replace_initializers(model: bytes, tensors: Mapping[str, bytes]) -> bytes:
    """Returns the model with each external initializer replaced by the TensorProto of that name in `tensors`.

    Raises:
        KeyError: naming an external initializer that `tensors` lacks.
        ValueError: if the bytes are not a model.
    """
    parts = []
    for number, _, raw, payload in _fields(model):
        parts.append(_tagged(_MODEL_GRAPH, _replace_in_graph(payload, tensors)) if number == _MODEL_GRAPH else raw)
    return b"".join(parts)


def with_locations(model: bytes, locations: Mapping[str, str]) -> bytes:
    """Returns the model with data files of other names: a new name for each file that `locations` has.

    Raises:
        ValueError: if the bytes are not a model.
    """
    return replace_initializers(model, {name: moved(tensor, locations) for name, tensor in external_initializers(model).items()})


def moved(tensor: bytes, locations: Mapping[str, str]) -> bytes:
    """Returns a serialized TensorProto whose data file has the new name in `locations`, if that has one."""
    location = external_data(tensor).get(_LOCATION, "")
    return _at(tensor, locations[location]) if location in locations else tensor


def tensor_type(tensor: bytes) -> tuple[int, tuple[int, ...]]:
    """Returns the data type (of TensorProto.DataType) and the dimensions of a serialized TensorProto."""
    dims: list[int] = []
    kind = 0
    for number, wire, _, payload in _fields(tensor):
        if number == _TENSOR_TYPE and wire == 0:
            kind = _varint(payload, 0)[0]
        elif number == _TENSOR_DIMS:  # one number, or several packed ones
            at = 0
            while at < len(payload):
                dim, at = _varint(payload, at)
                dims.append(dim)
    return kind, tuple(dims)


def weights_as_inputs(model: bytes) -> bytes:
    """Returns the model with its external initializers as inputs of the graph, after all others.

    Raises:
        ValueError: if the bytes are not a model.
    """
    parts = []
    for number, _, raw, payload in _fields(model):
        parts.append(_tagged(_MODEL_GRAPH, _with_inputs(payload)) if number == _MODEL_GRAPH else raw)
    return b"".join(parts)


def _with_inputs(graph: bytes) -> bytes:
    kept, inputs = [], []
    for number, _, raw, payload in _fields(graph):
        if number == _GRAPH_INITIALIZER and any(True for _ in _payloads(payload, _TENSOR_EXTERNAL_DATA)):
            inputs.append(_tagged(_GRAPH_INPUT, _value_info(payload)))
        else:
            kept.append(raw)
    return b"".join((*kept, *inputs))


def _value_info(tensor: bytes) -> bytes:
    """Returns the ValueInfoProto of a serialized TensorProto."""
    kind, dims = tensor_type(tensor)
    shape = b"".join(_tagged(1, _number(1, dim)) for dim in dims)
    tensor_of = _number(1, kind) + _tagged(2, shape)
    return _tagged(1, _text(tensor, _TENSOR_NAME).encode()) + _tagged(2, _tagged(1, tensor_of))


def _number(field: int, value: int) -> bytes:
    return _encode(field << 3) + _encode(value)


def _at(tensor: bytes, location: str) -> bytes:
    parts = []
    for number, _, raw, payload in _fields(tensor):
        if number == _TENSOR_EXTERNAL_DATA and _text(payload, _ENTRY_KEY) == _LOCATION:
            entry = _tagged(_ENTRY_KEY, _LOCATION.encode()) + _tagged(_ENTRY_VALUE, location.encode())
            parts.append(_tagged(_TENSOR_EXTERNAL_DATA, entry))
        else:
            parts.append(raw)
    return b"".join(parts)


def _replace_in_graph(graph: bytes, tensors: Mapping[str, bytes]) -> bytes:
    parts = []
    for number, _, raw, payload in _fields(graph):
        external = number == _GRAPH_INITIALIZER and any(True for _ in _payloads(payload, _TENSOR_EXTERNAL_DATA))
        parts.append(_tagged(_GRAPH_INITIALIZER, tensors[_text(payload, _TENSOR_NAME)]) if external else raw)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yields (field number, wire type, bytes of the whole field with its tag, payload)."""
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            body = at
            _, at = _varint(message, at)
        elif wire == 2:
            length, body = _varint(message, at)
            at = body + length
        elif wire in (1, 5):
            body = at
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unexpected wire type {wire} at byte {start}")
        if at > end:
            raise ValueError(f"field cut off at byte {start}")
        yield tag >> 3, wire, message[start:at], message[body:at]


def _payloads(message: bytes, number: int) -> Iterator[bytes]:
    return (payload for found, wire, _, payload in _fields(message) if found == number and wire == 2)


def _text(message: bytes, number: int) -> str:
    return next(_payloads(message, number), b"").decode("utf-8")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"number cut off at byte {at}")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _tagged(number: int, payload: bytes) -> bytes:
    return _encode(number << 3 | 2) + _encode(len(payload)) + payload


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
