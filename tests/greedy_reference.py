"""Greedy decoding by transformers in fp32, and the first place where our text differs without a tie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIE = 1e-4
"""Largest gap between the best two logits that counts as a tie, relative to the row's largest magnitude."""


def load_reference(folder: Path) -> Any:
    """Returns the checkpoint as a transformers model in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    # Only the eager implementation applies a soft cap to attention scores.
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True, attn_implementation="eager").eval()


def greedy_reference(model: Any, ids: Sequence[int], num_tokens: int) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Returns transformers' greedy tokens, and for each the logits float32[vocab] that it is taken from."""
    import torch

    tokens: list[int] = []
    rows: list[NDArray[np.float32]] = []
    step, kv_cache = torch.tensor([list(ids)]), None
    with torch.inference_mode():
        for _ in range(num_tokens):
            output = model(step, past_key_values=kv_cache, use_cache=True)
            rows.append(output.logits[0, -1].numpy())
            tokens.append(int(rows[-1].argmax()))
            step, kv_cache = torch.tensor([[tokens[-1]]]), output.past_key_values
    return tokens, rows


def untied_difference(ours: Sequence[int], theirs: Sequence[int], rows: Sequence[NDArray[np.float32]]) -> int | None:
    """Returns the first index at which two texts differ without a tie in transformers' logits, else None.

    `rows` are the logits of `theirs`. Only the first difference counts: after it, the texts have different
    contexts.
    """
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    if first is None:
        return None
    second, best = np.sort(rows[first])[-2:]
    return None if best - second <= TIE * np.abs(rows[first]).max() else first
