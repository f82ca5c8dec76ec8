"""Sessions of ONNX Runtime on an NVIDIA GPU, at fixed addresses, with a captured graph for each shape."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from ssruntime import graph_io
from ssruntime.backends.cuda import CudaDevice
from ssruntime.backends.device_engines.cpu_engine import ELEMENT_TYPES, resolved_shapes, tensor_info
from ssruntime.backends.device_engines.engine import TensorInfo
from ssruntime.errors import ArtifactError, BackendUnavailableError

PROVIDER: Final = "CUDAExecutionProvider"
CAPTURED: Final = frozenset({1, 2, 4, 8, graph_io.MAX_QUERY_LENGTH})
"""Query lengths whose passes are captured; others run node by node."""
_ONE_KERNEL: Final = {"ORT_ENABLE_XQA": "0", "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0", "ORT_DISABLE_FLASH_DECODE": "1"}
"""Environment variables that leave one attention kernel for all query lengths: near ties are then rare."""
_ON_HOST: Final = frozenset({graph_io.TOTAL_SEQUENCE_LENGTH})
"""Inputs that the kernels read from the process's own memory."""


class CudaOpener:
    """Opens graphs on one GPU. Nothing falls back to the processor."""

    def __init__(self, device: CudaDevice, *, captured: frozenset[int] = CAPTURED) -> None:
        """Takes the GPU.

        Args:
            device: the GPU.
            captured: query lengths whose passes are captured as CUDA graphs.

        Raises:
            BackendUnavailableError: if this ONNX Runtime has no kernels for GPUs.
        """
        if PROVIDER not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"this ONNX Runtime ({ort.__version__}) has no kernels for NVIDIA GPUs",
                "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'sstool[gpu]': the two replace each other's files",
            )
        self._device, self._captured = device, captured
        self.title = f"{device.title}, onnxruntime {ort.__version__}"

    def open(self, graph: bytes, name: str, *, profiles: Sequence[tuple[int, int]], file: Path | None = None) -> CudaEngine:
        """Returns an engine; see `EngineOpener`."""
        return CudaEngine(self._session(graph if file is None else str(file), name, ort.SessionOptions()), self._captured)

    def placement(self, graph: bytes, name: str) -> Counter[str]:
        """Returns the number of nodes that each execution provider runs."""
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = self._session(graph, name, options)
        found: Counter[str] = Counter()
        for part in session.get_provider_graph_assignment_info():
            found[part.ep_name] += len(part.get_nodes())
        return found

    def _session(self, graph: bytes | str, name: str, options: ort.SessionOptions) -> ort.InferenceSession:
        for variable, value in _ONE_KERNEL.items():
            os.environ.setdefault(variable, value)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {
            "device_id": 0,
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "1",
            "user_compute_stream": str(self._device.stream),
        }
        try:
            return ort.InferenceSession(graph, options, providers=[(PROVIDER, provider)], enable_fallback=False)
        except Exception as err:  # ONNX Runtime's exceptions share no closer base class
            if "memory" in str(err).lower():
                raise BackendUnavailableError(f"{name} does not fit into the GPU's memory: {err}", "free memory on the GPU") from err
            raise ArtifactError(f"ONNX Runtime cannot open {name} on the GPU: {err}", "export the model again") from err


class CudaEngine:
    """A session on a GPU; see `Engine`."""

    workspace = 0

    def __init__(self, session: ort.InferenceSession, captured: frozenset[int]) -> None:
        self._session, self._captured = session, captured
        self.inputs = {value.name: tensor_info(value) for value in session.get_inputs()}
        self.outputs = {value.name: tensor_info(value) for value in session.get_outputs()}

    def context(self, workspace: int) -> CudaContext:
        """Returns a new context; see `Engine`."""
        return CudaContext(self._session, self.inputs, self._captured)


class CudaContext:
    """Shapes and addresses for passes of one session; see `Context`.

    A captured graph repeats what it saw: the same addresses and shapes. So there is a binding, and a graph,
    for each combination of them.
    """

    _ids = itertools.count(1)

    def __init__(self, session: ort.InferenceSession, inputs: Mapping[str, TensorInfo], captured: frozenset[int]) -> None:
        self._session, self._captured = session, captured
        self._inputs = inputs
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # The KV cache stays where it is, so a combination is told by few numbers.
        self._moving = [v.name for v in session.get_outputs() if not v.name.startswith(graph_io.PRESENT_PREFIX)]
        self._known: dict[tuple[Any, ...], tuple[ort.IOBinding, ort.RunOptions]] = {}
        self._chosen: tuple[ort.IOBinding, ort.RunOptions] | None = None

    def use_profile(self, number: int) -> None:
        """Does nothing: a session takes every query length."""

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Sets the shape of an input; see `Context`."""
        self._shapes[name] = tuple(shape)
        self._chosen = None

    def set_address(self, name: str, address: int) -> None:
        """Sets an address; see `Context`."""
        if self._addresses.get(name) == address:
            return
        self._addresses[name] = address
        self._chosen = None
        if name not in self._moving:
            self._known.clear()

    def enqueue(self) -> None:
        """Runs a pass; see `Context`."""
        if self._chosen is None:
            key = (*self._shapes.values(), *(self._addresses[name] for name in self._moving))
            if key not in self._known:
                self._known[key] = (self._bind(), self._options())
            self._chosen = self._known[key]
        self._session.run_with_iobinding(*self._chosen)

    def _options(self) -> ort.RunOptions:
        """Returns run options that capture the first pass and repeat it after that, or run node by node."""
        options = ort.RunOptions()
        is_captured = self._shapes[graph_io.INPUT_IDS][1] in self._captured
        options.add_run_config_entry("gpu_graph_id", str(next(self._ids)) if is_captured else "-1")
        return options

    def _bind(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        inputs, outputs = resolved_shapes(self._session, self._shapes, self._inputs)
        for value in self._session.get_inputs():
            place = "cpu" if value.name in _ON_HOST else "cuda"
            binding.bind_input(value.name, place, 0, ELEMENT_TYPES[value.type], inputs[value.name], self._addresses[value.name])
        for value in self._session.get_outputs():
            binding.bind_output(value.name, "cuda", 0, ELEMENT_TYPES[value.type], outputs[value.name], self._addresses[value.name])
        return binding
