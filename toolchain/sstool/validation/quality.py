"""Compares a quantized artifact with its checkpoint in transformers: its products, and its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from ssruntime.engine import Engine
from sstool.prompts import BUILT_IN_CALIBRATION, read_prompts
from sstool.quantize.options import DEFAULT_MAX_KL
from sstool.quantize.quality import compare_quality, engine_logits
from sstool.quantize.texts import read_texts
from sstool.validation.products.report import measure_products
from sstool.validation.reference import Reference

QUALITY_KEY: Final = "quality"
"""Key of the manifest's `gate` with the figures of the export's own comparison."""


def check_quality(engine: Engine, folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Returns why an artifact fails, None if it passes; and the figures.

    Args:
        engine: an open engine of a quantized artifact.
        folder: the checkpoint that it was exported from.

    Raises:
        UnsupportedModelError: if transformers cannot run the checkpoint.
    """
    products = measure_products(engine.backend, ir.load(engine.artifact.base_graph()))
    reference = Reference(folder)
    texts = read_texts(engine.artifact, read_prompts(BUILT_IN_CALIBRATION))
    with engine_logits(engine.backend) as ours:
        quality = compare_quality(lambda ids: reference.logits(ids, range(len(ids))), ours, texts.held_out)
    limit = float(engine.artifact.manifest.gate.get(QUALITY_KEY, {}).get("limit", DEFAULT_MAX_KL))
    details = {**quality.to_json(), "limit": limit, "products": products.to_json()}
    if not products.passed:
        return f"the integer products differ from PyTorch's by {products.max_relative:.1e}", details
    if not quality.mean_kl <= limit:
        return f"the mean KL divergence from the checkpoint is {quality.mean_kl:.2g}; the limit is {limit:g}", details
    return None, details
