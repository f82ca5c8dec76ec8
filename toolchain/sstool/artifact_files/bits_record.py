"""The result of the bit test, and its places: the manifest, and each host that ran `sstool check`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from ssruntime.artifact import STEP_GRAPH, VERIFY_GRAPH, Artifact
from ssruntime.cache_folder import cache_folder
from ssruntime.engine import Engine
from ssruntime.errors import ArtifactError
from ssruntime.machine import cpu_features, cpu_model
from ssruntime.scratch import write_whole
from ssruntime.strict_reader import parse_json, read_record
from sstool.precision import PRECISIONS

logger = logging.getLogger(__name__)

GATE_KEY: Final = "bits"
NEAR_TIE_TOLERANCE: Final = 1e-4
"""Largest distance of two decision scores, in both replays, in a near tie of fp32 engines."""
_NOISE_FACTOR: Final = 2.0
"""The same in other precisions, as a multiple of the largest difference measured between query lengths."""
_CPU: Final = "cpu"
_SWITCH: Final = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""Environment variable of ONNX Runtime; sessions read it when they open."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What the bits of the logits depend on.

    Attributes:
        cpu: model name of the processor.
        instructions: digest of the processor's instruction-set flags, which virtual machines may hide.
        onnxruntime: version of ONNX Runtime.
        threads: number of threads of each engine.
        flash_attention: whether flash attention is on.
        device: `cpu`, or the GPU and the library that runs on it.
    """

    cpu: str
    instructions: str
    onnxruntime: str
    threads: int
    flash_attention: bool
    device: str = _CPU

    @classmethod
    def here(cls, threads: int, device: str = _CPU) -> Kernels:
        """Returns the kernels of this process for engines of so many threads on a device."""
        is_off = os.environ.get(_SWITCH, "") in ("1", "true", "True")
        instructions = hashlib.sha256(cpu_features().encode()).hexdigest()[:12]
        return cls(
            cpu=cpu_model(),
            instructions=instructions,
            onnxruntime=ort.__version__,
            threads=threads,
            flash_attention=not is_off,
            device=device,
        )


@dataclass(frozen=True, kw_only=True)
class BitsReport:
    """How the logits of several kinds of passes compare with those of autoregressive decoding.

    Attributes:
        rows: number of compared rows of logits.
        differing: number of rows of which at least one bit differs.
        first: kind of pass of the first such row, such as `query length 3`; None if there is none.
        kernels: what the result depends on.
        largest: largest difference that was seen, as a fraction of the largest logit of its row.
        largest_absolute: largest difference that was seen.
    """

    rows: int
    differing: int
    first: str | None
    kernels: Kernels
    largest: float = 0.0
    largest_absolute: float = 0.0

    @classmethod
    def from_json(cls, data: object, where: str) -> BitsReport:
        """Returns the report that `to_json` wrote.

        Raises:
            ArtifactError: if the data is not such a report.
        """
        if not isinstance(data, dict):
            raise ArtifactError(f"{where}: expected an object", "export the model again")
        names = {f.name for f in dataclasses.fields(Kernels)}
        figures = {k: v for k, v in data.items() if k not in names and k != "equal"}
        return read_record(cls, {**figures, "kernels": {k: v for k, v in data.items() if k in names}}, where=where, error=ArtifactError)

    @property
    def difference(self) -> str:
        """What differs, in a few words."""
        return f"{self.first}: {self.differing} of {self.rows} rows differ" if self.rows else "too short a context to compare"

    def is_rounding(self, dtype: str) -> bool:
        """Returns whether all differences are so small that engines of a data type compute the same thing."""
        return self.largest <= PRECISIONS[dtype].rounding

    @property
    def equal(self) -> bool:
        """Whether rows were compared and none differs."""
        return self.rows > 0 and self.differing == 0

    def to_json(self) -> dict[str, Any]:
        """Returns the figures, the verdict and the kernels as one flat object."""
        figures = dataclasses.asdict(self)
        return {"equal": self.equal, **{k: v for k, v in figures.items() if k != "kernels"}, **figures["kernels"]}


def store_bits(artifact: Artifact, report: BitsReport) -> None:
    """Stores a report on this host, where `known_bits` finds it; errors of the disk are only logged."""
    try:
        path = _path(artifact, report.kernels)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps(report.to_json(), indent=1).encode() + b"\n")
    except OSError as err:
        logger.debug("the result of the bit test cannot be stored: %s", err)


def known_bits(artifact: Artifact, kernels: Kernels) -> BitsReport | None:
    """Returns the report of these kernels from this host, else from the manifest; None if there is none."""
    try:
        path = _path(artifact, kernels)
        stored = BitsReport.from_json(parse_json(path.read_bytes()), str(path))
        if stored.kernels == kernels:
            return stored
    except (OSError, ValueError, ArtifactError):
        pass  # nothing that can be used is stored
    recorded = recorded_bits(artifact)
    return recorded if recorded is not None and recorded.kernels == kernels else None


def recorded_bits(artifact: Artifact) -> BitsReport | None:
    """Returns the report of the machine that exported the artifact; None if the manifest has none."""
    data = artifact.manifest.gate.get(GATE_KEY)
    return None if data is None else BitsReport.from_json(data, "manifest.json: gate: bits")


def tie_tolerance(engine: Engine, report: BitsReport | None = None) -> float:
    """Returns how far the scores of two tokens may be apart for a near tie; 0 if the kernels give equal bits.

    In other precisions than fp32, it follows from the differences that the bit test measured between query
    lengths.

    Args:
        engine: an open engine.
        report: its bit test; None for what is known of these kernels.
    """
    backend = engine.backend
    known = report if report is not None else known_bits(engine.artifact, Kernels.here(backend.threads, backend.device))
    if known is not None and known.equal and (report is not None or backend.capabilities.bit_exact):
        return 0.0
    if engine.artifact.manifest.dtype == "fp32" or known is None:
        return NEAR_TIE_TOLERANCE
    return max(NEAR_TIE_TOLERANCE, _NOISE_FACTOR * known.largest_absolute)


def exactness(artifact: Artifact, threads: int) -> str:
    """Returns `bits` if decoding is known to be bit-exact on this machine, else `near-tie (why)`.

    Bit-exact means that every pass gives the logits of autoregressive decoding, to the bit.

    Args:
        artifact: the artifact.
        threads: number of threads of each engine.
    """
    if artifact.manifest.target != "ort-cpu":
        return "near-tie (this target's kernels round differently for each query length)"
    kernels = Kernels.here(threads)
    known = known_bits(artifact, kernels)
    if known is not None:
        return "bits" if known.equal else f"near-tie ({known.difference})"
    recorded = recorded_bits(artifact)
    if recorded is None or not recorded.equal:
        return "near-tie (not tested on this machine; to test: sstool check)"
    where = recorded.kernels
    return (
        f"near-tie (tested elsewhere: bits on {where.cpu}, onnxruntime {where.onnxruntime}, {where.threads} threads;"
        " to test this machine: sstool check)"
    )


def _path(artifact: Artifact, kernels: Kernels) -> Path:
    files = artifact.manifest.files
    digests = [*(files[name].sha256 for name in (VERIFY_GRAPH, STEP_GRAPH) if name in files), artifact.manifest.weights_digest]
    key = hashlib.sha256(json.dumps([digests, dataclasses.asdict(kernels)], sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "bits" / f"{key}.json"
