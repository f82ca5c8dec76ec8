"""GPTQ and AWQ checkpoints: their numbers to the bit, exports that keep their codes, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ssruntime import GenerationConfig, load
from ssruntime.artifact import Artifact
from ssruntime.errors import CheckpointError, SelfSpecError, UnsupportedModelError
from sstool.check.run import CheckOptions, run_check
from sstool.checkpoint.packed.folders import readable_folder
from sstool.checkpoint.packed.layout import packed_layout
from sstool.graph.passes.block_products import OPERATOR, unpacked
from sstool.pipelines import quantized
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.quantize.options import QuantizationOptions
from sstool.quantize.plan import GroupPlan
from tests.families.checkpoints import make_checkpoint
from tests.processor import require_equal_int4_bits
from tests.quantize.conftest import SKIP
from tests.quantize.packed_checkpoints import packed_model
from tests.toolchain.tiny_llama import make_llama

FORMATS = [
    ("gptq", 32, True),
    ("gptq", 128, False),
    ("gptq_v2", 128, True),
    ("gptq_v2", -1, False),
    ("awq", 32, False),
    ("awq", 128, True),
]
Restored = dict[str, NDArray[np.float16]]


@pytest.fixture(scope="module")
def wide_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose matrices have 128 or 256 rows."""
    folder = tmp_path_factory.mktemp("wide-tiny") / "model"
    return make_llama(folder, hidden_size=128, intermediate_size=256, initializer_range=0.08)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random token ids; the tokenizer of the tiny checkpoint knows no words of real text."""
    random, file = np.random.default_rng(0), tmp_path_factory.mktemp("calibration") / "random.jsonl"
    file.write_text("".join(json.dumps({"prompt": random.integers(3, 97, 48).tolist()}) + "\n" for _ in range(16)))
    return str(file)


def numbers_of(folder: Path) -> dict[str, Any]:
    """Returns the tensors of a packed checkpoint after unpacking."""
    from safetensors.torch import load_file

    with readable_folder(folder) as numbers:
        return {name: values for file in numbers.glob("*.safetensors") for name, values in load_file(file).items()}


@pytest.mark.parametrize(("method", "group", "symmetric"), FORMATS)
def test_the_numbers_are_those_of_the_reference_to_the_bit(
    wide_tiny: Path, tmp_path: Path, method: str, group: int, symmetric: bool
) -> None:
    restored = packed_model(wide_tiny, tmp_path / "packed", method=method, group=group, symmetric=symmetric)
    found = numbers_of(tmp_path / "packed")
    assert len(restored) == 7 * 4
    for name, expected in restored.items():
        # The reference rounds the product of scale and step to fp16; ours is exact.
        np.testing.assert_array_equal(found[name].half().numpy().view(np.uint16), expected.view(np.uint16))
    assert not [name for name in found if name.endswith(("qweight", "qzeros", "scales", "g_idx"))]


@pytest.fixture(scope="module")
def demo_awq(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Restored]:
    """The demo model as an AWQ checkpoint, its artifact, and the reference's numbers."""
    folder = tmp_path_factory.mktemp("awq")
    restored = packed_model(demo_model, folder / "model", method="awq", group=64, symmetric=False)
    return folder / "model", export_artifact(ExportRequest(model=folder / "model", out=folder / "out", skip=SKIP)), restored


def test_an_export_keeps_the_codes(demo_awq: tuple[Path, Artifact, Restored]) -> None:
    _, artifact, restored = demo_awq
    assert artifact.manifest.dtype == "int4"
    quality = artifact.manifest.gate["quality"]
    assert quality["mean_kl"] < 0.002
    assert quality["finer_parts"] == ["LM head"]
    assert quality["unpacked"]["products"] == 4 * 16
    assert quality["unpacked"]["max_relative"] < 1e-5
    require_equal_int4_bits(artifact.manifest.gate)
    node = next(node for node in ir.load(artifact.base_graph()).graph if node.op_type == OPERATOR and "layers.3/mlp/down" in str(node.name))
    codes, scales, zeros = unpacked(node)
    matrix = (codes.astype(np.float32) - zeros[..., None]) * scales[..., None]
    expected = restored["model.layers.3.mlp.down_proj.weight"]
    np.testing.assert_array_equal(matrix.reshape(len(matrix), -1)[:, : expected.shape[1]].astype(np.float16), expected)


def test_speculative_decoding_gives_the_autoregressive_text(demo_awq: tuple[Path, Artifact, Restored]) -> None:
    how: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_new_tokens": 32, "ignore_eos": True}
    with load(demo_awq[1].folder) as engine:
        plain = engine.generate("def area(radius):", GenerationConfig(mode="plain", **how))
        fast = engine.generate("def area(radius):", GenerationConfig(exit="fixed", max_draft=5, **how))
    assert fast.token_ids == plain.token_ids
    assert fast.stats.accepted > 0


@pytest.mark.slow
def test_check_compares_with_the_packed_checkpoint(demo_awq: tuple[Path, Artifact, Restored]) -> None:
    model, artifact, _ = demo_awq
    parity = run_check(artifact.folder, CheckOptions(model=str(model))).parity
    assert parity.status == "passed"
    assert parity.details["mean_kl"] == pytest.approx(artifact.manifest.gate["quality"]["mean_kl"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "group", "symmetric"), FORMATS)
def test_every_format_is_exported(wide_tiny: Path, calibration: str, tmp_path: Path, method: str, group: int, symmetric: bool) -> None:
    packed_model(wide_tiny, tmp_path / "model", method=method, group=group, symmetric=symmetric)
    options = QuantizationOptions(calibration=calibration, max_kl=1.0)
    gate = export_artifact(ExportRequest(model=tmp_path / "model", out=tmp_path / "out", dtype="int4", quantization=options)).manifest.gate
    assert gate["quality"]["unpacked"]["max_relative"] < 1e-5
    assert gate["products"]["passed"]
    require_equal_int4_bits(gate)


@pytest.mark.parametrize(("names", "products"), [("q|k|v|down", 2), ("q|up|o|down", 2)])
def test_products_that_are_not_packed_as_a_whole_stay_in_fp32(
    wide_tiny: Path, calibration: str, tmp_path: Path, names: str, products: int
) -> None:
    # The graph has one product for q, k and v, and one for gate and up.
    projections = re.compile(rf"\.({names})_proj\.weight$")
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=False, projections=projections)
    options = QuantizationOptions(calibration=calibration, max_kl=1.0)
    artifact = export_artifact(ExportRequest(model=tmp_path / "model", out=tmp_path / "out", dtype="int4", quantization=options))
    quality = artifact.manifest.gate["quality"]
    assert quality["unpacked"]["products"] == products * 4
    assert quality["unpacked"]["max_relative"] < 1e-5
    in_blocks = [node for node in ir.load(artifact.base_graph()).graph if node.op_type == OPERATOR]
    assert len(in_blocks) == products * 4
    require_equal_int4_bits(artifact.manifest.gate)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("family", ["phi3", "mixtral", "qwen2", "qwen3_moe", "gemma2", "starcoder2"])
def test_packed_checkpoints_of_other_families(family: str, method: str, calibration: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "plain", family, 0)
    packed = packed_model(tmp_path / "plain", tmp_path / "model", method=method, group=32, symmetric=False)
    options = QuantizationOptions(calibration=calibration, max_kl=1.0)
    gate = export_artifact(ExportRequest(model=tmp_path / "model", out=tmp_path / "out", dtype="int4", quantization=options)).manifest.gate
    assert 0 < gate["quality"]["unpacked"]["products"] <= len(packed)
    assert gate["quality"]["unpacked"]["max_relative"] < 1e-5
    require_equal_int4_bits(gate)


def test_packed_weights_that_differ_from_their_numbers_are_seen(
    wide_tiny: Path, calibration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True)
    real = quantized.imported_groups

    def changed_groups(*args: Any, **kwargs: Any) -> dict[str, GroupPlan]:
        groups = real(*args, **kwargs)
        name, group = next(iter(groups.items()))
        weights = {key: replace(found, scales=found.scales * np.float32(1.001)) for key, found in group.weights.items()}
        return {**groups, name: replace(group, weights=weights)}

    monkeypatch.setattr(quantized, "imported_groups", changed_groups)
    options = QuantizationOptions(calibration=calibration, max_kl=1.0)
    error = refused(tmp_path / "model", tmp_path / "out", dtype="int4", quantization=options)
    assert "logits of the packed weights differ" in error.message


@pytest.mark.slow
def test_the_checkpoint_s_own_block_size(wide_tiny: Path, calibration: str, tmp_path: Path) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=128, symmetric=True)
    options = QuantizationOptions(calibration=calibration, max_kl=1.0, block_size=128)
    artifact = export_artifact(ExportRequest(model=tmp_path / "model", out=tmp_path / "out", dtype="int4", quantization=options))
    nodes = [node for node in ir.load(artifact.base_graph()).graph if node.op_type == OPERATOR]
    assert {node.attributes["block_size"].as_int() for node in nodes} == {128}


def refused(model: Path, out: Path, **changes: Any) -> SelfSpecError:
    """Returns the error of an export, which must leave nothing behind."""
    with pytest.raises(SelfSpecError) as caught:
        export_artifact(ExportRequest(model=model, out=out, **changes))
    assert not [path for path in out.parent.iterdir() if out.name in path.name]
    assert "\n" not in str(caught.value)
    return caught.value


def test_rows_in_an_order_of_their_own_are_refused(wide_tiny: Path, tmp_path: Path) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True, act_order=True, settings={"desc_act": True})
    error = refused(tmp_path / "model", tmp_path / "out")
    assert isinstance(error, UnsupportedModelError)
    assert "desc_act" in error.message
    assert "desc_act=False" in (error.hint or "")


def test_desc_act_without_another_order_is_read(wide_tiny: Path, tmp_path: Path) -> None:
    restored = packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True, settings={"desc_act": True})
    assert restored.keys() <= numbers_of(tmp_path / "model").keys()


@pytest.mark.parametrize(("dtype", "target"), [("int8", "ort-cpu"), ("fp32", "ort-cpu"), (None, "ort-cuda")])
def test_other_data_types_are_refused(wide_tiny: Path, tmp_path: Path, dtype: str | None, target: str) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="awq", group=32, symmetric=True)
    error = refused(tmp_path / "model", tmp_path / "out", dtype=dtype, target=target)
    assert "is quantized already, with awq" in error.message
    assert "--dtype int4" in (error.hint or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "to 3 bits"),
        ({"bits": None}, "to None bits"),
        ({"group_size": 48}, "in groups of 48"),
        ({"group_size": True}, "in groups of True"),
        ({"checkpoint_format": "marlin"}, "stored as 'marlin'"),
        ({"quant_method": "bitsandbytes"}, "with 'bitsandbytes'"),
        ({"quant_method": "awq", "version": "gemv"}, "stored as 'gemv'"),
    ],
)
def test_formats_that_cannot_be_read_are_named(wide_tiny: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True, settings=settings)
    error = refused(tmp_path / "model", tmp_path / "out")
    assert isinstance(error, UnsupportedModelError)
    assert message in error.message


@pytest.mark.parametrize("description", ["gptq", ["gptq"], 4])
def test_a_description_that_is_no_object_is_refused(wide_tiny: Path, tmp_path: Path, description: object) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True)
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "quantization_config": description}))
    assert isinstance(refused(tmp_path / "model", tmp_path / "out"), CheckpointError)


def changed(folder: Path, name: str, change: Any) -> None:
    """Changes a tensor of a checkpoint, or drops it where the change gives None."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    values = change(weights.pop(name))
    save_file(weights if values is None else {**weights, name: values}, folder / "model.safetensors", metadata={"format": "pt"})


MODULE = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        (f"{MODULE}.scales", lambda _: None, "lack the tensor"),
        (f"{MODULE}.qzeros", lambda _: None, "lack the tensor"),
        (f"{MODULE}.qweight", lambda t: t[:-8].contiguous(), "do not fit groups of 32"),
        (f"{MODULE}.qweight", lambda t: t.float(), "no matrices of int32"),
        (f"{MODULE}.scales", lambda t: t.float(), "its scales are torch.float32"),
        (f"{MODULE}.scales", lambda t: t[0].contiguous(), "no matrices of int32"),
        (f"{MODULE}.scales", lambda t: t * float("nan"), "NaN or infinite"),
        (f"{MODULE}.qzeros", lambda t: t * 0 - 1, "a zero point of 16"),
    ],
)
def test_damaged_weights_are_named(wide_tiny: Path, tmp_path: Path, tensor: str, change: Any, message: str) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True)
    changed(tmp_path / "model", tensor, change)
    error = refused(tmp_path / "model", tmp_path / "out")
    assert message in error.message
    assert "up_proj" in error.message


def test_blocks_larger_than_the_groups_are_refused(wide_tiny: Path, calibration: str, tmp_path: Path) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="gptq", group=32, symmetric=True)
    options = QuantizationOptions(calibration=calibration, block_size=64)
    error = refused(tmp_path / "model", tmp_path / "out", dtype="int4", quantization=options)
    assert "has groups of 32 rows" in error.message
    assert "--block-size" in (error.hint or "")


def test_unpacked_checkpoints_have_no_layout(demo_model: Path) -> None:
    assert packed_layout(demo_model) is None
    with readable_folder(demo_model) as folder:
        assert folder == demo_model


def test_an_unsupported_family_is_named_before_anything_is_unpacked(wide_tiny: Path, tmp_path: Path) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="awq", group=32, symmetric=True)
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": ["BertForCausalLM"]}))
    assert str(tmp_path / "model") in refused(tmp_path / "model", tmp_path / "out").message


def test_errors_name_the_folder_that_the_user_gave(wide_tiny: Path, calibration: str, tmp_path: Path) -> None:
    packed_model(wide_tiny, tmp_path / "model", method="awq", group=32, symmetric=True)
    options = QuantizationOptions(calibration=calibration, max_kl=1e-9)
    error = refused(tmp_path / "model", tmp_path / "out", dtype="int4", quantization=options)
    assert error.message.startswith(f"{tmp_path / 'model'}: in int4 the predictions differ too much")


def test_a_disk_that_refuses_is_an_error_of_the_disk(wide_tiny: Path, tmp_path: Path) -> None:
    import resource

    packed_model(wide_tiny, tmp_path / "model", method="awq", group=32, symmetric=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"), readable_folder(tmp_path / "model"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
