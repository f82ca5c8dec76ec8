"""Fixtures of the family tests: random checkpoints, each made once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.families.checkpoints import make_checkpoint

pytest.importorskip("torch", reason="making checkpoints needs torch")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Limits torch to one thread: on two, models this small are slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def family_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Returns a function from family and shape to a random checkpoint, which tests only read."""
    known: dict[tuple[str, int], Path] = {}

    def model(family: str, shape: int) -> Path:
        if (family, shape) not in known:
            known[family, shape] = make_checkpoint(tmp_path_factory.mktemp(family) / "model", family, shape)
        return known[family, shape]

    return model
