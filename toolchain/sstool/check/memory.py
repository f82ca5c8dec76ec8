"""Measures the memory that a draft and a second process add, as PSS (proportional set size), on Linux.

* Draft: PSS after speculative decoding, minus PSS after the same amount of autoregressive decoding (mode
  `plain`) in an engine that was opened without a draft.
* Second process: PSS that it adds beside a first process, minus PSS that a process without an engine adds.
  The process without an engine has the same imports and a KV cache of the same size and fill. Each sum is
  read while both processes are alive, so that pages they share count once. The result is never less than
  `PSS(A + B) - PSS(A alone) - PSS(no engine)`, which would count shared libraries in the engine's favour.

No other process, and not this one either, may have engines of the artifact open during the measurement: pages
shared with such an engine would count only in part.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from ssruntime.artifact import read_artifact
from ssruntime.errors import BackendUnavailableError
from ssruntime.strict_reader import parse_json, read_record
from sstool.check.memory_probe import ProbeJob, ProbeReady, Work

NUM_TOKENS: Final = 64
JUDGED_FROM_BYTES: Final = 100_000_000
"""Smallest weights for which the limits apply. For smaller ones, the constant part of a limit dominates."""

_DRAFT_BAR: Final = (0.02, 4_000_000)
_SECOND_BAR: Final = (0.10, 16_000_000)


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """Memory of an artifact's engines, in bytes.

    Attributes:
        weights_bytes: size of the weights file.
        draft_bytes: memory that the draft adds; None if the artifact has no draft.
        draft_bar_bytes: limit of `draft_bytes`: 2 % of the weights + 4 MB + the draft's own weights.
        second_process_bytes: memory that a second process adds.
        second_process_bar_bytes: limit of `second_process_bytes`: 10 % of the weights + 16 MB.
        packing: `shared` (all processes of the host share the packed weights) or `private (reason)`.
        judged: whether the limits apply: they do if the weights have at least 100 MB.
        readings: every PSS that was read, by name.
    """

    weights_bytes: int
    draft_bytes: int | None
    draft_bar_bytes: int
    second_process_bytes: int
    second_process_bar_bytes: int
    packing: str
    judged: bool
    readings: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether no limit that applies is exceeded."""
        if not self.judged:
            return True
        draft_fits = self.draft_bytes is None or self.draft_bytes <= self.draft_bar_bytes
        return draft_fits and self.second_process_bytes <= self.second_process_bar_bytes


def can_measure() -> bool:
    """Whether this system reports the PSS of a process."""
    return Path("/proc/self/smaps_rollup").exists()


def measure_memory(folder: Path, *, threads: int | None = None, max_context: int | None = None) -> MemoryReport:
    """Returns the memory of an artifact's engines, measured in new processes.

    Args:
        folder: folder of the artifact.
        threads: number of threads per engine; None for the default.
        max_context: number of positions of the KV cache; None for the default.

    Raises:
        ArtifactError: if the artifact cannot be read.
        BackendUnavailableError: if a process fails, or this system does not report the PSS of a process.
    """
    if not can_measure():
        raise BackendUnavailableError("memory cannot be measured: this system has no /proc/self/smaps_rollup", "measure on Linux")
    manifest = read_artifact(folder).manifest
    weights = manifest.weights_size
    decoding: Work = "speculative" if manifest.drafts else "plain"

    def job(work: Work, like: ProbeReady | None = None) -> ProbeJob:
        return ProbeJob(
            artifact=str(folder),
            work=work,
            num_tokens=NUM_TOKENS,
            threads=threads,
            max_context=like.max_context if like else max_context,
            modules=like.modules if like else (),
            filled=like.filled if like else 0,
        )

    # The first process packs the weights, in private memory, and is not measured.
    with _probe(job(decoding)) as first:
        ready = first.ready
    readings = {}
    with _probe(job(decoding)) as a:
        readings["engine_alone"] = a.pss()
        with _probe(job("imports", ready)) as c:
            readings["engine_beside_no_engine"] = a.pss()
            readings["no_engine"] = c.pss()
        with _probe(job(decoding)) as b:
            readings["engine_beside_second"] = a.pss()
            readings["second_engine"] = b.pss()
    if manifest.drafts:
        with _probe(job("plain")) as without:
            readings["engine_without_draft"] = without.pss()
    with_second = readings["engine_beside_second"] + readings["second_engine"]
    with_none = readings["engine_beside_no_engine"] + readings["no_engine"]
    return MemoryReport(
        weights_bytes=weights,
        draft_bytes=readings["engine_alone"] - readings["engine_without_draft"] if manifest.drafts else None,
        draft_bar_bytes=_bar(weights, _DRAFT_BAR) + sum(manifest.files[name].size for draft in manifest.drafts for name in draft.weights),
        second_process_bytes=with_second - with_none,
        second_process_bar_bytes=_bar(weights, _SECOND_BAR),
        packing=ready.packing,
        judged=weights >= JUDGED_FROM_BYTES,
        readings=readings,
    )


def _bar(weights: int, bar: tuple[float, int]) -> int:
    share, constant = bar
    return int(share * weights) + constant


class _Probe:
    """A probe process that has done its work."""

    def __init__(self, process: subprocess.Popen[str], stdin: IO[str], stdout: IO[str], stderr: IO[str]) -> None:
        self._process, self._stdin, self._stdout, self._stderr = process, stdin, stdout, stderr
        self.ready = read_record(ProbeReady, parse_json(self._answer()), where="a probe's answer", error=BackendUnavailableError)

    def pss(self) -> int:
        """Returns the current PSS of the process, in bytes."""
        with contextlib.suppress(BrokenPipeError):  # `_answer` reports a process that has ended
            self._stdin.write("pss\n")
            self._stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        line = self._stdout.readline()
        if line:
            return line
        self._process.wait()
        self._stderr.seek(0)
        said = [text for text in self._stderr.read().splitlines() if text.strip()]
        raise BackendUnavailableError(
            f"a process whose memory is measured ended with status {self._process.returncode}: {said[-1] if said else 'no message'}",
            "run `sstool generate` on the artifact to see whether it works",
        )


@contextlib.contextmanager
def _probe(job: ProbeJob) -> Iterator[_Probe]:
    """Starts a probe and waits until its work is done; ends it when the block ends."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        command = [sys.executable, "-m", "sstool.check.memory_probe", job.to_json()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield _Probe(process, process.stdin, process.stdout, stderr)
                process.stdin.close()
                process.wait()
            finally:
                process.kill()
