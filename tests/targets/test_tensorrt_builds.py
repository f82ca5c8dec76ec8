"""TensorRT parses and builds the graphs of every family; TensorRT-RTX does so without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from ssruntime.backends.device_engines.engine import profiles_for
from ssruntime.backends.device_engines.weights import as_inputs
from ssruntime.backends.tensorrt.library import Library
from ssruntime.errors import ArtifactError
from tests.families.checkpoints import FAMILIES, make_checkpoint
from tests.families.engines_of_targets import CONTEXT, write_engines

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'sstool[tensorrt]'")

from ssruntime.backends.tensorrt import trt_engine  # noqa: E402 - after the check that it can be imported

Build = Callable[[str, int, str], dict[str, int]]

QUICK: Final = ("llama", "gpt2")
"""Families of the ordinary run: plain, soft caps and sliding windows, learned positions and biases."""
BRAIN_FLOAT: Final = ("llama", "qwen3", "gemma2", "phi3", "mixtral")


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(module=rtx, name="tensorrt_rtx", version=rtx.__version__)


@pytest.fixture
def build(library: Library, tmp_path: Path) -> Build:
    """A function that builds both graphs of a family; it returns the sizes of the engines in bytes."""

    def built(family: str, shape: int, dtype: str) -> dict[str, int]:
        folder = write_engines(make_checkpoint(tmp_path / "model", family, shape), tmp_path / "out", "tensorrt", dtype)
        log = trt_engine.make_logger(library)
        return {
            name: len(
                trt_engine.build_plan(library, log, as_inputs((folder / name).read_bytes(), name), name, profiles=profiles_for(CONTEXT))
            )
            for name in ("verify.onnx", "draft.onnx")
        }

    return built


@pytest.mark.parametrize("family", QUICK)
def test_graphs_build_in_fp16(build: Build, family: str) -> None:
    assert min(build(family, 0, "fp16").values()) > 0


def test_an_engine_can_hold_its_weights(library: Library, tmp_path: Path) -> None:
    folder = write_engines(make_checkpoint(tmp_path / "model", "llama", 0), tmp_path / "out", "tensorrt", "fp16")
    log, profiles = trt_engine.make_logger(library), profiles_for(CONTEXT)
    content = (folder / "verify.onnx").read_bytes()
    without = trt_engine.build_plan(library, log, as_inputs(content, "verify.onnx"), "verify.onnx", profiles=profiles)
    baked = trt_engine.build_plan(library, log, content, "verify.onnx", profiles=profiles, file=folder / "verify.onnx")
    part = (folder / "weights.bin").read_bytes()[512:640]
    assert part in baked
    assert part not in without


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_of_every_family_build_in_fp16(build: Build, family: str, shape: int) -> None:
    assert min(build(family, shape, "fp16").values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", BRAIN_FLOAT)
def test_graphs_build_in_bf16(build: Build, family: str) -> None:
    assert min(build(family, 0, "bf16").values()) > 0


@pytest.mark.parametrize(
    ("graph", "message"),
    [(b"", "cannot build"), (b"not a model", "cannot parse")],
)
def test_what_cannot_be_parsed_is_one_line(library: Library, graph: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=rf"tensorrt_rtx {library.version} {message} verify\.onnx: ") as caught:
        trt_engine.build_plan(library, trt_engine.make_logger(library), graph, "verify.onnx", profiles=profiles_for(CONTEXT))
    assert "\n" not in caught.value.message


def test_a_logger_keeps_the_last_error(library: Library) -> None:
    log: Any = trt_engine.make_logger(library)
    assert log.last() == "no reason was given"
    log.log(rtx.ILogger.Severity.WARNING, "a warning")
    log.log(rtx.ILogger.Severity.ERROR, "an\nerror")
    assert log.last() == "an error"
