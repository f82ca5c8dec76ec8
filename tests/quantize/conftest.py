"""Fixtures of the quantization tests: the demo model in int8, and a model with outlier channels in fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ssruntime.artifact import Artifact
from sstool.skip_set import SkipSpec

pytest.importorskip("torch", reason="quantization needs torch")

SKIP = SkipSpec(attention=(3, 5, 8), mlp=(4, 6, 9, 10))
OUTLIERS = 30.0
"""Factor of the outlier channels."""


@pytest.fixture(scope="session")
def demo_int8(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model, exported in int8. Read only."""
    from sstool.pipelines.export import ExportRequest, export_artifact

    out = tmp_path_factory.mktemp("int8") / "demo"
    return export_artifact(ExportRequest(model=demo_model, out=out, skip=SKIP, dtype="int8"))


@pytest.fixture(scope="session")
def outlier_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with channels of activations 30 times as large, and weights that make up for it."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("outliers") / "model"
    shutil.copytree(demo_model, folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    after = {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
    after["post_attention_layernorm"] = ("mlp.gate_proj", "mlp.up_proj")
    for name in [n for n in weights if n.endswith("layernorm.weight")]:
        layer, norm = name.removesuffix(".weight").rsplit(".", 1)
        for channel in (7, 100, 201):
            weights[name][channel] *= OUTLIERS
            for product in after[norm]:
                weights[f"{layer}.{product}.weight"][:, channel] /= OUTLIERS
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def demo_int4(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model, exported in int4. Read only."""
    from sstool.pipelines.export import ExportRequest, export_artifact

    out = tmp_path_factory.mktemp("int4") / "demo"
    return export_artifact(ExportRequest(model=demo_model, out=out, skip=SKIP, dtype="int4"))
