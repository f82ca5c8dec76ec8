"""A stand-in for a GPU: ONNX Runtime runs the same graph on the processor, at given addresses.

It is slow, and exists so that an artifact can be checked, and this backend tested, on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from ssruntime import graph_io
from ssruntime.backends.device_engines.engine import ALIGNMENT, TensorInfo
from ssruntime.errors import ArtifactError, BackendUnavailableError

_BFLOAT16: Final = 16
"""The number of TensorProto.DataType, because numpy has no such type."""
ELEMENT_TYPES: Final[dict[str, Any]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bfloat16)": _BFLOAT16,
}
"""What ONNX Runtime's bindings call the data types of inputs and outputs."""


class CpuOpener:
    """Opens graphs as sessions of ONNX Runtime on the processor."""

    title = "cpu"

    def __init__(self, threads: int) -> None:
        """Takes the number of threads of each session."""
        self._threads = threads

    def open(self, graph: bytes, name: str, *, profiles: Sequence[tuple[int, int]], file: Path | None = None) -> CpuEngine:
        """Returns an engine; see `EngineOpener`."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(
                graph if file is None else str(file), options, providers=["CPUExecutionProvider"], enable_fallback=False
            )
        except Exception as err:  # ONNX Runtime's exceptions share no closer base class
            if "bfloat16" in str(err) or "NOT_IMPLEMENTED" in str(err):
                raise BackendUnavailableError(
                    f"{name}: ONNX Runtime has no kernels for this graph on the processor: {err}", "load it on its own device"
                ) from err
            raise ArtifactError(f"ONNX Runtime cannot open {name}: {err}", "export the model again") from err
        return CpuEngine(session, profiles)


class CpuEngine:
    """A session as an engine at given addresses; see `Engine`."""

    workspace = 0

    def __init__(self, session: ort.InferenceSession, profiles: Sequence[tuple[int, int]]) -> None:
        self._session = session
        self._profiles = profiles
        self.inputs = {value.name: tensor_info(value) for value in session.get_inputs()}
        self.outputs = {value.name: tensor_info(value) for value in session.get_outputs()}

    def context(self, workspace: int) -> CpuContext:
        """Returns a new context; see `Engine`."""
        return CpuContext(self._session, self.inputs, self._profiles)


class CpuContext:
    """Shapes and addresses for passes of one session."""

    def __init__(self, session: ort.InferenceSession, inputs: Mapping[str, TensorInfo], profiles: Sequence[tuple[int, int]]) -> None:
        self._session = session
        self._inputs = inputs
        self._profiles = profiles
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._binding: ort.IOBinding | None = None

    def use_profile(self, number: int) -> None:
        """Chooses a profile; see `Context`."""
        assert 0 <= number < len(self._profiles), f"there is no profile {number}"
        self._profile = number
        self._shapes.clear()
        self._binding = None

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Sets the shape of an input; see `Context`."""
        declared = self._inputs[name].shape
        fits = len(shape) == len(declared) and all(known in (-1, given) for known, given in zip(declared, shape, strict=True))
        assert fits, f"{name}: the shape {tuple(shape)} does not fit {declared}"
        self._shapes[name] = tuple(shape)
        self._binding = None

    def set_address(self, name: str, address: int) -> None:
        """Sets an address; see `Context`."""
        assert address % ALIGNMENT == 0, f"{name}: the address is not aligned to {ALIGNMENT} bytes"
        self._addresses[name] = address
        self._binding = None

    def enqueue(self) -> None:
        """Runs a pass; see `Context`."""
        if self._binding is None:
            self._binding = self._bind()
        self._session.run_with_iobinding(self._binding)

    def _bind(self) -> ort.IOBinding:
        first, last = self._profiles[self._profile]
        length = self._shapes[graph_io.INPUT_IDS][1]
        assert first <= length <= last, f"a pass of {length} tokens is outside the profile for {first} to {last}"
        binding = self._session.io_binding()
        inputs, outputs = resolved_shapes(self._session, self._shapes, self._inputs)
        for value in self._session.get_inputs():
            binding.bind_input(value.name, "cpu", 0, ELEMENT_TYPES[value.type], inputs[value.name], self._addresses[value.name])
        for value in self._session.get_outputs():
            if value.name.startswith(graph_io.PRESENT_PREFIX):
                past = graph_io.PAST_PREFIX + value.name.removeprefix(graph_io.PRESENT_PREFIX)
                assert self._addresses[value.name] == self._addresses[past], f"{value.name} is not written in place"
            binding.bind_output(value.name, "cpu", 0, ELEMENT_TYPES[value.type], outputs[value.name], self._addresses[value.name])
        return binding


def resolved_shapes(
    session: ort.InferenceSession, given: Mapping[str, tuple[int, ...]], inputs: Mapping[str, TensorInfo]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Returns the shapes of all inputs and outputs in a pass, by name.

    Args:
        session: open session.
        given: shapes of the inputs whose dimensions depend on the pass.
        inputs: the session's inputs.
    """
    dims: dict[str, int] = {}
    shapes = {}
    for value in session.get_inputs():
        shape = given.get(value.name, inputs[value.name].shape)
        assert -1 not in shape, f"the shape of {value.name} is not set"
        dims.update({known: size for known, size in zip(value.shape, shape, strict=True) if isinstance(known, str)})
        shapes[value.name] = list(shape)
    return shapes, {value.name: [dims.get(known, known) for known in value.shape] for value in session.get_outputs()}


def tensor_info(value: Any) -> TensorInfo:
    """Returns what `Engine` says about an input or an output of a session."""
    kind = ELEMENT_TYPES[value.type]
    is_bfloat16 = kind == _BFLOAT16
    return TensorInfo(
        dtype=np.dtype(np.uint16 if is_bfloat16 else kind),
        shape=tuple(d if isinstance(d, int) else -1 for d in value.shape),
        is_bfloat16=is_bfloat16,
    )
