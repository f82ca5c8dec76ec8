"""Checks where a target's nodes run, and that a captured pass gives what a pass node by node gives."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ssruntime.artifact import DRAFT_GRAPH, VERIFY_GRAPH, read_artifact
from ssruntime.backends.base import BackendOptions
from ssruntime.engine import load
from ssruntime.errors import BackendUnavailableError
from sstool.selftest.rows import Rows

_CHECKS: Final = {
    "ort-cuda": ("every node on the GPU, no copies between", "captured passes against passes node by node", "memory of the second engine"),
    "tensorrt": ("memory of the second engine",),
}
_GRAPHS: Final = (VERIFY_GRAPH, DRAFT_GRAPH)
_WIDTHS: Final = (1, 2, 4, 8)
_IDS: Final = (5, 9, 2, 7, 11, 3, 8, 1)


def check_placement(rows: Rows, target: str, folder: Path, absent: str | None) -> None:
    """Adds the rows of what only the device itself can show.

    Args:
        rows: rows to add to.
        target: name of the target.
        folder: an artifact of the target.
        absent: why the device cannot be used; None if it can.
    """
    if target == "tensorrt":
        _check_builds(rows, folder)
    if absent is not None:
        for check in _CHECKS[target]:
            rows.absent(check, absent)
        return
    if target == "ort-cuda":
        _check_nodes(rows, folder)
        _check_capture(rows, folder)
    _check_memory(rows, folder)


def _check_builds(rows: Rows, folder: Path) -> None:
    """Checks that the graphs parse and build; TensorRT-RTX needs no GPU for that."""
    from ssruntime.backends.device_engines.engine import profiles_for
    from ssruntime.backends.device_engines.weights import as_inputs
    from ssruntime.backends.tensorrt.library import find_library

    check = "graphs parse and build"
    try:
        library = find_library()
    except BackendUnavailableError as err:
        rows.absent(check, err.message)
        return
    from ssruntime.backends.tensorrt.trt_engine import build_plan, make_logger

    capacity = read_artifact(folder).manifest.max_context
    sizes = {
        name: len(
            build_plan(library, make_logger(library), as_inputs((folder / name).read_bytes(), name), name, profiles=profiles_for(capacity))
        )
        for name in _GRAPHS
    }
    figure = ", ".join(f"{name}: {size / 1e6:.1f} MB" for name, size in sizes.items())
    rows.tell(check, figure, why=f"{library.name} {library.version}")


def _check_nodes(rows: Rows, folder: Path) -> None:
    """Checks where ONNX Runtime places the nodes of each graph."""
    from ssruntime.backends.cuda import CudaDevice
    from ssruntime.backends.device_engines.weights import as_inputs
    from ssruntime.backends.ort_cuda.cuda_engine import PROVIDER, CudaOpener

    opener = CudaOpener(CudaDevice())
    places = {graph: opener.placement(as_inputs((folder / graph).read_bytes(), graph), graph) for graph in _GRAPHS}
    figure = ", ".join(f"{graph}: {found[PROVIDER]} nodes" for graph, found in places.items())
    others = sorted({provider for found in places.values() for provider in found} - {PROVIDER})
    rows.judge(_CHECKS["ort-cuda"][0], figure, holds=not others, bar="none elsewhere", why=", ".join(others) or None)


def _check_capture(rows: Rows, folder: Path) -> None:
    """Compares captured passes, run three times, with the same passes node by node."""
    from ssruntime.backends.cuda import CudaDevice
    from ssruntime.backends.device_engines.backend import DeviceBackend
    from ssruntime.backends.ort_cuda.cuda_engine import CAPTURED, CudaOpener

    artifact = read_artifact(folder)
    options = BackendOptions(
        threads=1,
        max_context=artifact.manifest.max_context,
        max_sequences=1,
        draft=None,
        bit_exact=True,
        verify_digests=False,
        global_threads=False,
    )
    found = []
    for captured in (frozenset[int](), CAPTURED):
        device = CudaDevice()
        backend = DeviceBackend(artifact, options, device, CudaOpener(device, captured=captured), threads=1)
        slot = backend.acquire(None)
        slot.prefill(_IDS[:3])
        found += [[slot.verify(_IDS[:width], 3).logits.copy() for width in _WIDTHS] for _turn in range(3)]
        backend.release(slot)
    node_by_node, *others = found
    differing = sum(any((other[at] != rows_of).any() for other in others) for at, rows_of in enumerate(node_by_node))
    figure = f"{differing} of {len(_WIDTHS)} query lengths differ"
    rows.judge(_CHECKS["ort-cuda"][1], figure, holds=differing == 0, bar="equal bits")


def _check_memory(rows: Rows, folder: Path) -> None:
    """Compares the GPU's free memory with and without the draft engine."""
    from ssruntime.backends.cuda import CudaDevice

    device = CudaDevice()
    used = []
    for draft in (False, True):
        before = device.free_bytes()
        with load(folder, max_sequences=1, draft=draft) as engine:
            engine.generate(list(_IDS))
            used.append(before - device.free_bytes())
            weights = engine.artifact.manifest.weights_size
    extra = max(0, used[1] - used[0])
    bar = max(0.02 * weights, 64 * 2**20)  # allocators round up to megabytes
    rows.judge("memory of the second engine", f"{extra / 1e6:.1f} MB", holds=extra <= bar, bar=f"{bar / 1e6:.0f} MB", why="tiny model")
