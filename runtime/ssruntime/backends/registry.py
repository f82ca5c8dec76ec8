"""The targets that this runtime can run, and what opens each: imported only when it is needed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

from ssruntime.artifact import ANY_PROCESSOR, VNNI, Artifact, Manifest
from ssruntime.backends.base import Backend, BackendOptions
from ssruntime.errors import ArtifactError, BackendUnavailableError


class TargetModule(Protocol):
    """What the module of a target offers."""

    def open_backend(self, artifact: Artifact, options: BackendOptions) -> Backend:
        """Returns the open engines of an artifact."""

    def packing_state(self, artifact: Artifact, /) -> str:
        """Returns what `Backend.packing` will be, without opening or packing anything."""

    def damaged_entry(self, artifact: Artifact, /) -> Path | None:
        """Returns the folder of the host's cached engine files if they are damaged; else None."""

    def discard(self, artifact: Artifact, /) -> None:
        """Removes the host's cached engine files of an artifact."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One value of the manifest's `target`.

    Attributes:
        name: its name.
        dtypes: data types of the weights that it runs.
        kv_dtypes: data types of the KV cache that it runs.
        module: dotted name of its `TargetModule`.
        packages: importable packages that it needs.
        install: how to install these.
    """

    name: str
    dtypes: tuple[str, ...]
    kv_dtypes: tuple[str, ...]
    module: str
    packages: tuple[str, ...]
    install: str

    def load(self) -> TargetModule:
        """Returns the target's module.

        Raises:
            BackendUnavailableError: if a package that it needs cannot be imported.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as err:
                raise BackendUnavailableError(f"target {self.name}: {package} cannot be imported: {err}", self.install) from err
        return cast("TargetModule", importlib.import_module(self.module))


TARGETS: Final = {
    target.name: target
    for target in (
        Target(
            name="ort-cpu",
            dtypes=("fp32", "int8", "int4"),
            kv_dtypes=("fp32",),
            module="ssruntime.backends.ort.target",
            packages=("onnxruntime",),
            install="pip install 'sstool[cpu]'",
        ),
        Target(
            name="ort-cuda",
            dtypes=("fp16", "bf16"),
            kv_dtypes=("fp16", "bf16"),
            module="ssruntime.backends.ort_cuda.target",
            packages=("onnxruntime",),
            install="pip install 'sstool[gpu]'",
        ),
        Target(
            name="tensorrt",
            dtypes=("fp16", "bf16", "fp32"),
            kv_dtypes=("fp16", "bf16", "fp32"),
            module="ssruntime.backends.tensorrt.target",
            packages=(),
            install="pip install 'sstool[tensorrt]'",
        ),
    )
}


def target_of(manifest: Manifest) -> Target:
    """Returns the target of an artifact.

    Raises:
        ArtifactError: if this runtime does not know the target, or not with the artifact's data types.
    """
    target = TARGETS.get(manifest.target)
    if target is None:
        raise ArtifactError(
            f"manifest.json: expected a target among {', '.join(TARGETS)}, found {manifest.target!r}",
            "use the sstool that exported it, or export the model again",
        )
    for what, found, known in (
        ("dtype", manifest.dtype, target.dtypes),
        ("kv: dtype", manifest.kv.dtype, target.kv_dtypes),
        ("instructions", manifest.instructions, (ANY_PROCESSOR, VNNI)),
    ):
        if found not in known:
            raise ArtifactError(
                f"manifest.json: {what}: target {target.name} runs {', '.join(known)}, found {found!r}",
                "use the sstool that exported it, or export the model again",
            )
    return target
