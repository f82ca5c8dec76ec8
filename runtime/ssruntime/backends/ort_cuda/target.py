"""What the target `ort-cuda` offers; see `ssruntime.backends.registry.TargetModule`."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path

from ssruntime.artifact import Artifact
from ssruntime.backends.base import BackendOptions
from ssruntime.backends.device import HostDevice
from ssruntime.backends.device_engines.backend import DeviceBackend
from ssruntime.backends.device_engines.cpu_engine import CpuOpener

logger = logging.getLogger(__name__)


def open_backend(artifact: Artifact, options: BackendOptions) -> DeviceBackend:
    """Returns the open engines of an artifact: on the GPU, or on the processor.

    Raises:
        ArtifactError: if a graph is not one that the engines can run.
        BackendUnavailableError: if the driver, the GPU, ONNX Runtime's kernels for it, or memory is missing.
    """
    if options.on_cpu:
        return DeviceBackend(artifact, options, HostDevice(), CpuOpener(options.threads), threads=options.threads)
    from ssruntime.backends.cuda import CudaDevice
    from ssruntime.backends.ort_cuda.cuda_engine import CudaOpener

    _warn_of_two_runtimes()
    device = CudaDevice()
    return DeviceBackend(artifact, options, device, CudaOpener(device), threads=1)


def packing_state(_artifact: Artifact) -> str:
    """Returns how the weights are held: once in the GPU's memory, for all engines of a process."""
    return DeviceBackend.packing


def damaged_entry(_artifact: Artifact) -> Path | None:
    """Returns None: nothing of this target is kept on the host."""
    return None


def discard(_artifact: Artifact) -> None:
    """Does nothing: nothing of this target is kept on the host."""


def _warn_of_two_runtimes() -> None:
    """Warns if both distributions of ONNX Runtime are installed: whichever came last has replaced files."""
    found = {str(d.metadata["Name"]).lower() for d in importlib.metadata.distributions()} & {"onnxruntime", "onnxruntime-gpu"}
    if len(found) > 1:
        logger.warning(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files;"
            " to mend it: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'sstool[gpu]'"
        )
