"""What a measurement ran on: enough to judge a number by, nothing that names the machine."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

import onnxruntime as ort

from ssruntime.engine import Engine
from ssruntime.machine import cpu_model, logical_cpus, total_memory


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine, the versions and the engine's set-up.

    Attributes:
        cpu: the processor's model name.
        logical_cpus: processors that this process may use, hardware threads counted.
        threads: what each engine computes with.
        memory_gb: the machine's memory in 10^9 bytes; None where it cannot be read.
        onnxruntime: version.
        python: version.
        system: operating system, its release and the machine type.
        artifact: the artifact folder's own name.
        packing: `shared`, or `private (why)`.
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
    """Returns what `engine` runs on."""
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
