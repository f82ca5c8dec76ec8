"""What tests share: the demo artifact, exported once a session, models that may be absent, and a home of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO_MODEL = REPOSITORY / "recipes" / "demo"
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gives the session, and the processes it starts, a home and caches of their own, and no way to a model hub."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
        patch.setenv("SSTOOL_CACHE_DIR", str(home / "sstool-cache"))
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Processes that tests start run this source too, installed or not.
        patch.setenv("PYTHONPATH", os.pathsep.join(str(REPOSITORY / root) for root in ("runtime", "toolchain")))
        patch.delenv("SSTOOL_CACHE_MAX_GB", raising=False)
        yield home


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's checkpoint folder. Read only: copy it to change it."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported as its recipe says. Read only: `demo_copy` is there to be damaged."""
    from sstool.pipelines.export import ExportRequest, export_artifact
    from sstool.pipelines.recipe import read_recipe

    recipe = read_recipe(REPOSITORY / "recipes" / "demo.yaml")
    out = tmp_path_factory.mktemp("artifacts") / "demo"
    return export_artifact(ExportRequest(model=DEMO_MODEL, out=out, skip=recipe.skip_set)).folder


@pytest.fixture
def demo_copy(demo_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the demo artifact, for one test to change."""
    copy = tmp_path / "demo-copy"
    shutil.copytree(demo_artifact, copy)
    return copy


@pytest.fixture(scope="session")
def shared_model() -> Callable[[str], Path]:
    """Finds a model that is not in the repository, by name; skips the test where it is absent."""

    def find(name: str) -> Path:
        folder = SHARED / "models" / name
        if not (folder / "config.json").exists():
            pytest.skip(f"the model {name!r} is not beside the repository (../shared/models/{name})")
        return folder

    return find


@pytest.fixture(scope="session")
def shared_prompts() -> Callable[[str], Path]:
    """Finds a file of evaluation prompts that is not in the repository, by name; skips the test where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / "eval" / f"{name}.jsonl"
        if not path.exists():
            pytest.skip(f"the prompts {name!r} are not beside the repository (../shared/eval/{name}.jsonl)")
        return path

    return find
