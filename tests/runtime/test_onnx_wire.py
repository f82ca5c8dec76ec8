"""Reading and writing ONNX files in protobuf's wire format agrees with the onnx package, errors included."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ssruntime.backends.onnx_wire import (
    external_data,
    external_initializers,
    replace_initializers,
    tensor_type,
    weights_as_inputs,
)

NAMES = st.text(max_size=6)
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([127, 128, 129, 16_383, 16_384, 16_385]))


@st.composite
def records(draw: st.DrawFn) -> dict[str, str]:
    """An external data record."""
    record = {"location": draw(st.text(min_size=1, max_size=300)), "offset": str(draw(st.integers(0, 2**63))), "length": "4"}
    return record | draw(st.dictionaries(st.sampled_from(["checksum", "prepacked_0", "prepacked_1"]), st.text(max_size=30)))


@st.composite
def tensors(draw: st.DrawFn, name: str, *, external: bool | None = None) -> TensorProto:
    """A tensor, inline or in an external file."""
    tensor = TensorProto(name=name, data_type=draw(st.sampled_from([1, 3, 7])), dims=draw(st.lists(st.integers(0, 2**40), max_size=3)))
    if draw(st.booleans()) if external is None else external:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in draw(records()).items():
            tensor.external_data.add(key=key, value=value)
    else:
        tensor.raw_data = b"\x2a" * draw(SIZES)
        tensor.float_data.extend(draw(st.lists(st.floats(width=32), max_size=2)))
    tensor.doc_string = draw(NAMES)
    return tensor


@st.composite
def whole_models(draw: st.DrawFn) -> onnx.ModelProto:
    """A model with nodes, values, functions, metadata and initializers of both kinds, some in a subgraph."""
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    inner = helper.make_graph([], "inner", [], [], initializer=[draw(tensors("inside", external=True))])
    nodes = [
        helper.make_node("Custom", [draw(NAMES)], ["y"], alpha=draw(st.floats(width=32, allow_nan=False)), beta=[1, -(2**63)]),
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
    ]
    value = helper.make_tensor_value_info(draw(NAMES), TensorProto.FLOAT, [1, "S", None])
    graph = helper.make_graph(nodes, draw(NAMES), [value], [value], initializer=[draw(tensors(n)) for n in names])
    function = helper.make_function("here", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [])
    model = helper.make_model(graph, functions=[function], doc_string="x" * draw(SIZES))
    model.model_version = draw(st.integers(-(2**63), 2**63 - 1))
    helper.set_model_props(model, draw(st.dictionaries(NAMES, NAMES, max_size=2)))
    return model


MODELS = whole_models()


def outside(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {t.name: t for t in model.graph.initializer if t.external_data}


@given(MODELS)
def test_external_initializers_are_those_of_the_onnx_package(model: onnx.ModelProto) -> None:
    found = external_initializers(model.SerializeToString())
    assert found == {name: t.SerializeToString() for name, t in outside(model).items()}
    for name, tensor in found.items():
        assert external_data(tensor) == {e.key: e.value for e in outside(model)[name].external_data}


@given(MODELS)
def test_replacing_initializers_by_themselves_changes_no_byte(model: onnx.ModelProto) -> None:
    data = model.SerializeToString()
    assert replace_initializers(data, external_initializers(data)) == data


@given(MODELS, st.data())
def test_replacing_initializers_equals_editing_the_proto(model: onnx.ModelProto, data: st.DataObject) -> None:
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    others = {name: data.draw(tensors(name, external=True)) for name in outside(model)}
    for tensor in wanted.graph.initializer:
        if tensor.external_data:
            tensor.CopyFrom(others[tensor.name])
    serialized = {"unused": b"anything"} | {name: t.SerializeToString() for name, t in others.items()}
    assert replace_initializers(model.SerializeToString(), serialized) == wanted.SerializeToString()


@given(MODELS, st.data())
def test_a_truncated_model_is_refused_if_the_onnx_package_refuses_it(model: onnx.ModelProto, data: st.DataObject) -> None:
    whole = model.SerializeToString()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        onnx.ModelProto.FromString(cut)
    except DecodeError:
        for read in (external_initializers, lambda b: replace_initializers(b, external_initializers(whole))):
            with pytest.raises(ValueError, match="cut off"):
                read(cut)
    else:  # cut between two fields, so still valid protobuf, as an empty file is
        assert external_initializers(cut).keys() <= outside(model).keys()


@given(st.binary(max_size=60))
@example(b"\x3a\x02\x2a\x00")
@example(b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        tensors = external_initializers(data)
        assert replace_initializers(data, tensors) is not None
    except ValueError:
        pass


def test_group_fields_and_names_that_are_not_text_are_refused() -> None:
    with pytest.raises(ValueError, match="wire type 3 at byte 0"):
        external_initializers(b"\x0b\x0c")
    named = b"\x42\x01\xff" + b"\x6a\x00"  # a name of one byte 0xff, and an empty record
    graph = b"\x2a" + bytes([len(named)]) + named
    with pytest.raises(ValueError, match="utf-8"):
        external_initializers(b"\x3a" + bytes([len(graph)]) + graph)


def test_fields_of_a_newer_onnx_are_kept() -> None:
    unknown = b"".join([b"\xc0\x3e\x05", b"\xc1\x3e" + b"8" * 8, b"\xc2\x3e\x03new", b"\xc5\x3e" + b"4" * 4])  # field 1000, each wire type
    tensor = TensorProto(name="w", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="a")
    data = unknown + helper.make_model(helper.make_graph([], "g", [], [], initializer=[tensor])).SerializeToString() + unknown
    tensor.external_data[0].value = "b" * 200
    edited = replace_initializers(data, {"w": tensor.SerializeToString()})
    assert edited.startswith(unknown)
    assert edited.endswith(unknown)
    assert onnx.ModelProto.FromString(edited).graph.initializer[0].external_data[0].value == "b" * 200


def test_the_error_names_a_missing_replacement() -> None:
    tensor = TensorProto(name="lonely")
    tensor.external_data.add(key="location", value="a")
    model = helper.make_model(helper.make_graph([], "g", [], [], initializer=[tensor, TensorProto(name="inline")]))
    with pytest.raises(KeyError, match="lonely"):
        replace_initializers(model.SerializeToString(), {"inline": b""})


def test_weights_become_inputs_of_the_same_type_and_shape() -> None:
    weights = {"w": np.zeros((3, 200), dtype=np.float32), "h": np.zeros(600, dtype=np.float16)}
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 200])],
            [onnx.numpy_helper.from_array(np.array([1], dtype=np.int64), "small")],
        )
    )
    for name, array in weights.items():
        tensor = onnx.numpy_helper.from_array(array, name)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": 0, "length": array.nbytes}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        model.graph.initializer.append(tensor)
    found = onnx.load_model_from_string(weights_as_inputs(model.SerializeToString()))
    onnx.checker.check_model(found)
    assert [t.name for t in found.graph.initializer] == ["small"]
    assert [v.name for v in found.graph.input] == ["x", "w", "h"]
    types = {v.name: v.type.tensor_type for v in found.graph.input}
    assert [d.dim_value for d in types["w"].shape.dim] == [3, 200]
    assert (types["w"].elem_type, types["h"].elem_type) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    packed = onnx.TensorProto(name="p", data_type=onnx.TensorProto.FLOAT, dims=[4, 300])
    assert tensor_type(packed.SerializeToString()) == (onnx.TensorProto.FLOAT, (4, 300))
    with pytest.raises(ValueError, match="cut off"):
        weights_as_inputs(b"\x3a\x7f")
