"""Finds TensorRT or TensorRT-RTX, whichever is installed and runs on the GPU."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Final

from ssruntime.errors import BackendUnavailableError

_HINT: Final = "pip install 'sstool[tensorrt]' for TensorRT-RTX, or install NVIDIA's tensorrt wheel"
_RTX_CAPABILITIES: Final = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""Compute capabilities that TensorRT-RTX 1.7 runs on."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """An imported TensorRT.

    Attributes:
        module: its Python module.
        name: `tensorrt` or `tensorrt_rtx`.
        version: its version.
    """

    module: Any
    name: str
    version: str

    def check(self, capability: tuple[int, int], gpu: str) -> None:
        """Raises BackendUnavailableError if this library does not run on a GPU.

        Args:
            capability: compute capability of the GPU.
            gpu: name of the GPU.
        """
        if self.name == "tensorrt_rtx" and capability not in _RTX_CAPABILITIES:
            known = ", ".join(f"{major}.{minor}" for major, minor in _RTX_CAPABILITIES)
            raise BackendUnavailableError(
                f"TensorRT-RTX does not run on {gpu} (compute capability {capability[0]}.{capability[1]}; it supports {known})",
                "install NVIDIA's tensorrt wheel, or export the model for target ort-cuda",
            )


def find_library() -> Library:
    """Returns TensorRT, or TensorRT-RTX if only that is installed.

    Raises:
        BackendUnavailableError: if neither can be imported.
    """
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as err:
            reasons.append(f"{name}: {err}")
            continue
        return Library(module=module, name=name, version=str(module.__version__))
    raise BackendUnavailableError(f"TensorRT cannot be imported ({'; '.join(reasons)})", _HINT)
