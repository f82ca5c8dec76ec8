"""Families and settings that cannot be exported correctly are refused in one line, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.pipelines import export
from sstool.pipelines.export import ExportRequest, export_artifact
from tests.families.checkpoints import FIRST, REFUSED, make_checkpoint

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}


def refusal(model: Path, folder: Path, **changes: object) -> UnsupportedModelError:
    with pytest.raises(UnsupportedModelError) as caught:
        export_artifact(ExportRequest(model=model, out=folder / "out", **changes))  # type: ignore[arg-type]
    assert not (folder / "out").exists()
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("family", REFUSED)
def test_an_unsupported_family_is_refused(family: str, tmp_path: Path) -> None:
    error = refusal(make_checkpoint(tmp_path / "model", family, 0), tmp_path)
    assert f"is of the family {family!r}, which is not yet supported" in error.message
    assert "llama" in (error.hint or "")


def test_a_head_size_that_no_kernel_supports_is_refused(tmp_path: Path) -> None:
    error = refusal(make_checkpoint(tmp_path / "model", "qwen2", 0, num_attention_heads=8, num_key_value_heads=4), tmp_path)
    assert "heads of 8" in error.message


def test_longrope_is_refused_beyond_its_original_context(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "phi3", 0, rope_parameters=LONGROPE, original_max_position_embeddings=64)
    error = refusal(model, tmp_path)
    assert "'longrope'" in error.message
    assert "--max-context 64" in (error.hint or "")
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out", max_context=64))
    assert artifact.manifest.gate["parity"]["max_relative"] <= 1e-5
    assert FIRST["num_hidden_layers"] == artifact.manifest.model.num_layers


VARIANTS = [
    ("llama", {"mlp_bias": True}, "mlp_bias is true"),
    ("granite", {"mlp_bias": True}, "mlp_bias is true"),
    ("smollm3", {"mlp_bias": True}, "mlp_bias is true"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
    ("qwen3_moe", {"mlp_only_layers": [0, 3]}, "some layers have a dense MLP"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "some layers have a dense MLP"),
    ("gemma3_text", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24, not the head_dim 32"),
    ("gemma3_text", {"final_logit_softcapping": 5.0}, "final_logit_softcapping is set"),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is set"),
    ("llama", {"partial_rotary_factor": 0.5}, "rotates 4 pairs of numbers of a head, and the kernel needs a multiple of 8"),
]


@pytest.mark.parametrize(("family", "changes", "reason"), VARIANTS)
def test_a_variant_that_no_graph_can_express_is_refused_by_name(family: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    error = refusal(make_checkpoint(tmp_path / "model", family, 0, **changes), tmp_path)
    assert f"this variant of {family!r} is not yet supported: " in error.message
    assert reason in error.message


def test_a_graph_that_does_not_run_is_not_blamed_on_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_gate(*_: object) -> None:
        raise RuntimeError("Non-zero status code\nreturned while running a node")

    monkeypatch.setattr(export, "run_gate", run_gate)
    error = refusal(make_checkpoint(tmp_path / "model", "llama", 0), tmp_path)
    assert "the exported graph does not run: Non-zero status code returned" in error.message
