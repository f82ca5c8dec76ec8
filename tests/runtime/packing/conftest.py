"""What the tests of the packed-weights cache share: an empty cache and a scripted artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.packing.entries import SCRIPT
from tests.runtime.scripted import write_artifact


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, which is not made yet."""
    folder = tmp_path / "deep" / "cache"
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A scripted artifact of the test's own."""
    return write_artifact(tmp_path / "artifact", SCRIPT)
