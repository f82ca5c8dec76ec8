"""A process whose memory is measured: it does one job, then reports its PSS (proportional set size).

Run as `python -m sstool.check.memory_probe JOB`, where JOB is a `ProbeJob` as JSON. The process imports only
the runtime, so that it holds what a service that embeds the runtime holds. It writes one line of JSON when
its job is done, then one number (PSS in bytes) for each line that it reads, and exits at the end of its
input. See `sstool.check.memory`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ssruntime.artifact import read_artifact
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine, load
from ssruntime.errors import ConfigError
from ssruntime.strict_reader import parse_json, read_record

Work = Literal["speculative", "plain", "imports"]

PROMPT: Final = "Once upon a time there was a small house at the edge of the wood, and in it"


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """The job that a probe does before it is measured.

    Attributes:
        artifact: folder of the artifact.
        work: `speculative` decodes speculatively; `plain` decodes autoregressively in an engine without a
            draft; `imports` only imports `modules` and allocates a KV cache.
        num_tokens: number of tokens to decode.
        threads: number of threads per engine; None for the default.
        max_context: number of positions of the KV cache; None for the default.
        modules: names of the modules to import; used by `imports`.
        filled: number of positions of the KV cache to fill; used by `imports`.
    """

    artifact: str
    work: Work
    num_tokens: int
    threads: int | None
    max_context: int | None
    modules: tuple[str, ...] = ()
    filled: int = 0

    def to_json(self) -> str:
        """Returns the job as one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class ProbeReady:
    """The message of a probe when its job is done.

    Attributes:
        packing: how the weights are packed; empty without an engine.
        modules: names of all loaded modules.
        filled: number of filled positions of the KV cache.
        max_context: number of positions of the KV cache.
    """

    packing: str
    modules: tuple[str, ...]
    filled: int
    max_context: int


def pss_bytes() -> int:
    """Returns the PSS of this process in bytes: a page shared by n processes counts 1/n.

    Raises:
        OSError: if the system does not report it.
    """
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup: expected a line Pss, found none")


def run(job: ProbeJob) -> tuple[ProbeReady, object]:
    """Does a job.

    Returns:
        The message to send, and an object that must stay alive during the measurement.
    """
    if job.work == "imports":
        for name in job.modules:
            # Some modules are parts of others and cannot be imported by name.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        cache = _filled_cache(job)
        return ProbeReady(packing="", modules=(), filled=job.filled, max_context=job.max_context or 0), cache
    engine: Engine = load(job.artifact, threads=job.threads, max_context=job.max_context, draft=job.work == "speculative", prefix_cache=0)
    config = GenerationConfig(max_new_tokens=job.num_tokens, mode=job.work, temperature=0.0, ignore_eos=True)
    completion = engine.generate(PROMPT, config)
    filled = completion.prompt_tokens + len(completion.token_ids)
    modules = tuple(sorted(name for name in sys.modules if name != "__main__"))
    ready = ProbeReady(packing=engine.backend.packing, modules=modules, filled=filled, max_context=engine.backend.max_context)
    return ready, engine


def _filled_cache(job: ProbeJob) -> list[NDArray[np.float32]]:
    kv = read_artifact(Path(job.artifact)).manifest.kv
    shape = (1, kv.kv_heads, job.max_context or 0, kv.head_dim)
    buffers = [np.zeros(shape, dtype=np.float32) for _ in range(2 * kv.num_layers)]
    for buffer in buffers:
        buffer[:, :, : job.filled] = 1.0
    return buffers


def main() -> None:
    """Does the job given on the command line, then answers until its input ends."""
    ready, alive = run(read_record(ProbeJob, parse_json(sys.argv[1]), where="the probe's job", error=ConfigError))
    sys.stdout.write(json.dumps(asdict(ready)) + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(f"{pss_bytes()}\n")
        sys.stdout.flush()
    del alive


if __name__ == "__main__":
    main()
