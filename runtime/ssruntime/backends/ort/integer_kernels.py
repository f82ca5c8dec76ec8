"""Probes the processor's integer kernels: whether a product of int8 weights is an exact sum.

Processors without VNNI add pairs of products in 16 bits, which saturate when weights and activations are
large. Artifacts for any processor have smaller weights (see the manifest's `instructions`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from ssruntime.artifact import VNNI, Artifact
from ssruntime.errors import BackendUnavailableError
from ssruntime.machine import cpu_model

PROBE: Final = Path(__file__).with_name("integer_probe.onnx")
"""A product of `x` uint8[rows, 64], of zero point 128, with an int8 matrix [64, 32] of 127 and -127."""
DEPTH: Final = 64
_LARGEST: Final = 255
_ROWS: Final = (1, 4, 16)
"""Numbers of rows for which kernels differ."""
_ZERO: Final = 128
_WEIGHT: Final = 127


@functools.cache
def products_are_exact() -> bool:
    """Returns whether products of the largest activations and weights are exact sums on this processor."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(PROBE.read_bytes(), options, providers=["CPUExecutionProvider"])
    return all(is_exact(session.run(None, {"x": np.full((rows, DEPTH), _LARGEST, dtype=np.uint8)})[0]) for rows in _ROWS)


def is_exact(sums: np.ndarray) -> bool:
    """Returns whether the results float32[rows, 32] of the probe are the exact sums."""
    exact = (_LARGEST - _ZERO) * _WEIGHT * DEPTH
    return bool((np.abs(sums) == exact).all())


def require_instructions(artifact: Artifact) -> None:
    """Checks that this processor has the instructions that an artifact needs.

    Raises:
        BackendUnavailableError: if it has not.
    """
    if artifact.manifest.instructions == VNNI and not products_are_exact():
        raise BackendUnavailableError(
            f"the artifact needs a processor with VNNI or AMX; products of its int8 weights are not exact on this one ({cpu_model()})",
            "export the model with --cpu any",
        )
