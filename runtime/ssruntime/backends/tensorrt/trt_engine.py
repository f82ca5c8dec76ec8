"""Engines of TensorRT: built once for a graph, a GPU and a version, and opened from a cache after that."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ssruntime import graph_io
from ssruntime.backends.cuda import CudaDevice
from ssruntime.backends.device_engines.engine import TensorInfo
from ssruntime.backends.tensorrt.library import Library
from ssruntime.cache_folder import cache_folder
from ssruntime.errors import ArtifactError, BackendUnavailableError
from ssruntime.scratch import write_whole

logger = logging.getLogger(__name__)

_FORMAT: Final = 1
_FOLDER: Final = "tensorrt"
_OPTIMAL: Final = 4
"""Query length that the first profile is optimized for."""
_MAX_REASON: Final = 300


class TensorRtOpener:
    """Builds and opens engines on one GPU."""

    def __init__(self, library: Library, device: CudaDevice) -> None:
        """Takes TensorRT and the GPU."""
        self._library, self._device = library, device
        self._log = make_logger(library)
        self.title = f"{device.title}, {library.name} {library.version}"

    def open(self, graph: bytes, name: str, *, profiles: Sequence[tuple[int, int]], file: Path | None = None) -> TensorRtEngine:
        """Returns an engine; see `EngineOpener`."""
        # An engine with weights is not kept: it is as large as the model.
        path = None if file is not None else self._path(graph, profiles)
        plan = _read(path)
        engine = None if plan is None else self._deserialize(plan)
        if engine is None:
            logger.info("building %s for %s with %s %s", name, self._device.title, self._library.name, self._library.version)
            begun = time.perf_counter()
            plan = build_plan(self._library, self._log, graph, name, profiles=profiles, file=file)
            logger.info("built %s in %.0f s", name, time.perf_counter() - begun)
            _store(path, plan)
            engine = self._deserialize(plan)
        if engine is None:
            raise BackendUnavailableError(
                f"{name}: {self._library.name} cannot open the engine that it built: {self._log.last()}",
                "check the GPU's driver, and its free memory with nvidia-smi",
            )
        return TensorRtEngine(self._library, engine, self._device)

    def _deserialize(self, plan: bytes) -> Any:
        runtime = self._library.module.Runtime(self._log)
        return runtime.deserialize_cuda_engine(plan)

    def _path(self, graph: bytes, profiles: Sequence[tuple[int, int]]) -> Path | None:
        parts = (_FORMAT, hashlib.sha256(graph).hexdigest(), list(profiles), self.title)
        try:
            return cache_folder() / _FOLDER / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.plan"
        except OSError:
            return None


class TensorRtEngine:
    """An open engine; see `Engine`."""

    def __init__(self, library: Library, engine: Any, device: CudaDevice) -> None:
        self._library, self._engine, self._device = library, engine, device
        # The older name is gone from newer versions.
        size = engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
        self.workspace = int(size)
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        is_input = library.module.TensorIOMode.INPUT
        self.inputs = {name: self._info(name) for name in names if engine.get_tensor_mode(name) == is_input}
        self.outputs = {name: self._info(name) for name in names if name not in self.inputs}

    def context(self, workspace: int) -> TensorRtContext:
        """Returns a new context; see `Engine`."""
        trt = self._library.module
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise BackendUnavailableError("TensorRT cannot make a context for an engine", "free memory on the GPU")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(workspace, self.workspace)
        else:
            context.device_memory = workspace
        return TensorRtContext(context, self._device)

    def _info(self, name: str) -> TensorInfo:
        types = self._library.module.DataType
        kind = self._engine.get_tensor_dtype(name)
        known = {types.FLOAT: np.float32, types.HALF: np.float16, types.INT64: np.int64, types.INT32: np.int32, types.BF16: np.uint16}
        return TensorInfo(dtype=np.dtype(known[kind]), shape=tuple(self._engine.get_tensor_shape(name)), is_bfloat16=kind == types.BF16)


class TensorRtContext:
    """A context of an engine; see `Context`."""

    def __init__(self, context: Any, device: CudaDevice) -> None:
        self._context, self._device = context, device

    def use_profile(self, number: int) -> None:
        """Chooses a profile; see `Context`."""
        _require(self._context.set_optimization_profile_async(number, self._device.stream), f"choosing profile {number}")

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Sets the shape of an input; see `Context`."""
        _require(self._context.set_input_shape(name, tuple(shape)), f"setting the shape of {name} to {tuple(shape)}")

    def set_address(self, name: str, address: int) -> None:
        """Sets an address; see `Context`."""
        _require(self._context.set_tensor_address(name, address), f"setting the address of {name}")

    def enqueue(self) -> None:
        """Starts a pass; see `Context`."""
        _require(self._context.execute_async_v3(self._device.stream), "starting a pass")


def build_plan(
    library: Library, log: Any, graph: bytes, name: str, *, profiles: Sequence[tuple[int, int]], file: Path | None = None
) -> bytes:
    """Returns an engine as bytes; needs no GPU with TensorRT-RTX.

    Args:
        library: TensorRT.
        log: logger of TensorRT, from `make_logger`.
        graph: a serialized ONNX model of standard operators.
        name: name of the graph in messages.
        profiles: query lengths, from and to, that the engine is optimized for together.
        file: file of the graph, beside its weights, if the engine is to hold them.

    Raises:
        ArtifactError: if the graph cannot be parsed or built.
    """
    trt = library.module
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not (parser.parse(graph) if file is None else parser.parse_from_file(str(file))):
        reasons = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise ArtifactError(f"{library.name} {library.version} cannot parse {name}: {_short(reasons)}", "export the model again")
    config = builder.create_builder_config()
    for first, last in profiles:
        config.add_optimization_profile(_profile(builder, network, first, last))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(f"{library.name} {library.version} cannot build {name}: {log.last()}", "export the model for target ort-cuda")
    return bytes(plan)


def _profile(builder: Any, network: Any, first: int, last: int) -> Any:
    profile = builder.create_optimization_profile()
    best = min(max(first, _OPTIMAL), last) if first == 1 else last
    kept = graph_io.MAX_QUERY_LENGTH
    ranges: dict[str, list[tuple[int, ...]]] = {
        graph_io.INPUT_IDS: [(1, n) for n in (first, best, last)],
        graph_io.POSITION_IDS: [(1, n) for n in (first, best, last)],
        graph_io.LOGITS_INDEX: [(1, 1), (1, min(best, kept)), (1, kept)],
        graph_io.TREE_MASK: [(1, 1, n, n) for n in (first, best, last)],
    }
    for number in range(network.num_inputs):
        name = network.get_input(number).name
        if name in ranges:
            low, usual, high = ranges[name]
            profile.set_shape(name, low, usual, high)
    return profile


def make_logger(library: Library) -> Any:
    """Returns a logger for TensorRT, which passes messages on and keeps the last error."""
    trt = library.module

    class Log(trt.ILogger):  # type: ignore[misc, name-defined] # it exists only once TensorRT is imported
        """Passes TensorRT's messages on, and keeps the last error."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._last = "no reason was given"

        def log(self, severity: Any, message: str) -> None:
            """Takes a message."""
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._last = message
            logger.debug("%s", message)

        def last(self) -> str:
            """Returns the last error."""
            return _short(self._last)

    return Log()


def _require(done: bool, what: str) -> None:
    if not done:
        raise BackendUnavailableError(f"TensorRT failed at {what}", "load the artifact again; if it persists, please report this")


def _read(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError:
        return None


def _store(path: Path | None, plan: bytes) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, plan)
    except OSError as err:
        logger.warning("the engine cannot be kept, and is built again at the next load: %s", err)


def _short(text: str) -> str:
    return " ".join(text.split())[:_MAX_REASON]
