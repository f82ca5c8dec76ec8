"""Keeps requests in flight in OpenVINO GenAI's continuous batching.

`serving_peers` runs it in the environment of that engine. It reads what to do as JSON from standard
input, and prints a list of results as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found, unused-ignore]
import openvino_genai  # type: ignore[import-not-found, unused-ignore]


class _Request:
    """A request that runs, and when its tokens came."""

    def __init__(self, handle: Any, prompt_tokens: int) -> None:
        self._handle = handle
        self._prompt_tokens = prompt_tokens
        self._begun = time.perf_counter()
        self._first = self._last = 0.0
        self._tokens = 0

    def read(self) -> bool:
        """Takes the tokens that a step gave; returns whether the request is over."""
        while self._handle.can_read():
            count = sum(len(output.generated_ids) for output in self._handle.read().values())
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self._tokens += count
        return bool(self._handle.get_status() != openvino_genai.GenerationStatus.RUNNING)

    def row(self) -> dict[str, float]:
        """Returns the figures of the request."""
        between = (self._last - self._first) / max(1, self._tokens - 1)
        return {"prompt_tokens": self._prompt_tokens, "tokens": self._tokens, "ttft_s": self._first - self._begun, "itl_s": between}


def open_pipeline(wanted: dict[str, Any]) -> Any:
    """Returns the pipeline: products, keys and values in fp32, and nothing kept of earlier prompts."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 1
    how = {"INFERENCE_NUM_THREADS": wanted["threads"], "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    return openvino_genai.ContinuousBatchingPipeline(wanted["model"], scheduler, "CPU", how)


def run(pipeline: Any, wanted: dict[str, Any], callers: int, requests: int, tokens: int) -> dict[str, Any]:
    """Runs some requests, of which as many are in flight as there are callers."""
    rows: list[dict[str, float]] = []
    running: list[_Request] = []
    sent, begun = 0, time.perf_counter()
    while len(rows) < requests:
        while len(running) < callers and sent < requests:
            ids = np.array([wanted["ids"][sent % len(wanted["ids"])]], np.int64)
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens, config.ignore_eos = tokens, True
            config.do_sample, config.temperature, config.top_p = True, wanted["temperature"], wanted["top_p"]
            config.rng_seed = wanted["seed"] + sent
            running.append(_Request(pipeline.add_request(sent, openvino.Tensor(ids), config), ids.shape[1]))
            sent += 1
        pipeline.step()
        ended = [request for request in running if request.read()]
        rows += [request.row() for request in ended]
        running = [request for request in running if request not in ended]
    return {"callers": callers, "wall_s": time.perf_counter() - begun, "rows": rows}


def main() -> None:
    """Runs all levels."""
    wanted = json.load(sys.stdin)
    pipeline, answers = open_pipeline(wanted), []
    for callers, requests in wanted["levels"]:
        run(pipeline, wanted, callers, callers, wanted["warm_up_tokens"])
        answers.append(run(pipeline, wanted, callers, requests, wanted["tokens"]))
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


if __name__ == "__main__":
    main()
