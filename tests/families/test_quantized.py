"""Every supported family in int8 and int4: exact products, equal bits in all passes, lossless drafts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.quantize.options import QuantizationOptions
from tests.families.checkpoints import FAMILIES
from tests.processor import require_equal_int4_bits
from tests.toolchain.tiny_llama import VOCAB

MakeModel = Callable[[str, int], Path]

USUAL = ("gpt2", "llama", "mixtral", "olmo2")
"""Families of the ordinary run: biases and layer norms, gated MLPs, experts, and inputs without a norm."""
RANDOM_WEIGHTS_KL = 5.0
"""What rounding does to the predictions of random weights says nothing about quality."""


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random token ids; the tokenizer of the random checkpoints knows no words of real text."""
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("calibration") / "random.jsonl"
    file.write_text("".join(json.dumps({"prompt": random.integers(3, VOCAB, 48).tolist()}) + "\n" for _ in range(24)))
    return file


def require_sound(model: Path, dtype: str, calibration: Path, out: Path) -> None:
    options = QuantizationOptions(max_kl=RANDOM_WEIGHTS_KL, calibration=str(calibration))
    gate = export_artifact(ExportRequest(model=model, out=out, dtype=dtype, quantization=options)).manifest.gate
    assert gate["parity"]["passed"]
    assert gate["products"]["passed"]
    assert gate["bits"]["rows"] > 400
    if dtype == "int4":
        require_equal_int4_bits(gate)
    else:
        assert gate["bits"]["differing"] == 0
    assert gate["lossless"]["identical"] == "yes"


@pytest.mark.parametrize(("family", "dtype"), [*((family, "int8") for family in USUAL), ("gpt2", "int4"), ("mixtral", "int4")])
def test_usual_families(family: str, dtype: str, family_model: MakeModel, calibration: Path, tmp_path: Path) -> None:
    require_sound(family_model(family, 0), dtype, calibration, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("shape", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_both_shapes(
    family: str, shape: int, dtype: str, family_model: MakeModel, calibration: Path, tmp_path: Path
) -> None:
    require_sound(family_model(family, shape), dtype, calibration, tmp_path / "out")
