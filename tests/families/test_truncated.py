"""A model too large to load into transformers is compared by its first layers only.

They cover the attention pattern of the layers twice, and the manifest records their number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.artifact_files import assemble
from sstool.checkpoint.attention_pattern import LayerAttention, period
from sstool.checkpoint.describe import describe_checkpoint
from sstool.checkpoint.truncated import first_layers, layers_to_compare
from sstool.graph.lower import LoweringPlan, lower_verify
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.validation import gate
from tests.families.checkpoints import FAMILIES

MakeModel = Callable[[str, int], Path]


def test_a_model_that_fits_in_memory_is_compared_whole(family_model: MakeModel) -> None:
    checkpoint = describe_checkpoint(family_model("gemma2", 0))
    assert layers_to_compare(checkpoint, None) == layers_to_compare(checkpoint, 2 * checkpoint.weight_bytes) == 8
    assert layers_to_compare(checkpoint, checkpoint.weight_bytes) == 4


@pytest.mark.parametrize(("pattern", "expected"), [("f", 1), ("ffff", 1), ("sf", 2), ("sfsfs", 2), ("sssfsssf", 4), ("fsss", 4)])
def test_the_period_is_that_of_the_shortest_layer_pattern(pattern: str, expected: int) -> None:
    kinds = {"f": LayerAttention(None, None), "s": LayerAttention(9, "every layer")}
    assert period(tuple(kinds[c] for c in pattern)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_are_a_checkpoint(family: str, family_model: MakeModel) -> None:
    whole = describe_checkpoint(family_model(family, 0))
    with first_layers(whole, 4) as first:
        assert first.num_layers == 4
        assert first.attention == whole.attention[:4]
        assert (first.hidden_size, first.vocab_size, first.head_dim) == (whole.hidden_size, whole.vocab_size, whole.head_dim)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "exaone4", "qwen3_moe"])
def test_an_export_with_little_memory_compares_the_first_layers(
    family: str, family_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate, "available_memory", lambda: 1)
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    artifact = export_artifact(ExportRequest(model=family_model(family, 0), out=tmp_path / "out"))
    parity = artifact.manifest.gate["parity"]
    assert parity["max_relative"] <= 1e-5
    assert (parity["layers"], parity["of_layers"]) == (8 if family == "exaone4" else 4, 8)
    assert ("covers its first 4 of 8 layers" in caplog.text) == (family != "exaone4")
    entries = [p for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.name != "costs"]
    assert len(entries) == 1, "the packed weights of the first layers are removed"


def test_a_wrong_graph_is_still_refused(family_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: ir.Model, plan: LoweringPlan) -> ir.Model:
        lowered = lower_verify(model, plan)
        for node in lowered.graph:
            if node.op_type == "GroupQueryAttention":
                node.attributes.add(ir.AttrInt64("local_window_size", -1))
        return lowered

    monkeypatch.setattr(gate, "available_memory", lambda: 1)
    monkeypatch.setattr(assemble, "lower_verify", broken)
    with pytest.raises(UnsupportedModelError, match="not the checkpoint's model"):
        export_artifact(ExportRequest(model=family_model("gemma2", 0), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
