"""Passes on a GPU are bound and captured once for each shape; a session of the processor stands in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest

from ssruntime.artifact import read_artifact
from ssruntime.backends.base import BackendOptions
from ssruntime.backends.device import HostDevice
from ssruntime.backends.device_engines.backend import DeviceBackend
from ssruntime.backends.ort_cuda import cuda_engine
from ssruntime.backends.ort_cuda.cuda_engine import CAPTURED, CudaContext, CudaOpener
from tests.families.checkpoints import make_checkpoint
from tests.families.engines_of_targets import CONTEXT, IDS, write_engines

REAL_SESSION: Final = ort.InferenceSession


class HostStream(HostDevice):
    """The processor's memory with a GPU's name and stream."""

    title = "a GPU"
    stream = 77


class Binding:
    """A binding that takes the GPU's addresses for the processor's."""

    def __init__(self, real: ort.IOBinding) -> None:
        self.real = real
        self.places: dict[str, str] = {}

    def bind_input(self, name: str, place: str, *rest: Any) -> None:
        """Binds an input."""
        self.places[name] = place
        self.real.bind_input(name, "cpu", *rest)

    def bind_output(self, name: str, place: str, *rest: Any) -> None:
        """Binds an output."""
        self.places[name] = place
        self.real.bind_output(name, "cpu", *rest)


class Session:
    """A session of the processor that records the run options of each pass."""

    def __init__(self, graph: bytes, options: ort.SessionOptions) -> None:
        own = ort.SessionOptions()
        own.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.real = REAL_SESSION(graph, own, providers=["CPUExecutionProvider"], enable_fallback=False)
        self.options = options
        self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs
        self.bindings: list[Binding] = []
        self.graph_ids: list[str] = []

    def io_binding(self) -> Binding:
        """Returns a new binding."""
        self.bindings.append(Binding(self.real.io_binding()))
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding, options: ort.RunOptions) -> None:
        """Runs a pass."""
        self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        self.real.run_with_iobinding(binding.real)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that were opened, in order."""
    opened: list[Session] = []

    def open_session(graph: bytes, options: ort.SessionOptions, *, providers: Any, enable_fallback: bool) -> Session:
        ((provider, settings),) = providers
        assert (provider, settings["user_compute_stream"], settings["enable_cuda_graph"]) == (cuda_engine.PROVIDER, "77", "1")
        assert not enable_fallback
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        opened.append(Session(graph, options))
        return opened[-1]

    for variable in cuda_engine._ONE_KERNEL:
        monkeypatch.setenv(variable, "1")  # restored at the end
    monkeypatch.setattr(cuda_engine.ort, "InferenceSession", open_session)
    monkeypatch.setattr(cuda_engine.ort, "get_available_providers", lambda: [cuda_engine.PROVIDER])
    return opened


OPTIONS: Final = BackendOptions(
    threads=1, max_context=CONTEXT, max_sequences=2, draft=None, bit_exact=True, verify_digests=False, global_threads=False
)


def backend_of(folder: Path, captured: frozenset[int] = CAPTURED) -> DeviceBackend:
    device: Any = HostStream()
    artifact = read_artifact(folder)
    options = dataclasses.replace(OPTIONS, draft=artifact.manifest.draft())
    return DeviceBackend(artifact, options, device, CudaOpener(device, captured=captured), threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ort-cuda")
    return write_engines(make_checkpoint(root / "model", "llama", 0), root / "artifact", "ort-cuda", "fp16")


def test_some_query_lengths_are_captured_once_for_each_sequence(folder: Path, sessions: list[Session]) -> None:
    backend = backend_of(folder)
    verify = sessions[0]
    slot, other = backend.acquire(0), backend.acquire(0)
    for one in (slot, other):
        one.prefill(IDS[:20])
        for length in (1, 2, 3, 4, 3, 1, 2):
            one.verify(IDS[20 : 20 + length], 20)
    ids = verify.graph_ids[1:8]
    assert ids[2] == ids[4] == "-1"  # three tokens: node by node
    assert ids[0] == ids[5] != "-1"
    assert ids[1] == ids[6] != ids[0]
    assert not {i for i in verify.graph_ids[9:] if i != "-1"} & set(ids)  # the other sequence's graphs are its own
    assert len(verify.bindings) == 2 * (1 + 4)


def test_only_the_length_is_bound_in_the_process_s_own_memory(folder: Path, sessions: list[Session]) -> None:
    backend_of(folder).acquire(0).prefill(IDS[:5])
    places = sessions[0].bindings[0].places
    assert {name for name, place in places.items() if place == "cpu"} == {"total_sequence_length"}


@pytest.mark.usefixtures("sessions")
def test_passes_are_the_same_with_and_without_captured_graphs(folder: Path) -> None:
    rows = []
    for captured in (CAPTURED, frozenset[int]()):
        slot = backend_of(folder, captured).acquire(0)
        rows.append(slot.forward(IDS[:49], 0, range(49)).logits)
        first = slot.verify(IDS[:8], 0).logits.copy()
        np.testing.assert_array_equal(slot.verify(IDS[:8], 0).logits.copy(), first)
    np.testing.assert_array_equal(*rows)


@pytest.mark.usefixtures("sessions")
def test_a_moved_kv_cache_is_bound_anew(folder: Path) -> None:
    slot = backend_of(folder).acquire(0)
    slot.verify(IDS[:4], 0)
    context = slot._verify._context
    assert isinstance(context, CudaContext)
    assert context._known
    context.set_address("past.0.key", context._addresses["past.0.key"])
    assert context._known
    context.set_address("past.0.key", context._addresses["past.0.key"] + 256)
    assert not context._known
