"""What the target `tensorrt` offers; see `ssruntime.backends.registry.TargetModule`."""

from __future__ import annotations

import importlib
from pathlib import Path

from ssruntime.artifact import Artifact
from ssruntime.backends.base import BackendOptions
from ssruntime.backends.device import HostDevice
from ssruntime.backends.device_engines.backend import DeviceBackend
from ssruntime.errors import BackendUnavailableError


def open_backend(artifact: Artifact, options: BackendOptions) -> DeviceBackend:
    """Returns the open engines of an artifact: TensorRT's, or stand-ins on the processor.

    Raises:
        ArtifactError: if a graph is not one that the engines can run.
        BackendUnavailableError: if TensorRT, a driver or a GPU that it supports is missing, or memory.
    """
    if options.on_cpu:
        try:
            importlib.import_module("onnxruntime")
        except ImportError as err:
            raise BackendUnavailableError(f"onnxruntime cannot be imported: {err}", "pip install 'sstool[cpu]'") from err
        from ssruntime.backends.device_engines.cpu_engine import CpuOpener

        return DeviceBackend(artifact, options, HostDevice(), CpuOpener(options.threads), threads=options.threads)
    # Imported here: reading an artifact, or running it on the processor, needs neither CUDA nor TensorRT.
    from ssruntime.backends.cuda import CudaDevice
    from ssruntime.backends.tensorrt.library import find_library
    from ssruntime.backends.tensorrt.trt_engine import TensorRtOpener

    library = find_library()
    device = CudaDevice()
    library.check(device.compute_capability, device.title)
    return DeviceBackend(artifact, options, device, TensorRtOpener(library, device), threads=1)


def packing_state(_artifact: Artifact) -> str:
    """Returns how the weights are held: once in the GPU's memory, for all engines of a process."""
    return DeviceBackend.packing


def damaged_entry(_artifact: Artifact) -> Path | None:
    """Returns None: an engine file that TensorRT refuses is built again."""
    return None


def discard(_artifact: Artifact) -> None:
    """Does nothing: engine files hold no weights, and other artifacts may use them."""
