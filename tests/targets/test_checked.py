"""`check` and the gate judge an artifact for GPUs by what 16 bits allow, and say where they ran."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sstool.check import CheckOptions, PromptFile, run_check
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.prompts import PromptRecord
from sstool.skip_set import SkipSpec
from sstool.validation import gate, reference
from tests.families.checkpoints import make_checkpoint

SKIP = SkipSpec(attention=(1, 3), mlp=(2,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in bf16."""
    return make_checkpoint(tmp_path_factory.mktemp("checked") / "model", "qwen3", 0, dtype="bfloat16")


@pytest.mark.parametrize("target", ["ort-cuda", "tensorrt"])
def test_a_checkpoint_in_bf16_keeps_its_type_and_is_checked_in_fp16(
    model: Path, tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out", target=target, skip=SKIP))
    manifest = artifact.manifest
    assert (manifest.dtype, manifest.kv.dtype, manifest.gate["dtype"]) == ("bf16", "bf16", "fp16")
    assert "the same graphs are checked in fp16" in caplog.text
    assert manifest.weights_size < 1.2 * 2 * manifest.model.num_parameters
    json.dumps(manifest.gate)


def test_parity_is_judged_by_what_casting_costs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ExportRequest(model=model, out=tmp_path / "out", target="tensorrt", dtype="fp16", skip=SKIP)
    found = export_artifact(request).manifest.gate["parity"]
    assert 1e-4 < found["tolerance"] < 5e-2
    assert found["max_relative"] <= found["tolerance"]
    assert gate.__name__  # the gate itself cannot be turned off
    monkeypatch.setattr(reference, "CAST_FACTOR", 1e-6)
    with pytest.raises(Exception, match="the exported graph is not the checkpoint's model"):
        export_artifact(ExportRequest(model=model, out=tmp_path / "other", target="tensorrt", dtype="fp16", skip=SKIP))
    assert not (tmp_path / "other").exists()


def test_a_check_says_what_it_could_not_measure(model: Path, tmp_path: Path) -> None:
    folder = export_artifact(ExportRequest(model=model, out=tmp_path / "out", target="ort-cuda", dtype="fp16", skip=SKIP)).folder
    prompts = [PromptRecord(id=f"p{n}", index=n, prompt=(n, n + 7, n + 9)) for n in range(3)]
    report = run_check(folder, CheckOptions(model=str(model)), prompt_files=[PromptFile(name="prompts", prompts=prompts)])
    assert report.ok, report
    assert report.bits.status == "reported"
    assert "near ties are possible" in (report.bits.reason or "")
    assert (report.parity.status, report.losslessness.status) == ("passed", "passed")
    assert report.memory.status == "not measured"
