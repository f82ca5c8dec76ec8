"""Fixtures of the search tests: the demo model's drafts and texts, and a tiny model to search in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssruntime.engine import load
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.settings import SearchSettings
from sstool.search.texts.make import CachedText, make_texts
from sstool.skip_set import SkipSpec
from tests.search.fake_time import FakeTime
from tests.toolchain.tiny_llama import make_llama

SETTINGS = SearchSettings(sampled_tokens=24, greedy_tokens=16)
CODE = (
    "def area(radius):",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):",
    "import json\n\n\ndef read_config(path):",
)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Fake time that every search clock of the test reads."""
    fake = FakeTime()
    monkeypatch.setattr("sstool.search.clock.time", fake)
    return fake


@pytest.fixture(scope="session")
def builder(demo_artifact: Path) -> Iterator[DraftBuilder]:
    """A draft builder over the demo artifact's verify engine."""
    with load(demo_artifact, threads=1, max_context=1200, max_sequences=1, draft=False) as engine:
        yield DraftBuilder(engine)


@pytest.fixture(scope="session")
def texts(builder: DraftBuilder) -> list[CachedText]:
    """Calibration texts of the demo model: three sampled continuations and a greedy one."""
    prompts = [PromptRecord(id=str(n), prompt=prompt, index=n) for n, prompt in enumerate(CODE)]
    return make_texts(builder, prompts, SETTINGS, lambda _done, _total: None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of three layers, which has 62 skip sets. Read only."""
    return make_llama(tmp_path_factory.mktemp("search") / "model", num_hidden_layers=3)


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the tiny model. Read only."""
    out = tmp_path_factory.mktemp("search") / "artifact"
    return export_artifact(ExportRequest(model=tiny_model, out=out, skip=SkipSpec(mlp=(1,)))).folder


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four prompts in words of the tiny model's vocabulary."""
    path = tmp_path_factory.mktemp("search") / "prompts.jsonl"
    lines = [json.dumps({"prompt": " ".join(f"w{(7 * n + k) % 90}" for k in range(6))}) for n in range(4)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
