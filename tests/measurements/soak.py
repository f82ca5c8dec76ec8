"""Sends mixed requests to a running `sstool serve` for minutes, faster than it can answer, and gives some up.

    python -m tests.measurements.soak http://127.0.0.1:8000 PROMPTS.jsonl --pid PID --rate 2.2 --minutes 20

Prints what was answered, the latencies of admitted requests, and the memory of the server's process.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from sstool.prompts import read_prompts

GIVEN_UP = 0.2
"""Share of the requests whose client closes the connection in the middle."""


class Load:
    """Requests of all kinds, and what became of them."""

    def __init__(self, client: httpx2.AsyncClient, prompts: list[str], seed: int) -> None:
        self._client = client
        self._prompts = prompts
        self._draw = random.Random(seed)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.latencies: list[float] = []
        self.first_tokens: list[float] = []

    async def send(self) -> None:
        """Sends one request."""
        draw = self._draw
        body: dict[str, Any] = {
            "prompt": draw.choice(self._prompts),
            "max_tokens": draw.choice([1, 16, 64, 128, 256]),
            "temperature": draw.choice([0, 0.8, 1.0]),
            "seed": draw.randrange(2**32),
            "logprobs": draw.choice([None, None, None, 2]),
            "n": draw.choice([1, 1, 1, 1, 2]),
            "stream": draw.random() < 0.7,
        }
        is_given_up = draw.random() < GIVEN_UP
        begun = time.perf_counter()
        try:
            if not body["stream"]:
                wait = draw.uniform(0.1, 3.0) if is_given_up else 600.0
                async with asyncio.timeout(wait):
                    answer = await self._client.post("/v1/completions", json=body)
                self.outcomes[str(answer.status_code)] += 1
                is_complete = answer.status_code == httpx2.codes.OK
            else:
                is_complete = await self._read(body, draw.randrange(1, 40) if is_given_up else None, begun)
            if is_complete:
                self.latencies.append(time.perf_counter() - begun)
        except TimeoutError:
            self.outcomes["given up"] += 1
        except httpx2.TransportError as err:
            self.outcomes[type(err).__name__] += 1

    async def _read(self, body: dict[str, Any], most: int | None, begun: float) -> bool:
        """Reads a stream, perhaps only some lines of it; returns whether it was complete."""
        async with self._client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != httpx2.codes.OK:
                self.outcomes[str(answer.status_code)] += 1
                return False
            lines = 0
            last = ""
            async for line in answer.aiter_lines():
                lines += 1
                if lines == 1:
                    self.first_tokens.append(time.perf_counter() - begun)
                last = line or last
                if most is not None and lines >= most:
                    self.outcomes["given up"] += 1
                    return False
            is_complete = last == "data: [DONE]"
            self.outcomes["200" if is_complete else "broken stream"] += 1
            return is_complete


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


async def soak(url: str, prompts: list[str], pid: int, rate: float, minutes: float, seed: int) -> None:
    """Runs the load, and prints a line each minute."""
    draw = random.Random(seed)
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as client:
        load = Load(client, prompts, seed)
        begun, minute = time.monotonic(), 0
        async with asyncio.TaskGroup() as running:
            while (now := time.monotonic() - begun) < 60 * minutes:
                if now >= 60 * minute:
                    minute += 1
                    _say(f"{minute - 1} min: {resident_mb(pid):.1f} MB, {dict(load.outcomes)}")
                running.create_task(load.send())
                await asyncio.sleep(draw.expovariate(rate))
        _say(f"end: {resident_mb(pid):.1f} MB, {dict(load.outcomes)}")
        for name, values in (("latency", load.latencies), ("first token", load.first_tokens)):
            _say(f"{name}, s: " + ", ".join(f"p{q} {np.percentile(values, q):.2f}" for q in (50, 90, 99)) + f", most {max(values):.2f}")
        text = (await client.get("/metrics")).text
        _say("\n".join(line for line in text.splitlines() if line.startswith(("vllm:num_requests", "vllm:kv_cache_usage"))))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    prompts = [str(record.prompt) for record in read_prompts(given.prompts)]
    asyncio.run(soak(given.url, prompts, given.pid, given.rate, given.minutes, given.seed))


if __name__ == "__main__":
    main()
