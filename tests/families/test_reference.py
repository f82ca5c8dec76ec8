"""The reference runs a long sequence in chunks with a KV cache, and returns the logits of a single pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssruntime.artifact import SkipSet
from sstool.validation import reference
from sstool.validation.reference import Reference
from tests.families.checkpoints import FAMILIES
from tests.families.proof import IDS

MakeModel = Callable[[str, int], Path]


@pytest.mark.parametrize("skip", [None, SkipSet(attention=(1,), mlp=(2, 3))])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_give_the_logits_of_one_pass(
    family: str, skip: SkipSet | None, family_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Reference(family_model(family, 0))
    positions = (0, 3, 15, 16, 17, 31, len(IDS) - 1)  # none in the chunk from 32 to 47
    whole = model.logits(IDS, positions, skip=skip)
    monkeypatch.setattr(reference, "CHUNK", 16)
    chunked = model.logits(IDS, positions, skip=skip)
    assert np.abs(chunked - whole).max() < 1e-5 * np.abs(whole).max()


def test_a_long_sequence_is_run_in_chunks(family_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Reference(family_model("mistral", 0))
    lengths: list[int] = []
    model._model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(reference, "CHUNK", 20)
    model.logits(IDS, (0,))
    assert lengths == [20, 20, len(IDS) - 40]
