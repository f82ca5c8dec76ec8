"""A draft that gives no speed-up is used only on request, and tuning from another CPU gives a warning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ssruntime import GenerationConfig, load
from ssruntime.artifact import MANIFEST, Tuning, read_artifact
from ssruntime.machine import cpu_model


def tune(folder: Path, *, mode: str, cpu: str) -> None:
    """Writes the result of a search on `cpu` into an artifact's manifest; `mode` becomes the default mode."""
    manifest = read_artifact(folder).manifest
    drafts = tuple(dataclasses.replace(draft, mode=mode) for draft in manifest.drafts)
    tuning = Tuning(speedups={}, cpu=cpu, threads=2, onnxruntime="1.32.0", trials=3, remark="")
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, tuning=tuning, drafts=drafts).to_json(), encoding="utf-8")


def test_a_draft_that_gives_no_speed_up_is_used_only_on_request(demo_copy: Path) -> None:
    tune(demo_copy, mode="plain", cpu=cpu_model())
    with load(demo_copy, threads=1) as engine:
        assert engine.settings().mode == "plain"
        assert engine.generate("import os", GenerationConfig(max_new_tokens=4)).stats.rounds == 0
        assert engine.generate("import os", GenerationConfig(max_new_tokens=4, mode="speculative")).stats.rounds > 0


def test_a_tuned_draft_is_used_by_default(demo_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    tune(demo_copy, mode="speculative", cpu=cpu_model())
    with load(demo_copy, threads=1) as engine:
        assert engine.settings().mode == "speculative"
    assert not caplog.messages


def test_tuning_from_another_cpu_gives_one_warning_per_load(demo_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    tune(demo_copy, mode="speculative", cpu="Abacus 9000")
    with load(demo_copy, threads=1) as engine:
        engine.generate("import os", GenerationConfig(max_new_tokens=2))
    [message] = caplog.messages
    assert "was tuned on another kind of processor (Abacus 9000" in message
    with load(demo_copy, threads=1, draft=False):
        assert len(caplog.messages) == 1
