"""Graphs for GPUs compute what the graphs for the processor compute, in every family.

They run on the processor here: what is tested are the graphs and the backend, not a GPU's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.families.checkpoints import FAMILIES
from tests.families.engines_of_targets import draft_rows, largest_error, operators, tree_rows, verify_rows, write_engines

MakeModel = Callable[[str, int], Path]

STANDARD_TOLERANCE: Final = 1e-4
HALF_TOLERANCE: Final = 2e-2
ROUTED: Final = frozenset({"mixtral", "qwen3_moe"})
"""Families whose layers choose experts: rounding to 16 bits sends some tokens to others."""
COPIES: Final = frozenset({"Shape", "Pad", "MemcpyToHost", "MemcpyFromHost", "ConstantOfShape", "TensorScatter"})


def standard_error(family: str, shape: int, model: MakeModel, folder: Path) -> float:
    plain = write_engines(model(family, shape), folder / "ort-cpu", "ort-cpu", "fp32")
    standard = write_engines(model(family, shape), folder / "tensorrt", "tensorrt", "fp32")
    return largest_error(plain, standard, (verify_rows, draft_rows, tree_rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_standard_operators_compute_the_same(family: str, family_model: MakeModel, tmp_path: Path) -> None:
    assert standard_error(family, 0, family_model, tmp_path) <= STANDARD_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_standard_operators_compute_the_same_in_a_second_shape(family: str, family_model: MakeModel, tmp_path: Path) -> None:
    assert standard_error(family, 1, family_model, tmp_path) <= STANDARD_TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_for_cuda_in_16_bits(family: str, family_model: MakeModel, tmp_path: Path) -> None:
    plain = write_engines(family_model(family, 0), tmp_path / "ort-cpu", "ort-cpu", "fp32")
    cuda = write_engines(family_model(family, 0), tmp_path / "ort-cuda", "ort-cuda", "fp16")
    for graph in ("verify.onnx", "draft.onnx"):
        assert not COPIES & set(operators(cuda, graph))
    error = largest_error(plain, cuda, (verify_rows, draft_rows))
    if family not in ROUTED:
        assert error <= HALF_TOLERANCE
