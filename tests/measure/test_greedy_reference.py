"""Greedy text is that of transformers in fp32: a first difference is allowed only where transformers' own choice is a tie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ssruntime import Engine, GenerationConfig, load

pytest.importorskip("torch", reason="the reference needs torch")
pytest.importorskip("transformers", reason="the reference needs transformers")

TIE = 1e-4
"""Largest gap between transformers' best two logits, as a fraction of the largest, that counts as a tie."""
NUM_TOKENS = 160
PROMPTS = (
    "Once upon a time",
    "Lily and Ben went to the park. They saw",
    "The big dog was",
    '"I want to play," said Tom.',
    "One day, a little girl named Mia found a red ball. She",
)


@pytest.fixture(scope="module")
def checkpoint(shared_model: Callable[[str], Path]) -> Path:
    """Real weights that were trained elsewhere."""
    return shared_model("stories260k")


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The checkpoint's artifact, with the default skip set."""
    from sstool.export import ExportRequest, export_artifact

    out = tmp_path_factory.mktemp("artifacts") / "stories260k"
    export_artifact(ExportRequest(model=checkpoint, out=out))
    return load(out, max_sequences=1)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    """The checkpoint in transformers, fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32, local_files_only=True).eval()


def greedy_reference(model: Any, ids: Sequence[int], num_tokens: int) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Returns transformers' greedy tokens, and the logits float32[vocab] behind each."""
    import torch

    tokens: list[int] = []
    rows: list[NDArray[np.float32]] = []
    step, cache = torch.tensor([list(ids)]), None
    with torch.inference_mode():
        for _ in range(num_tokens):
            output = model(step, past_key_values=cache, use_cache=True)
            rows.append(output.logits[0, -1].numpy())
            tokens.append(int(rows[-1].argmax()))
            step, cache = torch.tensor([[tokens[-1]]]), output.past_key_values
    return tokens, rows


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(engine: Engine, reference: Any, prompt: str) -> None:
    theirs, rows = greedy_reference(reference, engine.encode(prompt), NUM_TOKENS)
    for mode in ("plain", "speculative"):
        config = GenerationConfig(max_new_tokens=NUM_TOKENS, mode=mode, temperature=0.0, ignore_eos=True)
        ours = engine.generate(prompt, config).token_ids
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
        if first is not None:
            second, best = np.sort(rows[first])[-2:]
            assert best - second <= TIE * np.abs(rows[first]).max(), f"{mode}: token {first} differs and is no tie"
