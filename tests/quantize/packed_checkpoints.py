"""Makes GPTQ and AWQ checkpoints as their tools write them, from a checkpoint in floating-point numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.toolchain.tiny_llama import copy_of

AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column that lies in each place of an AWQ word, from the lowest bits."""


PROJECTIONS = re.compile(r"(_proj|\.w[123])\.weight$")


def packed_model(
    source: Path,
    out: Path,
    *,
    method: str,
    group: int,
    symmetric: bool,
    act_order: bool = False,
    settings: dict[str, Any] | None = None,
    projections: re.Pattern[str] = PROJECTIONS,
) -> dict[str, NDArray[np.float16]]:
    """Packs projections of a checkpoint; returns the reference dequantization of each, [out, in].

    As their tools do, it leaves out matrices whose sizes do not fit.

    Args:
        source: checkpoint folder with one weight file.
        out: folder to write.
        method: `gptq` (in its first format), `gptq_v2` or `awq`.
        group: rows of a group, or -1.
        symmetric: whether all zero points are 8.
        act_order: whether the rows are grouped in an order of their own.
        settings: changes of the quantization's description.
        projections: the names of the weights to pack.
    """
    import torch
    from safetensors.torch import load_file, save_file

    copy_of(source, out)
    weights = load_file(out / "model.safetensors")
    restored = {}
    for name in [n for n, values in weights.items() if projections.search(n) and _fits(values.shape, group)]:
        matrix = weights.pop(name).float().numpy().T
        module, rows = name.removesuffix(".weight"), matrix.shape[0]
        codes, zeros, scales = quantized(matrix, rows if group < 0 else group, symmetric=symmetric)
        size = rows if group < 0 else group
        # As AutoGPTQ and AutoAWQ restore them: the product in fp16.
        restored[name] = (scales.repeat(size, 0) * (codes.astype(np.float16) - zeros.astype(np.float16).repeat(size, 0))).T
        parts: dict[str, NDArray[Any]] = {"scales": scales}
        if method == "awq":
            parts |= {"qweight": awq_words(codes), "qzeros": awq_words(zeros)}
        else:
            order = np.arange(rows, dtype=np.int32) // size
            parts |= {"qweight": row_words(codes), "qzeros": column_words(zeros - (method == "gptq"))}
            parts["g_idx"] = np.random.default_rng(0).permutation(order) if act_order else order
        weights |= {f"{module}.{part}": torch.from_numpy(np.ascontiguousarray(values)) for part, values in parts.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    described: dict[str, Any] = {"quant_method": "awq" if method == "awq" else "gptq", "bits": 4, "group_size": group}
    described |= {"version": "gemm", "zero_point": not symmetric} if method == "awq" else {"checkpoint_format": method, "sym": symmetric}
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": {**described, **(settings or {})}}))
    return restored


def _fits(shape: tuple[int, ...], group: int) -> bool:
    columns, rows = shape
    return columns % 8 == 0 and rows % (8 if group < 0 else group) == 0


def quantized(
    matrix: NDArray[np.float32], group: int, *, symmetric: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Returns codes [rows, columns], and zero points and scales [groups, columns], by the largest weights."""
    rows, columns = matrix.shape
    groups = matrix.reshape(rows // group, group, columns)
    high, low = groups.max(1).clip(0), groups.min(1).clip(None, 0)
    scales = (np.maximum(high, -low) / 7 if symmetric else (high - low) / 14).astype(np.float16)
    # The first format of GPTQ stores the zero point less one, so it is at least 1.
    zeros = np.full(scales.shape, 8) if symmetric else np.round(-low / scales.astype(np.float32)).clip(1, 15).astype(np.int64)
    codes = np.round(groups / scales[:, None].astype(np.float32)).astype(np.int64) + zeros[:, None]
    return codes.clip(0, 15).reshape(rows, columns), zeros, scales


def row_words(codes: NDArray[np.int64]) -> NDArray[np.int32]:
    """Returns words of eight rows each."""
    words = np.zeros((len(codes) // 8, codes.shape[1]), dtype=np.int64)
    for row, values in enumerate(codes):
        words[row // 8] |= values << 4 * (row % 8)
    return words.astype(np.uint32).view(np.int32)


def column_words(codes: NDArray[np.int64], places: tuple[int, ...] = tuple(range(8))) -> NDArray[np.int32]:
    """Returns words of eight columns each; `places` are the columns from the lowest bits on."""
    words = np.zeros((len(codes), codes.shape[1] // 8), dtype=np.int64)
    for word in range(words.shape[1]):
        for place, column in enumerate(places):
            words[:, word] |= codes[:, 8 * word + column] << 4 * place
    return words.astype(np.uint32).view(np.int32)


def awq_words(codes: NDArray[np.int64]) -> NDArray[np.int32]:
    """Returns words of eight columns each in AWQ's order."""
    return column_words(codes, AWQ_PLACES)
