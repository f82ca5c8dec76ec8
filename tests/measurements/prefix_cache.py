"""Seconds to the first token of prompts whose beginning is known, and of prompts of which nothing is known.

    python -m tests.measurements.prefix_cache ARTIFACT [--tokens 1000] [--shared 0,500,984] [--repeats 15]

Prompts are random. Engines with and without the cache take turns. The first rounds, in which the cache takes
memory for the first time, are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from ssruntime import GenerationConfig, load
from ssruntime.engine import Engine
from ssruntime.machine import cpu_model

FIRST = GenerationConfig(mode="plain", temperature=0.0, max_new_tokens=1)


def seconds(engine: Engine, ids: list[int]) -> float:
    """Returns the seconds from a request to its first token."""
    begun = time.perf_counter()
    engine.generate(ids, FIRST)
    return time.perf_counter() - begun


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--shared", default="0,500,984")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with load(given.artifact) as engine, load(given.artifact, prefix_cache=0) as without:

        def random(count: int) -> list[int]:
            return rng.integers(3, engine.backend.vocab_size, count).tolist()

        # Fills the cache: memory that was never written costs more.
        while (stats := engine.prefix_cache.stats()).kept_bytes < stats.capacity_bytes:
            seconds(engine, random(given.tokens))
        lines = [f"{cpu_model()}; prompts of {given.tokens} tokens"]
        for shared in (int(one) for one in given.shared.split(",")):
            found, plain = list[float](), list[float]()
            for repeat in range(given.repeats):
                known = random(shared)
                if known:
                    seconds(engine, [*known, *random(16)])
                ids = [*known, *random(given.tokens - shared)]
                for one, times in ((engine, found), (without, plain))[:: 1 if repeat % 2 == 0 else -1]:
                    times.append(seconds(one, ids))
            apart = statistics.median(a / b for a, b in zip(found, plain, strict=True))
            lines.append(
                f"{shared:5} shared {1e3 * statistics.median(found):8.1f} ms, without the cache {1e3 * statistics.median(plain):8.1f} ms:"
                f" {apart:.3f} (fastest {min(found) / min(plain):.3f})"
            )
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
