"""The demo model in int4: close to fp32, its LM head in int8, and exact with the default block size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from ssruntime import GenerationConfig, load
from ssruntime.artifact import VNNI, WEIGHTS, Artifact
from ssruntime.backends.ort.integer_kernels import products_are_exact
from ssruntime.errors import ConfigError
from sstool.artifact_files.bits_record import exactness, recorded_bits
from sstool.check.run import CheckOptions, run_check
from sstool.graph.passes.block_products import OPERATOR
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.quantize.options import QuantizationOptions
from tests.quantize.conftest import SKIP


def test_the_predictions_are_close_to_those_in_fp32(demo_int4: Artifact) -> None:
    quality = demo_int4.manifest.gate["quality"]
    assert quality["mean_kl"] <= 0.01
    assert quality["top1_agreement"] >= 0.94
    assert abs(quality["perplexity"] / quality["reference_perplexity"] - 1) < 0.02
    assert len(quality["kl_of_each"]) == 2 * demo_int4.manifest.model.num_layers + 1


def test_the_sublayer_that_loses_most_has_8_bits(demo_int4: Artifact) -> None:
    quality = demo_int4.manifest.gate["quality"]
    assert max(quality["kl_of_each"], key=quality["kl_of_each"].__getitem__) == "LM head"
    assert (quality["finer"], quality["finer_parts"]) == ("int8" if products_are_exact() else "int8 of 7 bits", ["LM head"])
    kinds = [node.op_type for node in ir.load(demo_int4.base_graph()).graph]
    assert kinds.count(OPERATOR) == 4 * demo_int4.manifest.model.num_layers
    assert kinds.count("MatMulIntegerToFloat") == 1
    assert demo_int4.manifest.instructions == (VNNI if products_are_exact() else "any")


def test_products_are_those_of_the_same_arithmetic_in_pytorch(demo_int4: Artifact) -> None:
    products = demo_int4.manifest.gate["products"]
    assert products["products"] == 4 * demo_int4.manifest.model.num_layers + 1
    assert products["max_relative"] <= 1e-5


def test_the_weights_take_a_sixth_and_the_head_and_the_embedding(demo_int4: Artifact, demo_artifact: Path) -> None:
    embedding = demo_int4.manifest.model.vocab_size * demo_int4.manifest.model.hidden_size
    before = (demo_artifact / WEIGHTS).stat().st_size
    assert demo_int4.path(WEIGHTS).stat().st_size <= (before - 4 * embedding) / 6 + 5 * embedding + 0.02 * before


def test_the_gate_records_whether_bits_are_equal(demo_int4: Artifact) -> None:
    bits = recorded_bits(demo_int4)
    assert bits is not None
    assert bits.rows > 400
    # What the kernels do depends on the processor; the artifact says it either way.
    assert exactness(demo_int4, bits.kernels.threads) == ("bits" if bits.equal else f"near-tie ({bits.difference})")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_speculative_decoding_gives_the_autoregressive_text(demo_int4: Artifact, temperature: float) -> None:
    bits = recorded_bits(demo_int4)
    if bits is None or not bits.equal:
        pytest.skip("this processor's kernels round differently for each query length")
    how: dict[str, Any] = {"temperature": temperature, "seed": 5, "max_new_tokens": 48, "ignore_eos": True}
    with load(demo_int4.folder) as engine:
        for prompt in ("def area(radius):", "import os\n\nclass Walker:"):
            plain = engine.generate(prompt, GenerationConfig(mode="plain", **how))
            fast = engine.generate(prompt, GenerationConfig(exit="fixed", max_draft=5, **how))
            assert fast.token_ids == plain.token_ids


@pytest.mark.slow
def test_larger_blocks_are_smaller_and_labelled(demo_int4: Artifact, demo_model: Path, tmp_path: Path) -> None:
    options = QuantizationOptions(block_size=128, cpu="any")
    artifact = export_artifact(ExportRequest(model=demo_model, out=tmp_path / "out", skip=SKIP, dtype="int4", quantization=options))
    assert artifact.path(WEIGHTS).stat().st_size < demo_int4.path(WEIGHTS).stat().st_size
    assert artifact.manifest.instructions == "any"
    assert artifact.manifest.gate["quality"]["weights"] == "int4 in blocks of 128"
    found = run_check(artifact.folder, CheckOptions())
    bits = recorded_bits(artifact)
    assert bits is not None
    assert found.bits.status == ("passed" if bits.equal else "reported")
    assert found.losslessness.status in ("passed", "reported")


@pytest.mark.parametrize(
    ("dtype", "changes", "message"),
    [
        ("int4", {"block_size": 48}, "block_size must be one of 32, 64, 128, found 48"),
        ("int8", {"block_size": 32}, "block_size has no meaning for dtype int8"),
        (None, {"block_size": 32}, "block_size has no meaning for the checkpoint's own dtype"),
    ],
)
def test_block_sizes_out_of_place_are_refused(
    demo_model: Path, tmp_path: Path, dtype: str | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export_artifact(ExportRequest(model=demo_model, out=tmp_path / "out", dtype=dtype, quantization=QuantizationOptions(**changes)))
    assert caught.value.hint in ("--block-size 32", "--dtype int4")
    assert not list(tmp_path.iterdir())
