"""Keeps requests in flight in an engine of this process, one thread for each caller.

`serving_peers` runs it, as it runs `openvino_load`: it reads what to do as JSON from standard input, and
prints a list of results as JSON. So two engines are compared without a server in between.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ssruntime import GenerationConfig, load
from ssruntime.engine import Engine


def request(engine: Engine, wanted: dict[str, Any], number: int, tokens: int) -> dict[str, float]:
    """Runs a request; returns its figures."""
    ids = wanted["ids"][number % len(wanted["ids"])]
    config = GenerationConfig(
        temperature=wanted["temperature"],
        top_p=wanted["top_p"],
        seed=wanted["seed"] + number,
        max_new_tokens=tokens,
        ignore_eos=True,
    )
    begun, first, count = time.perf_counter(), 0.0, 0
    for chunk in engine.stream(ids, config):
        count += len(chunk.token_ids)
        first = first or time.perf_counter()
    between = (time.perf_counter() - first) / max(1, count - 1)
    return {"prompt_tokens": len(ids), "tokens": count, "ttft_s": first - begun, "itl_s": between}


def run(engine: Engine, wanted: dict[str, Any], callers: int, requests: int, tokens: int) -> dict[str, Any]:
    """Runs some requests, of which as many are in flight as there are callers."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        rows = list(pool.map(lambda number: request(engine, wanted, number, tokens), range(requests)))
    return {"callers": callers, "wall_s": time.perf_counter() - begun, "rows": rows}


def main() -> None:
    """Runs all levels."""
    wanted, answers = json.load(sys.stdin), []
    most = max(callers for callers, _ in wanted["levels"])
    with load(Path(wanted["model"]), threads=wanted["threads"], max_sequences=most, prefix_cache=0) as engine:
        engine.warm_up()
        for callers, requests in wanted["levels"]:
            run(engine, wanted, callers, callers, wanted["warm_up_tokens"])
            answers.append(run(engine, wanted, callers, requests, wanted["tokens"]))
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


if __name__ == "__main__":
    main()
