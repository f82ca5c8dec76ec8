"""Probes the machine: processor, GPU, and the libraries that targets need."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Final

from ssruntime.errors import BackendUnavailableError
from ssruntime.machine import cpu_model, logical_cpus, total_memory
from ssruntime.version import version

_LIBRARIES: Final = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "cuda-bindings", "torch", "transformers")


def environment() -> dict[str, str | int | float | None]:
    """Returns the machine and the versions of what targets need, by name; None for what is absent."""
    memory = total_memory()
    found: dict[str, str | int | float | None] = {
        "sstool": version(),
        "cpu": cpu_model(),
        "logical_cpus": logical_cpus(),
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return {**found, **{name: _version(name) for name in _LIBRARIES}}


def why_not(target: str) -> str | None:
    """Returns why a target's own device cannot be used here; None if it can."""
    try:
        _DEVICES[target]()
    except BackendUnavailableError as err:
        return err.message
    return None


def _ort_cpu() -> None:
    from ssruntime.backends.ort.sessions import require_query_lengths

    require_query_lengths()


def _ort_cuda() -> None:
    from ssruntime.backends.cuda import CudaDevice
    from ssruntime.backends.ort_cuda.cuda_engine import CudaOpener

    CudaOpener(CudaDevice())


def _tensorrt() -> None:
    from ssruntime.backends.cuda import CudaDevice
    from ssruntime.backends.tensorrt.library import find_library

    library, device = find_library(), CudaDevice()
    library.check(device.compute_capability, device.title)


_DEVICES: Final[dict[str, Callable[[], None]]] = {"ort-cpu": _ort_cpu, "ort-cuda": _ort_cuda, "tensorrt": _tensorrt}


def _gpu() -> str | None:
    from ssruntime.backends.cuda import CudaDevice

    try:
        device = CudaDevice()
    except BackendUnavailableError:
        return None
    major, minor = device.compute_capability
    return f"{device.title}, compute capability {major}.{minor}, {device.free_bytes() / 1e9:.0f} GB free"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
