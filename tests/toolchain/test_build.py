"""A decoder graph has every weight of its checkpoint; an error says why no graph can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.graph.build import build_decoder
from tests.toolchain.tiny_llama import edit_json


def test_every_weight_is_present(tiny_model: Path) -> None:
    graph = build_decoder(tiny_model).graph
    assert graph.initializers
    assert all(value.const_value is not None for value in graph.initializers.values())


def test_symbolic_links_to_weights_are_followed(tiny_copy: Path, tmp_path: Path) -> None:
    stored = tiny_copy / "model.safetensors"
    stored.rename(tmp_path / "blob")
    stored.symlink_to(tmp_path / "blob")
    graph = build_decoder(tiny_copy).graph
    assert all(value.const_value is not None for value in graph.initializers.values())


def test_an_unknown_architecture_is_refused_with_the_reason(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", model_type="invented", architectures=["InventedForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="no graph can be built: ValueError") as caught:
        build_decoder(tiny_copy)
    assert str(tiny_copy) in caught.value.message


def test_a_build_result_that_is_not_a_graph_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> dict[str, Any]:
        return {"model": "no graph"}

    monkeypatch.setattr("mobius.build", build)
    with pytest.raises(UnsupportedModelError, match="mobius built no decoder graph"):
        build_decoder(tiny_model)
