"""Read and replace the initializers of a serialized ONNX model, without the onnx package.

The runtime needs one edit of a graph file: to point its weights at another data file. Protocol Buffers' wire format is enough
for that: a message is a list of (field number, wire type, payload), and fields that are not understood are copied as they are.
Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.initializer 5, TensorProto.name 8,
TensorProto.external_data 13, StringStringEntryProto.key 1 and .value 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_TENSOR_NAME: Final = 8
_TENSOR_EXTERNAL_DATA: Final = 13
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2


def external_initializers(model: bytes) -> dict[str, bytes]:
    """Returns each initializer that lives in an external data file, by name, as a serialized TensorProto.

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
    """Returns the model with each external initializer exchanged for the serialized TensorProto of the same name.

    Raises:
        KeyError: naming an external initializer that `tensors` lacks.
        ValueError: if the bytes are not a model.
    """
    parts = []
    for number, _, raw, payload in _fields(model):
        parts.append(_tagged(_MODEL_GRAPH, _replace_in_graph(payload, tensors)) if number == _MODEL_GRAPH else raw)
    return b"".join(parts)


def _replace_in_graph(graph: bytes, tensors: Mapping[str, bytes]) -> bytes:
    parts = []
    for number, _, raw, payload in _fields(graph):
        external = number == _GRAPH_INITIALIZER and any(True for _ in _payloads(payload, _TENSOR_EXTERNAL_DATA))
        parts.append(_tagged(_GRAPH_INITIALIZER, tensors[_text(payload, _TENSOR_NAME)]) if external else raw)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yields (field number, wire type, the field with its tag, its payload)."""
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
            raise ValueError(f"wire type {wire} at byte {start}")
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
