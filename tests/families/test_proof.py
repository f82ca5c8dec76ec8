"""For every supported family, engines and texts match transformers.

A draft is compared with the checkpoint without the sublayers that the draft skips.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssruntime.artifact import SkipSet
from sstool.checkpoint.describe import SUPPORTED_FAMILIES, Checkpoint, describe_checkpoint
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.validation.reference import Reference
from tests.families.checkpoints import FAMILIES, make_checkpoint
from tests.families.proof import TOLERANCE, draft_error, prove, verify_graph

MakeModel = Callable[[str, int], Path]


@functools.cache
def opened(model: Path) -> tuple[Checkpoint, ir.Model, Reference]:
    """Returns a checkpoint, its verify graph, and the checkpoint in transformers."""
    checkpoint = describe_checkpoint(model)
    return checkpoint, verify_graph(checkpoint), Reference(model)


def test_the_tested_families_are_exactly_the_supported_ones() -> None:
    assert set(FAMILIES) == SUPPORTED_FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_first_shape_matches_transformers(family: str, family_model: MakeModel, tmp_path: Path) -> None:
    proof = prove(family_model(family, 0), tmp_path / "out")
    assert proof.holds, proof


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_second_shape_matches_transformers(family: str, family_model: MakeModel, tmp_path: Path) -> None:
    proof = prove(family_model(family, 1), tmp_path / "out")
    assert proof.holds, proof


PHI4_MINI = {"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 128}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi-4-mini": (
        "phi3",
        {
            "hidden_size": 256,
            "tie_word_embeddings": True,
            "sliding_window": None,
            "original_max_position_embeddings": 128,
            "rope_parameters": {**PHI4_MINI, "short_factor": [1 + i / 10 for i in range(24)], "long_factor": [2 + i for i in range(24)]},
        },
    ),
    "a setting of Mistral that transformers ignores": ("mistral", {"attention_bias": True}),
    "a setting of Qwen2 that transformers ignores": ("qwen2", {"attention_bias": False}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_variant_of_a_family_matches_transformers(name: str, tmp_path: Path) -> None:
    family, changes = SETTINGS[name]
    artifact = export_artifact(ExportRequest(model=make_checkpoint(tmp_path / "model", family, 0, **changes), out=tmp_path / "out"))
    gate = artifact.manifest.gate
    assert gate["parity"]["max_relative"] <= TOLERANCE
    assert gate["lossless"]["identical"] == "yes"


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    attention=st.sets(st.integers(0, 7), max_size=7),
    mlp=st.sets(st.integers(0, 7), max_size=7),
)
def test_any_skip_set_of_any_family_matches_transformers(family: str, attention: set[int], mlp: set[int], family_model: MakeModel) -> None:
    skip = SkipSet(attention=tuple(sorted(attention)), mlp=tuple(sorted(mlp)))
    assert draft_error(*opened(family_model(family, 0)), skip) <= TOLERANCE


SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("qwen2", {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "dynamic": ("mistral", {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}),
    "yarn": ("qwen3", {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}),
    "llama3": (
        "granite",
        {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}


@pytest.mark.parametrize("kind", SCALED)
def test_rope_scaling_matches_transformers(kind: str, tmp_path: Path) -> None:
    family, parameters = SCALED[kind]
    model = make_checkpoint(tmp_path / "model", family, 0, rope_parameters=parameters)
    assert draft_error(*opened(model), SkipSet(attention=(3,), mlp=(1,))) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_in_shards_match_transformers(dtype: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "gemma2", 1, dtype=dtype, shard="100KB")
    assert len(list(model.glob("*.safetensors"))) > 2
    assert draft_error(*opened(model), SkipSet(attention=(3,), mlp=(1,))) <= TOLERANCE
