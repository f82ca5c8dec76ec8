"""Hand-made graphs of a few nodes, run on ONNX Runtime, and reference attention in numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

QUERY_HEADS: Final = 2
HEAD_DIM: Final = 16
PACKED: Final = (QUERY_HEADS + 2) * HEAD_DIM
"""Length of one token's packed queries, key and value: two query heads share one key and value head."""

Array = NDArray[Any]
Shape = Sequence[int | str]


def typed(value: ir.Value, dtype: ir.DataType, shape: Shape | None) -> ir.Value:
    """Gives a value its type and shape, and returns it."""
    value.type, value.shape = ir.TensorType(dtype), None if shape is None else ir.Shape(shape)
    return value


def floats(name: str, *shape: int | str) -> ir.Value:
    """Returns an input of 32-bit floats."""
    return typed(ir.Value(name=name), ir.DataType.FLOAT, shape)


def integers(name: str, *shape: int | str) -> ir.Value:
    """Returns an input of 64-bit integers."""
    return typed(ir.Value(name=name), ir.DataType.INT64, shape)


def constant(name: str, numbers: Any) -> ir.Value:
    """Returns an initializer: of 32-bit floats, or of the array's own type if that is an integer type."""
    array = np.asarray(numbers)
    array = array if array.dtype.kind == "i" else array.astype(np.float32)
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))


def random_constant(name: str, *shape: int, seed: int = 0) -> ir.Value:
    """Returns an initializer of normally distributed numbers."""
    return constant(name, np.random.default_rng(seed).standard_normal(shape))


def within(*path: str) -> dict[str, str]:
    """Returns the metadata of a node in the module of this path."""
    return {"pkg.onnxscript.name_scopes": repr(list(path))}


def model_of(inputs: Iterable[ir.Value], outputs: Iterable[ir.Value], nodes: Iterable[ir.Node], *constants: ir.Value) -> ir.Model:
    """Returns a model of one graph; an output without a type becomes 32-bit floats."""
    outputs = list(outputs)
    for output in outputs:
        output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(list(inputs), outputs, nodes=nodes, initializers=constants, opset_imports={"": 24, "com.microsoft": 1}, name="small")
    return ir.Model(graph, ir_version=11)


def named(node: ir.Node, *names: str) -> ir.Node:
    """Names a node's first outputs, and returns the node."""
    for value, name in zip(node.outputs, names, strict=False):
        value.name = name
    return node


def run(model: ir.Model, **feeds: Any) -> dict[str, Array]:
    """Runs a model once, without graph optimizations; returns its outputs by name."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def kinds(model: ir.Model) -> Counter[str]:
    """Returns the number of nodes of each operator."""
    return Counter(node.op_type for node in model.graph)


def only_node(model: ir.Model, kind: str) -> ir.Node:
    """Returns the only node of an operator."""
    (node,) = (node for node in model.graph if node.op_type == kind)
    return node


def drawn(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    """Returns normally distributed numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rope_table(positions: int, base: float = 100.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns cosines and sines float32[positions, HEAD_DIM / 2]."""
    pairs = HEAD_DIM // 2
    angles = np.arange(positions)[:, None] / base ** (np.arange(pairs) / pairs)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def attention_reference(
    packed: NDArray[np.float32],
    visible: NDArray[np.bool_],
    *,
    positions: Sequence[int] = (),
    table: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> NDArray[np.float32]:
    """Returns the output of grouped-query attention over a sequence of tokens, with an empty KV cache.

    Args:
        packed: float32[sequence, PACKED], each token's queries, key and value.
        visible: bool[sequence, sequence], whether the token of a row attends to the token of a column.
        positions: the position of each token, for RoPE.
        table: the RoPE table, cosines and sines; None for attention without RoPE.

    Returns:
        float32[sequence, QUERY_HEADS * HEAD_DIM].
    """
    heads = packed.reshape(len(packed), QUERY_HEADS + 2, HEAD_DIM).astype(np.float64)
    query, key, value = heads[:, :QUERY_HEADS], heads[:, QUERY_HEADS], heads[:, QUERY_HEADS + 1]
    if table is not None:
        cosines, sines = (part[list(positions)] for part in table)
        query, key = _rotated(query, cosines[:, None], sines[:, None]), _rotated(key, cosines, sines)
    scores = np.where(visible[:, None], np.einsum("shd,td->sht", query, key) / np.sqrt(HEAD_DIM), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = np.einsum("sht,td->shd", weights / weights.sum(axis=-1, keepdims=True), value)
    return result.reshape(len(packed), -1).astype(np.float32)


def _rotated(rows: Array, cosines: Array, sines: Array) -> Array:
    first, second = np.split(rows, 2, axis=-1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def causal(length: int, window: int | None = None) -> NDArray[np.bool_]:
    """Returns a causal mask bool[length, length], limited to a sliding window if one is given."""
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < (length if window is None else window))


def attention_node(packed: ir.Value, lengths: Sequence[ir.Value], table: Sequence[ir.Value] = (), *, layer: int = 0) -> ir.Node:
    """Returns the GroupQueryAttention node of a layer with its own KV cache; a table makes it apply RoPE.

    Args:
        packed: float[batch, sequence, PACKED].
        lengths: `seqlens_k` and `total_sequence_length`.
        table: the RoPE table, cosines and sines.
        layer: the layer's number.
    """
    past = [floats(f"past_key_values.{layer}.{kind}", "batch", 1, "past", HEAD_DIM) for kind in ("key", "value")]
    node = ir.node(
        "GroupQueryAttention",
        [packed, None, None, *past, *lengths, *table],
        attributes={"num_heads": QUERY_HEADS, "kv_num_heads": 1, "do_rotary": int(bool(table))},
        domain="com.microsoft",
        num_outputs=3,
        name=f"attention.{layer}",
        metadata_props=within("model", f"layers.{layer}", "self_attn"),
    )
    named(node, f"mixed.{layer}", f"present.{layer}.key", f"present.{layer}.value")
    typed(node.outputs[0], ir.DataType.FLOAT, ["batch", "sequence", QUERY_HEADS * HEAD_DIM])
    for value in node.outputs[1:]:
        typed(value, ir.DataType.FLOAT, ["batch", 1, "total", HEAD_DIM])
    return node


def attention_model(num_layers: int = 1, *, rope: bool = True, positions: int = 8) -> ir.Model:
    """Returns a model of parallel attentions over one input `packed`, all with one RoPE table."""
    packed = floats("packed", "batch", "sequence", PACKED)
    lengths = [
        typed(ir.Value(name="seqlens_k"), ir.DataType.INT32, ["batch"]),
        typed(ir.Value(name="total_sequence_length"), ir.DataType.INT32, []),
    ]
    table = [constant(name, part) for name, part in zip(("cos", "sin"), rope_table(positions), strict=True)] if rope else []
    nodes = [attention_node(packed, lengths, table, layer=layer) for layer in range(num_layers)]
    past = [value for node in nodes for value in node.inputs[3:5] if value is not None]
    return model_of([packed, *lengths, *past], [value for node in nodes for value in node.outputs], nodes, *table)


def first_tokens(packed: NDArray[np.float32], num_layers: int = 1) -> dict[str, Array]:
    """Returns the inputs of an `attention_model`: tokens float32[sequence, PACKED], an empty KV cache."""
    empty = np.zeros((1, 1, 0, HEAD_DIM), dtype=np.float32)
    return {
        "packed": packed[None],
        "seqlens_k": np.asarray([len(packed) - 1], dtype=np.int32),
        "total_sequence_length": np.asarray(len(packed), dtype=np.int32),
        **{f"past_key_values.{layer}.{kind}": empty for layer in range(num_layers) for kind in ("key", "value")},
    }
