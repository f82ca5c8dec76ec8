"""The demo model in int8: small, close to fp32, exact in its products, lossless in its drafts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime import GenerationConfig, load
from ssruntime.artifact import VNNI, WEIGHTS, Artifact
from ssruntime.backends.ort.integer_kernels import products_are_exact
from ssruntime.errors import ConfigError, PromptError, SelfSpecError, UnsupportedModelError
from sstool.check.run import CheckOptions, run_check
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.quantize.options import QuantizationOptions
from sstool.search.settings import SearchSettings
from sstool.validation.bits import GATE_SEQUENCES, measure_bits
from tests.quantize.conftest import SKIP

PROMPTS = ("def area(radius):", "Question: a train leaves at noon. Answer:", "import os\n\nclass Walker:")


def test_the_predictions_are_close_to_those_in_fp32(demo_int8: Artifact) -> None:
    quality = demo_int8.manifest.gate["quality"]
    assert quality["mean_kl"] <= 0.01
    assert quality["top1_agreement"] >= 0.97
    assert quality["positions"] > 2000
    assert abs(quality["perplexity"] / quality["reference_perplexity"] - 1) < 0.02


def test_the_report_names_every_sublayer(demo_int8: Artifact) -> None:
    costs = demo_int8.manifest.gate["quality"]["kl_of_each"]
    assert len(costs) == 2 * demo_int8.manifest.model.num_layers + 1
    assert {"attention 0", "mlp 15", "LM head"} <= costs.keys()
    assert all(cost >= 0 for cost in costs.values())


def test_products_are_those_of_the_same_arithmetic_in_pytorch(demo_int8: Artifact) -> None:
    products = demo_int8.manifest.gate["products"]
    assert products["products"] == 4 * demo_int8.manifest.model.num_layers + 1
    assert products["max_relative"] <= 1e-5
    assert products["activations_differing"] == 0


def test_logits_have_the_same_bits_in_every_kind_of_pass(demo_int8: Artifact) -> None:
    with load(demo_int8.folder, max_sequences=GATE_SEQUENCES, max_context=1200) as engine:
        report = measure_bits(engine.backend)
    assert report.rows > 400
    assert report.differing == 0


def test_the_weights_are_a_quarter_as_large(demo_int8: Artifact, demo_artifact: Path) -> None:
    embedding = 4 * demo_int8.manifest.model.vocab_size * demo_int8.manifest.model.hidden_size
    before = (demo_artifact / WEIGHTS).stat().st_size
    assert demo_int8.path(WEIGHTS).stat().st_size <= before / 4 + embedding + 0.02 * before
    assert demo_int8.manifest.model.weight_bytes == demo_int8.path(WEIGHTS).stat().st_size


def test_nothing_of_the_fp32_artifact_is_left(demo_int8: Artifact) -> None:
    assert {path.name for path in demo_int8.folder.iterdir()} == {"manifest.json", *demo_int8.manifest.files}


def test_the_manifest_says_what_it_needs(demo_int8: Artifact) -> None:
    manifest = demo_int8.manifest
    assert (manifest.dtype, manifest.kv.dtype, manifest.drafts[0].dtype) == ("int8", "fp32", "int8")
    assert manifest.instructions == (VNNI if products_are_exact() else "any")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("alternatives", [0, 3])
def test_speculative_decoding_gives_the_autoregressive_text(demo_int8: Artifact, temperature: float, alternatives: int) -> None:
    how = {"temperature": temperature, "seed": 5, "max_new_tokens": 48, "ignore_eos": True}
    accepted = withheld = alternatives_accepted = 0
    with load(demo_int8.folder) as engine:
        for prompt in PROMPTS:
            plain = engine.generate(prompt, GenerationConfig(mode="plain", **how))  # type: ignore[arg-type]
            fast = engine.generate(prompt, GenerationConfig(exit="fixed", max_draft=5, max_alternatives=alternatives, **how))  # type: ignore[arg-type]
            assert fast.token_ids == plain.token_ids
            accepted += fast.stats.accepted
            withheld += fast.stats.withheld
            alternatives_accepted += fast.stats.alternatives_accepted
    assert accepted > 0
    # No bound is known for the error of a branch, so the token after one always comes from the next round.
    assert withheld == alternatives_accepted
    assert alternatives == 0 or withheld > 0


@pytest.mark.slow
def test_check_compares_with_the_checkpoint(demo_int8: Artifact, demo_model: Path) -> None:
    parity = run_check(demo_int8.folder, CheckOptions(model=str(demo_model))).parity
    assert parity.status == "passed"
    assert parity.details["mean_kl"] == pytest.approx(demo_int8.manifest.gate["quality"]["mean_kl"], rel=1e-2)


@pytest.mark.slow
def test_check_fails_for_another_checkpoint(demo_int8: Artifact, demo_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from tests.toolchain.tiny_llama import copy_of

    other = copy_of(demo_model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    parity = run_check(demo_int8.folder, CheckOptions(model=str(other))).parity
    assert parity.status == "failed"
    assert "mean KL divergence" in (parity.reason or "")


@pytest.mark.slow
def test_weights_for_any_processor_have_seven_bits(demo_model: Path, tmp_path: Path) -> None:
    request = ExportRequest(model=demo_model, out=tmp_path / "any", skip=SKIP, dtype="int8", quantization=QuantizationOptions(cpu="any"))
    artifact = export_artifact(request)
    assert artifact.manifest.instructions == "any"
    assert artifact.manifest.gate["quality"]["mean_kl"] <= 0.01
    graph = ir.load(artifact.base_graph()).graph
    integers = [value.const_value for name, value in graph.initializers.items() if name.endswith(".int8")]
    largest = [int(np.abs(tensor.numpy().astype(int)).max()) for tensor in integers if tensor is not None]
    assert len(largest) == 65
    assert max(largest) == 64


@pytest.mark.slow
def test_a_search_works_on_the_quantized_engines(demo_int8: Artifact, tmp_path: Path) -> None:
    from sstool.pipelines.recipe import Recipe
    from sstool.pipelines.search import SearchTarget, search_for

    outcome = search_for(
        SearchTarget(
            model=None,
            artifact=demo_int8.folder,
            out=tmp_path / "found",
            force=False,
            recipe=Recipe(),
            recipe_name="none",
            settings=SearchSettings(trials=2, sampled_tokens=8, greedy_tokens=8, finalists=1),
            draft_memory=None,
            threads=None,
            resume=False,
            progress=lambda _text: None,
        )
    )
    assert outcome.num_trials == 2


def refused(tmp_path: Path, model: Path, **changes: object) -> SelfSpecError:
    """Returns the error of an export, which must leave nothing behind."""
    options = QuantizationOptions(**changes)  # type: ignore[arg-type]
    with pytest.raises(SelfSpecError) as caught:
        export_artifact(ExportRequest(model=model, out=tmp_path / "out", skip=SKIP, dtype="int8", quantization=options))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))]
    assert "\n" not in str(caught.value)
    return caught.value


def test_too_large_a_divergence_is_refused(demo_model: Path, tmp_path: Path) -> None:
    error = refused(tmp_path, demo_model, max_kl=1e-6)
    assert isinstance(error, UnsupportedModelError)
    assert "the mean KL divergence is" in error.message
    assert "--max-kl" in (error.hint or "")


def test_too_short_calibration_text_is_refused(demo_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.jsonl"
    file.write_text(json.dumps({"prompt": "too short"}) + "\n")
    error = refused(tmp_path, demo_model, calibration=str(file))
    assert isinstance(error, PromptError)
    assert "calibration text is too short" in error.message


def test_prompts_that_cannot_be_encoded_are_left_out(demo_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text('{"prompt": ""}\n{"prompt": [99999999]}\n{"prompt": "a"}\n')
    error = refused(tmp_path, demo_model, calibration=str(file))
    assert "calibration text is too short" in error.message
    assert caplog.text.count("is left out") == 2


@pytest.mark.parametrize("max_kl", [-1.0, float("nan")])
def test_limits_out_of_range_are_refused(demo_model: Path, tmp_path: Path, max_kl: float) -> None:
    assert isinstance(refused(tmp_path, demo_model, max_kl=max_kl), ConfigError)


def test_an_unknown_processor_is_refused(demo_model: Path, tmp_path: Path) -> None:
    assert "cpu" in refused(tmp_path, demo_model, cpu="sse2").message


def test_a_processor_without_exact_products_cannot_check_full_weights(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sstool.pipelines.quantized.products_are_exact", lambda: False)
    error = refused(tmp_path, demo_model, cpu="vnni")
    assert "neither VNNI nor AMX" in error.message
    assert error.hint == "--cpu any"


def test_quantization_options_need_a_quantized_data_type(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_kl has no meaning for dtype fp32"):
        export_artifact(ExportRequest(model=demo_model, out=tmp_path / "o", dtype="fp32", quantization=QuantizationOptions(max_kl=0.1)))


@pytest.mark.parametrize("target", ["ort-cuda", "tensorrt"])
def test_targets_for_gpus_have_no_int8(demo_model: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match="dtype: target"):
        export_artifact(ExportRequest(model=demo_model, out=tmp_path / "o", dtype="int8", target=target))
