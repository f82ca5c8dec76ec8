"""Greedy text is the same as that of transformers in fp32.

The first difference is allowed only at a position where transformers' best two logits tie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssruntime import Engine, GenerationConfig, load
from tests.greedy_reference import greedy_reference, load_reference, untied_difference

pytest.importorskip("torch", reason="the reference needs torch")
pytest.importorskip("transformers", reason="the reference needs transformers")

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
    """Returns a small checkpoint with trained weights."""
    return shared_model("stories260k")


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Returns an engine on the checkpoint's artifact, which has the default skip set."""
    from sstool.pipelines.export import ExportRequest, export_artifact

    out = tmp_path_factory.mktemp("artifacts") / "stories260k"
    export_artifact(ExportRequest(model=checkpoint, out=out))
    return load(out, max_sequences=1)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    """Returns the checkpoint in transformers, fp32."""
    return load_reference(checkpoint)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_matches_transformers(engine: Engine, reference: Any, prompt: str) -> None:
    theirs, rows = greedy_reference(reference, engine.encode(prompt), NUM_TOKENS)
    for mode in ("plain", "speculative"):
        config = GenerationConfig(max_new_tokens=NUM_TOKENS, mode=mode, temperature=0.0, ignore_eos=True)
        ours = engine.generate(prompt, config).token_ids
        assert untied_difference(ours, theirs, rows) is None, mode
