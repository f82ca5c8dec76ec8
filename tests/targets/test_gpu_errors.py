"""What is missing on a machine is said in one line: bindings, driver, GPU, library, memory."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest

from ssruntime import ArtifactError, BackendUnavailableError, SelfSpecError, load
from ssruntime.artifact import read_artifact
from ssruntime.backends import cuda
from ssruntime.backends.cuda import CudaDevice
from ssruntime.backends.device import Device, HostDevice
from ssruntime.backends.ort_cuda import target as ort_cuda_target
from ssruntime.backends.ort_cuda.cuda_engine import CudaOpener
from ssruntime.backends.tensorrt.library import Library, find_library
from ssruntime.backends.tensorrt.trt_engine import TensorRtOpener
from sstool.cli.main import run as run_command
from tests.families.checkpoints import make_checkpoint
from tests.families.engines_of_targets import write_engines
from tests.targets.stand_in_cuda import Error, StandInCuda

Open = Callable[..., CudaDevice]


@pytest.fixture
def open_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandInCuda], CudaDevice]:
    """A function that opens the device of a stand-in."""

    def opened(runtime: StandInCuda) -> CudaDevice:
        monkeypatch.setattr(cuda, "_load_bindings", lambda: runtime)
        return CudaDevice()

    return opened


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model for each target of GPUs."""
    root = tmp_path_factory.mktemp("gpu")
    model = make_checkpoint(root / "model", "llama", 0)
    return {target: write_engines(model, root / target, target, "fp16") for target in ("ort-cuda", "tensorrt")}


def refused(call: Callable[[], object]) -> SelfSpecError:
    with pytest.raises(SelfSpecError) as caught:
        call()
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# The device


@pytest.mark.parametrize("make", [HostDevice, lambda: None], ids=["host", "cuda"])
def test_rows_are_written_and_read_at_their_pitch(make: Callable[[], Device | None], open_cuda: Open) -> None:
    device: Device = make() or open_cuda(StandInCuda())
    memory = device.reserve(64, "a test")
    content = np.empty((1, 64), dtype=np.uint8)
    device.download(memory, 0, content, 64)
    assert not content.any()  # a block of zeros
    device.upload(memory, 8, np.array([[1, 2], [3, 4], [5, 6]], dtype=np.uint16), 16)
    found = np.empty((3, 2), dtype=np.uint16)
    device.download(memory, 8, found, 16)
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]]
    device.download(memory, 0, content, 64)
    assert np.flatnonzero(content).tolist() == [8, 10, 24, 26, 40, 42]
    device.upload(memory, 0, np.arange(24, dtype=np.int32).reshape(6, 4)[:, :2], 8)  # rows that are not contiguous
    device.download(memory, 0, content, 64)
    assert content.view(np.int32)[0, :12].tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]
    for offset, pitch in ((60, 16), (-1, 16)):
        with pytest.raises(AssertionError):
            device.upload(memory, offset, np.zeros((2, 4), dtype=np.uint8), pitch)


def test_more_address_space_than_there_is_says_what_it_was_for() -> None:
    error = refused(lambda: HostDevice().reserve(2**60, "the KV caches of 9 sequences"))
    assert error.message.startswith("the KV caches of 9 sequences: 1152921504.6 GB of memory cannot be reserved")
    assert "max_sequences" in error.hint


def test_gpu_memory_is_freed_with_its_last_reference(open_cuda: Open) -> None:
    runtime = StandInCuda()
    device = open_cuda(runtime)
    memory = device.reserve(1000, "a test")
    assert runtime.used == 1000
    assert device.free_bytes() == runtime.memory - 1000
    device.give_back(memory, 0, 1000)
    del memory
    gc.collect()
    assert runtime.used == 0


def test_a_download_waits_for_the_stream(open_cuda: Open) -> None:
    runtime = StandInCuda()
    device = open_cuda(runtime)
    memory = device.reserve(4, "a test")
    device.download(memory, 0, np.empty((1, 4), dtype=np.uint8), 4)
    assert runtime.calls[-2:] == ["cudaMemcpy2DAsync", "cudaStreamSynchronize"]


def test_an_error_of_a_pass_is_reported(open_cuda: Open) -> None:
    runtime = StandInCuda()
    device = open_cuda(runtime)
    memory = device.reserve(4, "a test")
    runtime.fails["cudaStreamSynchronize"] = Error.cudaErrorIllegalAddress
    error = refused(lambda: device.download(memory, 0, np.empty((1, 4), dtype=np.uint8), 4))
    assert "running a pass on the GPU failed: cudaErrorIllegalAddress" in error.message


def test_too_little_gpu_memory_says_how_much_is_there(open_cuda: Open) -> None:
    device = open_cuda(StandInCuda(memory=10**9))
    error = refused(lambda: device.reserve(3 * 10**9, "the KV cache of a sequence"))
    assert "the KV cache of a sequence: 3.00 GB do not fit into the GPU's memory, of which 1.00 GB are free" in error.message
    assert "max_context" in error.hint


def test_a_model_that_does_not_fit_says_what_takes_how_much_and_what_would_fit(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_artifact(artifacts["ort-cuda"]).manifest
    per_token = manifest.kv.bytes_per_token()
    for free, hint in ((manifest.weights_size + 20 * per_token, "--max-context 20 or less"), (1000, "a smaller model or a larger GPU")):
        monkeypatch.setattr(HostDevice, "free_bytes", lambda _, free=free: free)
        error = refused(lambda: load(artifacts["ort-cuda"], on_cpu=True))
        assert error.message.startswith("ort-cuda does not fit into the GPU's memory: weights 0.00 GB, intermediate values 0.00 GB,")
        assert f"KV cache of a sequence of {manifest.max_context} tokens" in error.message
        assert hint in error.hint
    monkeypatch.setattr(HostDevice, "free_bytes", lambda _: 10**9)
    load(artifacts["ort-cuda"], on_cpu=True).close()


IMPORTS: Final = """
import sys
import ssruntime
ssruntime.load(sys.argv[1], on_cpu=True).close()
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"cuda", "tensorrt", "tensorrt_rtx", "torch", "sstool"}))
"""


@pytest.mark.parametrize("target", ["ort-cuda", "tensorrt"])
def test_the_processor_needs_nothing_of_a_gpu(artifacts: dict[str, Path], target: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(artifacts[target])], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""


# Missing parts

GPU_TARGETS: Final = ("ort-cuda", "tensorrt")


@pytest.mark.parametrize("target", GPU_TARGETS)
@pytest.mark.parametrize(
    ("runtime", "reason"),
    [(StandInCuda(count=0), "no NVIDIA GPU can be used"), (None, "cudaErrorInsufficientDriver")],
    ids=["no GPU", "no driver"],
)
def test_no_driver_and_no_gpu(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, target: str, runtime: StandInCuda | None, reason: str
) -> None:
    if runtime is None:
        runtime = StandInCuda()
        runtime.fails["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    monkeypatch.setattr(cuda, "_load_bindings", lambda: runtime)
    error = refused(lambda: load(artifacts[target]))
    assert isinstance(error, BackendUnavailableError)
    assert reason in error.message
    assert "nvidia-smi" in error.hint


@pytest.mark.parametrize("target", GPU_TARGETS)
def test_no_cuda_bindings(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    for name in ("cuda.bindings.runtime", "cuda.bindings", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    error = refused(lambda: load(artifacts[target]))
    assert "CUDA bindings cannot be imported" in error.message
    assert "pip install 'sstool[" in error.hint


def test_no_tensorrt(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    error = refused(lambda: load(artifacts["tensorrt"]))
    assert "TensorRT cannot be imported (tensorrt: " in error.message
    assert "; tensorrt_rtx: " in error.message


def test_tensorrt_comes_before_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.1"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7"))
    assert (find_library().name, find_library().version) == ("tensorrt", "10.1")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert find_library().name == "tensorrt_rtx"


def test_a_gpu_that_tensorrt_rtx_does_not_support() -> None:
    library = Library(module=None, name="tensorrt_rtx", version="1.7")
    error = refused(lambda: library.check((9, 0), "NVIDIA H100"))
    assert "TensorRT-RTX does not run on NVIDIA H100 (compute capability 9.0; it supports 7.5" in error.message
    assert "ort-cuda" in error.hint
    library.check((8, 9), "another")
    Library(module=None, name="tensorrt", version="10").check((9, 0), "NVIDIA H100")


def test_an_onnx_runtime_without_kernels_for_gpus(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, open_cuda: Open) -> None:
    device = open_cuda(StandInCuda())
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    error = refused(lambda: CudaOpener(device))
    assert "has no kernels for NVIDIA GPUs" in error.message
    assert "pip install 'sstool[gpu]'" in error.hint
    assert "no kernels" in refused(lambda: load(artifacts["ort-cuda"])).message


def test_two_distributions_of_onnx_runtime_are_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def installed(*names: str) -> list[Any]:
        return [SimpleNamespace(metadata={"Name": name}) for name in names]

    for names, expected in ((("onnxruntime", "numpy"), 0), (("onnxruntime", "onnxruntime-gpu"), 1)):
        caplog.clear()
        monkeypatch.setattr(importlib.metadata, "distributions", lambda names=names: installed(*names))
        with caplog.at_level(logging.WARNING):
            ort_cuda_target._warn_of_two_runtimes()
        assert len(caplog.records) == expected
    assert "overwrite each other's files" in caplog.text


def test_bf16_has_no_kernels_on_the_processor(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama", 0)
    for target in GPU_TARGETS:
        folder = write_engines(model, tmp_path / target, target, "bf16")
        error = refused(lambda folder=folder: load(folder, on_cpu=True))
        assert isinstance(error, BackendUnavailableError)
        assert "no kernels for this graph on the processor" in error.message


# TensorRT's engines


class StandInTensorRt:
    """A TensorRT whose engines cannot be opened, as those of another GPU or version."""

    ILogger = type("ILogger", (), {"Severity": SimpleNamespace(INTERNAL_ERROR=0, ERROR=1), "__init__": lambda _: None})

    def __init__(self) -> None:
        self.opened: list[bytes] = []

    def Runtime(self, _log: object) -> Any:  # noqa: N802 - TensorRT's name
        """Returns an object that opens no engine."""

        def deserialize(plan: bytes) -> None:
            self.opened.append(plan)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def test_an_engine_of_another_gpu_or_version_is_built_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_cuda: Open) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    plans = iter((b"first", b"second"))
    monkeypatch.setattr("ssruntime.backends.tensorrt.trt_engine.build_plan", lambda *_, **__: next(plans))
    trt = StandInTensorRt()
    opener = TensorRtOpener(Library(module=trt, name="tensorrt", version="10"), open_cuda(StandInCuda()))
    error = refused(lambda: opener.open(b"graph", "verify.onnx", profiles=((1, 16),)))
    assert "tensorrt cannot open the engine that it built" in error.message
    assert trt.opened == [b"first"]
    (kept,) = (tmp_path / "cache" / "tensorrt").glob("*.plan")
    assert kept.read_bytes() == b"first"
    refused(lambda: opener.open(b"graph", "verify.onnx", profiles=((1, 16),)))
    assert trt.opened == [b"first", b"first", b"second"]  # the kept one is tried, then built again
    assert kept.read_bytes() == b"second"
    other = TensorRtOpener(Library(module=trt, name="tensorrt", version="11"), open_cuda(StandInCuda()))
    assert other._path(b"graph", ((1, 16),)) != kept


def test_building_an_engine_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["--version"])
    logger = logging.getLogger("ssruntime.backends.tensorrt.trt_engine")
    logger.info("building %s", "verify.onnx")
    logger.debug("a detail")
    logger.warning("it cannot be kept")
    assert capsys.readouterr().err.splitlines() == ["building verify.onnx", "warning: it cannot be kept"]


def test_a_graph_that_is_none_is_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(artifacts["tensorrt"], tmp_path / "copy"))
    content = (folder / "verify.onnx").read_bytes()
    (folder / "verify.onnx").write_bytes(content[: len(content) // 2].ljust(len(content), b"\xff"))
    assert isinstance(refused(lambda: load(folder, on_cpu=True)), ArtifactError)
