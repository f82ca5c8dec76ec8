"""An export, and the replacement of a draft, refuse a graph that is not valid ONNX before they write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, NodeProto, TensorProto

from ssruntime.artifact import DRAFT_GRAPH, VERIFY_GRAPH, SkipSet, Tuning, check_digests, read_artifact
from ssruntime.errors import SelfSpecError, UnsupportedModelError
from sstool.artifact_files import assemble
from sstool.artifact_files.graph_files import check_graph, write_graph
from sstool.artifact_files.publish import staged_folder
from sstool.graph.lower import LoweringPlan, lower_draft, lower_verify
from sstool.pipelines import replace_draft
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from tests.toolchain.conftest import SKIP
from tests.toolchain.tiny_llama import copy_of

Change = Callable[[ModelProto], object]

TUNING = Tuning(speedups={}, cpu="any", threads=1, onnxruntime="any", trials=1, remark="")


def node(model: ModelProto, op_type: str) -> NodeProto:
    return next(n for n in model.graph.node if n.op_type == op_type)


def weight(model: ModelProto) -> TensorProto:
    """Returns the weight of the first MatMul."""
    return next(t for t in model.graph.initializer if t.name == node(model, "MatMul").input[1])


def set_input(op_type: str, name: str) -> Change:
    return lambda model: node(model, op_type).input.__setitem__(1, name)


def one_name_for_two_values(model: ModelProto) -> None:
    first, second, *_ = (n for n in model.graph.node if n.op_type == "MatMul")
    second.output[0] = first.output[0]


def reverse_the_nodes(model: ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def another_shape(model: ModelProto) -> None:
    tensor = weight(model)
    tensor.dims[0], tensor.dims[1] = 2 * tensor.dims[0], tensor.dims[1] // 2


def declare_ids_as_float(model: ModelProto) -> None:
    next(v for v in model.graph.input if v.name == "input_ids").type.tensor_type.elem_type = TensorProto.FLOAT


def remove_the_opset_of_onnx_runtime(model: ModelProto) -> None:
    kept = [opset for opset in model.opset_import if opset.domain != "com.microsoft"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


FAULTS: dict[str, tuple[Change, str]] = {
    "an input that nothing computes": (set_input("MatMul", "nowhere"), "input 'nowhere' of node: name: .* OpType: MatMul"),
    "an input of an attention kernel that nothing computes": (set_input("GroupQueryAttention", "nowhere"), "input 'nowhere' of node"),
    "an output that nothing computes": (lambda m: setattr(m.graph.output[0], "name", "gone"), "output 'gone' is not an output of any"),
    "one name for two values": (one_name_for_two_values, "has been used as output names multiple times"),
    "one name for two inputs": (lambda m: m.graph.input.append(m.graph.input[0]), "'input_ids' has been used as graph input names"),
    "one name for two weights": (lambda m: m.graph.initializer.append(weight(m)), "has been used as graph input names multiple"),
    "nodes out of order": (reverse_the_nodes, "must be topologically sorted"),
    "a weight of another dtype": (lambda m: setattr(weight(m), "data_type", TensorProto.FLOAT16), r"inconsistent type tensor\(float16\)"),
    "an input of another dtype": (declare_ids_as_float, r"unsupported type: tensor\(float\)"),
    "a weight of another shape": (another_shape, "Incompatible dimensions for matrix multiplication"),
    "an operator that does not exist": (lambda m: setattr(node(m, "MatMul"), "op_type", "MatMull"), "No Op registered for MatMull"),
    "an attribute that does not exist": (
        lambda m: node(m, "Softmax").attribute.append(onnx.helper.make_attribute("axxis", 1)),
        "Unrecognized attribute: axxis",
    ),
    "one input too many": (lambda m: node(m, "MatMul").input.append("input_ids"), "has input size 3 not in range"),
    "no version of ONNX Runtime's operators": (remove_the_opset_of_onnx_runtime, "No opset import for domain 'com.microsoft'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_an_invalid_graph_is_refused(case: str, tiny_artifact: Path) -> None:
    change, message = FAULTS[case]
    model = onnx.load(tiny_artifact / VERIFY_GRAPH, load_external_data=False)
    change(model)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        check_graph(model.SerializeToString(), "verify.onnx")
    assert caught.value.message.startswith("verify.onnx is not valid ONNX: ")
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 400
    assert caught.value.hint


@pytest.mark.parametrize("name", [VERIFY_GRAPH, DRAFT_GRAPH])
def test_a_valid_graph_is_written_unchanged(name: str, tiny_artifact: Path, tmp_path: Path) -> None:
    write_graph(ir.load(tiny_artifact / name), tmp_path / name)
    assert (tmp_path / name).read_bytes() == (tiny_artifact / name).read_bytes()


def reuse_a_name(model: ir.Model) -> None:
    first, second, *_ = (n for n in model.graph if n.op_type == "MatMul")
    second.outputs[0].name = first.outputs[0].name


def int64_lengths(model: ir.Model) -> None:
    """Makes the lengths int64. The kernel takes int32, but ONNX has no schema for it and does not notice."""
    next(v for v in model.graph.inputs if v.name == "seqlens_k").type = ir.TensorType(ir.DataType.INT64)


@pytest.mark.parametrize(
    ("break_graph", "error", "message"),
    [
        (reuse_a_name, UnsupportedModelError, "verify.onnx is not valid ONNX: .* output names multiple times"),
        (int64_lengths, UnsupportedModelError, "ONNX Runtime cannot open verify.onnx: .*seqlens_k"),
    ],
)
def test_an_export_with_an_invalid_graph_publishes_nothing(
    break_graph: Callable[[ir.Model], None],
    error: type[SelfSpecError],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(model: ir.Model, plan: LoweringPlan) -> ir.Model:
        lowered = lower_verify(model, plan)
        break_graph(lowered)
        return lowered

    monkeypatch.setattr(assemble, "lower_verify", broken)
    with pytest.raises(error, match=message):
        export_artifact(ExportRequest(model=tiny_model, out=tmp_path / "out", skip=SKIP))
    assert not list(tmp_path.iterdir())


def replace_the_draft(old: Path) -> None:
    with staged_folder(old, force=True) as folder:
        replace_draft.clone_files(read_artifact(old), folder)
        replace_draft.replace_draft(folder, SkipSpec(mlp=(1,)), search=old.parent, tuning=TUNING)


def test_an_invalid_draft_does_not_replace_the_old_one(tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(verify: ir.Model, skip: SkipSet) -> ir.Model:
        draft = lower_draft(verify, skip)
        reuse_a_name(draft)
        return draft

    old = copy_of(tiny_artifact, tmp_path / "artifact")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    monkeypatch.setattr(assemble, "lower_draft", broken)
    with pytest.raises(UnsupportedModelError, match=r"draft.onnx is not valid ONNX: .* output names multiple times"):
        replace_the_draft(old)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    check_digests(read_artifact(old))
