"""What several callers get together, with and without drafts, against one autoregressive stream.

    python -m tests.measurements.concurrency ARTIFACT PROMPTS.jsonl [--callers 1,2,4,8] [--tokens 128]

Each row is a number of callers, each of which sends one request after the other. Rows take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import queue
import sys
import threading
import time
from pathlib import Path

from ssruntime import Completion, GenerationConfig, load
from ssruntime.engine import Engine
from ssruntime.machine import cpu_model
from sstool.prompts import read_prompts


def run(engine: Engine, jobs: list[tuple[str, GenerationConfig]], callers: int) -> tuple[float, list[Completion]]:
    """Returns the seconds that some callers take for all jobs together, and the completions in order."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(jobs)):
        waiting.put(number)
    found: dict[int, Completion] = {}

    def call() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            prompt, config = jobs[number]
            found[number] = engine.generate(prompt, config)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun, [found[number] for number in range(len(jobs))]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--callers", default="1,2,4,8")
    parser.add_argument("--modes", default="plain,auto")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    callers = [int(one) for one in given.callers.split(",")]
    prompts = [record.prompt for record in read_prompts(given.prompts)]
    how = GenerationConfig(temperature=0.8, top_p=0.95, max_new_tokens=given.tokens, ignore_eos=True)
    rows = [(mode, count) for count in callers for mode in given.modes.split(",")]
    speeds: dict[tuple[str, int], list[float]] = {row: [] for row in rows}
    texts: dict[int, list[int]] = {}
    differ = 0
    with load(given.artifact, max_sequences=max(callers), prefix_cache=0) as engine:
        engine.warm_up()
        for repeat in range(given.repeats):
            for mode, count in rows[:: 1 if repeat % 2 == 0 else -1]:
                jobs = [
                    (str(prompts[n % len(prompts)]), dataclasses.replace(how, mode=mode, seed=n))
                    for n in range(max(given.requests, 2 * count))
                ]
                seconds, found = run(engine, jobs, count)
                speeds[mode, count].append(sum(len(one.token_ids) for one in found) / seconds)
                for number, one in enumerate(found):
                    differ += texts.setdefault(number, one.token_ids) != one.token_ids
                _say(f"{mode} {count}: {speeds[mode, count][-1]:.1f} tokens/s")
    _say(f"\n{cpu_model()}; {given.tokens} tokens, texts that differ: {differ}")
    base = sum(speeds["plain", 1]) / len(speeds["plain", 1])
    for mode, count in rows:
        mean = sum(speeds[mode, count]) / len(speeds[mode, count])
        _say(f"{mode:12} {count:3} callers {mean:8.1f} tokens/s {mean / base:6.2f} x one plain stream")


if __name__ == "__main__":
    main()
