"""Graphs for GPUs compute what the graphs for the processor compute, in every family.

They run on the processor here: what is tested are the graphs and the backend, not a GPU's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests.families.checkpoints import FAMILIES
from tests.families.engines_of_targets import draft_rows, operators, row_errors, tree_rows, verify_rows, write_engines

MakeModel = Callable[[str, int], Path]

STANDARD_TOLERANCE: Final = 1e-4
HALF_TOLERANCE: Final = 2e-2
ROUTED: Final = frozenset({"mixtral"})
"""A family whose layers choose experts: rounding to 16 bits sends a few tokens to others."""
_SHARE: Final = 0.9
"""Share of the rows that no other expert changes."""
COPIES: Final = frozenset({"Shape", "Pad", "MemcpyToHost", "MemcpyFromHost", "ConstantOfShape", "TensorScatter"})


def standard_error(family: str, shape: int, model: MakeModel, folder: Path) -> float:
    plain = write_engines(model(family, shape), folder / "ort-cpu", "ort-cpu", "fp32")
    standard = write_engines(model(family, shape), folder / "tensorrt", "tensorrt", "fp32")
    return float(row_errors(plain, standard, (verify_rows, draft_rows, tree_rows)).max())


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
    errors = row_errors(plain, cuda, (verify_rows, draft_rows))
    assert np.quantile(errors, _SHARE if family in ROUTED else 1.0) <= HALF_TOLERANCE
