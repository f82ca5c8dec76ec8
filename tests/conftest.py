"""Fixtures for all tests: the exported demo artifact, models that may be absent, an isolated home folder."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO_MODEL = REPOSITORY / "recipes" / "demo"
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gives the session and its subprocesses an isolated home and caches, without access to a model hub."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
        patch.setenv("SSTOOL_CACHE_DIR", str(home / "sstool-cache"))
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Subprocesses import the packages of this checkout too, whether or not they are installed.
        patch.setenv("PYTHONPATH", os.pathsep.join(str(REPOSITORY / root) for root in ("runtime", "toolchain")))
        patch.delenv("SSTOOL_CACHE_MAX_GB", raising=False)
        yield home


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """Makes SIGINT interrupt this process, also where a shell started it in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's checkpoint folder. Read-only: copy it to change it."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported with its recipe. Read-only: a test that changes it takes `demo_copy`."""
    from sstool.pipelines.export import ExportRequest, export_artifact
    from sstool.pipelines.recipe import read_recipe

    recipe = read_recipe(REPOSITORY / "recipes" / "demo.yaml")
    out = tmp_path_factory.mktemp("artifacts") / "demo"
    return export_artifact(ExportRequest(model=DEMO_MODEL, out=out, skip=recipe.skip_set)).folder


@pytest.fixture
def demo_copy(demo_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the demo artifact that one test may change."""
    copy = tmp_path / "demo-copy"
    shutil.copytree(demo_artifact, copy)
    return copy


@pytest.fixture(scope="session")
def shared_model() -> Callable[[str], Path]:
    """A function that finds a model outside the repository by name, and skips the test if it is absent."""

    def find(name: str) -> Path:
        folder = SHARED / "models" / name
        if not (folder / "config.json").exists():
            pytest.skip(f"the model {name!r} is not beside the repository (../shared/models/{name})")
        return folder

    return find
