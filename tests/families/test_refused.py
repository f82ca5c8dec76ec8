"""Families and settings that cannot be exported correctly are refused in one line, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssruntime.errors import UnsupportedModelError
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
