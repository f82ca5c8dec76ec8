"""Describes what a measurement ran on: enough to interpret its numbers, nothing to identify the machine."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

import onnxruntime as ort

from ssruntime.engine import Engine
from ssruntime.machine import cpu_model, logical_cpus, total_memory


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine, the versions and the engine's configuration.

    Attributes:
        cpu: the processor's model name.
        logical_cpus: number of hardware threads that this process may use.
        threads: number of threads per engine.
        memory_gb: the machine's memory in units of 10^9 bytes; None if it cannot be read.
        onnxruntime: version of ONNX Runtime.
        python: version of Python.
        system: operating system, its release and the machine type.
        artifact: name of the artifact's folder, without its parents.
        packing: `shared` (all processes of the host share the packed weights) or `private (reason)`.
    """

    cpu: str
    logical_cpus: int
    threads: int
    memory_gb: float | None
    onnxruntime: str
    python: str
    system: str
    artifact: str
    packing: str

    def to_json(self) -> dict[str, str | int | float | None]:
        """Returns the fields as JSON values."""
        return asdict(self)


def describe_environment(engine: Engine) -> Environment:
    """Returns the environment that `engine` runs in."""
    memory = total_memory()
    return Environment(
        cpu=cpu_model(),
        logical_cpus=logical_cpus(),
        threads=engine.backend.threads,
        memory_gb=None if memory is None else round(memory / 1e9, 1),
        onnxruntime=ort.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        artifact=engine.artifact.folder.resolve().name,
        packing=engine.backend.packing,
    )
