"""Measures whether mode `auto` is ever slower than autoregressive decoding, where drafting should not pay.

    python -m tests.measurements.never_slower --model CHECKPOINT --artifact ARTIFACT --prompts FILE.jsonl...
        [--seed 7] [--first 6] [--tokens 128] [--repeat 1] [--rows sets,random,short,long,busy]

The rows:

* sets: five random skip sets and three contiguous ones, drawn from the seed, each exported for itself;
* random: prompts of random tokens, with the draft of ARTIFACT, as in all rows below;
* short: completions of 1 and 8 tokens;
* long: prompts of 1,500 tokens;
* busy: while one process per core runs an endless loop.

Sampled text: temperature 0.8, top-p 0.95, coupled. The two modes take turns on each prompt. Prints one JSON
object a row on stdout and the same as text on stderr: autoregressive time over time of `auto`, from the first
token to the last and for whole requests, with paired 95 % intervals over prompts, and identical texts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ssruntime import Engine, GenerationConfig, load
from ssruntime.sampling.noise import prompt_seed
from ssruntime.text.prompt import Prompt
from sstool.bench.environment import describe_environment
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.prompts import read_prompts
from sstool.skip_set import SkipSpec

_RANDOM_SETS: Final = 5
_CONTIGUOUS_SETS: Final = 3
_LONG: Final = 1500
_ROWS: Final = ("sets", "random", "short", "long", "busy")
_RESAMPLES: Final = 4000


def drawn_sets(seed: int, num_layers: int) -> dict[str, SkipSpec]:
    """Returns the skip sets of a seed: random ones of 1/4 to 3/4 of all sublayers, and blocks of layers."""
    draw, found = random.Random(seed), {}
    for number in range(_RANDOM_SETS):
        count = draw.randint(num_layers // 2, 3 * num_layers // 2)
        chosen = sorted(draw.sample(range(2 * num_layers), count))
        attention = tuple(n for n in chosen if n < num_layers)
        found[f"random {number}"] = SkipSpec(attention=attention, mlp=tuple(n - num_layers for n in chosen if n >= num_layers))
    for number in range(_CONTIGUOUS_SETS):
        length = draw.randint(num_layers // 6, num_layers // 2)
        first = draw.randint(1, num_layers - length - 1)
        block = tuple(range(first, first + length))
        found[f"contiguous {number}"] = SkipSpec(attention=block, mlp=block)
    return found


@contextlib.contextmanager
def busy_processor() -> Iterator[None]:
    """Keeps every core busy with other processes."""
    workers = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()


def _spin() -> None:
    while True:
        pass


def measure(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, seed: int, repeat: int) -> dict[str, Any]:
    """Returns the figures of a row; see the module's documentation."""
    config = GenerationConfig(temperature=0.8, top_p=0.95, max_new_tokens=tokens, mode="plain")
    for mode in ("plain", "auto"):
        engine.generate(prompts[0], dataclasses.replace(config, mode=mode, seed=seed))
    seconds = {mode: np.zeros((2, len(prompts))) for mode in ("plain", "auto")}
    same = 0
    for number in range(repeat):
        for turn, ids in enumerate(prompts):
            texts = []
            for mode in ("plain", "auto") if (number + turn) % 2 == 0 else ("auto", "plain"):
                begun = time.perf_counter()
                done = engine.generate(ids, dataclasses.replace(config, mode=mode, seed=prompt_seed(seed, turn)))
                seconds[mode][:, turn] += done.stats.decode_s, time.perf_counter() - begun
                texts.append(done.token_ids)
            same += texts[0] == texts[1]
    found: dict[str, Any] = {"identical": same, "runs": repeat * len(prompts), "tokens": tokens}
    for where, name in enumerate(("decoding", "whole")):
        plain, auto = seconds["plain"][where], seconds["auto"][where]
        if auto.sum() > 0:
            found[name] = float(plain.sum() / auto.sum())
            found[f"{name}_95"] = _interval(plain, auto)
    return found


def _interval(plain: NDArray[np.float64], auto: NDArray[np.float64]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(len(plain), size=(_RESAMPLES, len(plain)))
    low, high = np.percentile(plain[drawn].sum(axis=1) / auto[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def tell(name: str, row: dict[str, Any]) -> None:
    """Prints a row."""
    sys.stdout.write(json.dumps({"row": name, **row}) + "\n")
    sys.stdout.flush()
    found = [(key, row[key], *row[f"{key}_95"]) for key in ("decoding", "whole") if key in row]
    parts = [f"{key} {ratio:.3f} ({low:.3f} to {high:.3f})" for key, ratio, low, high in found]
    sys.stderr.write(f"{name:16} {'; '.join([*parts, 'identical {identical} of {runs}'.format(**row)])}\n")


def measure_sets(given: argparse.Namespace, texts: Sequence[Prompt]) -> None:
    """Measures each drawn skip set in an artifact of its own."""
    with load(given.artifact, draft=False, max_sequences=1, prefix_cache=0) as engine:
        num_layers = engine.artifact.manifest.model.num_layers
    for name, spec in drawn_sets(given.seed, num_layers).items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "artifact"
            export_artifact(ExportRequest(model=given.model, out=folder, skip=spec))
            with load(folder, max_sequences=1, prefix_cache=0) as engine:
                tell(name, measure(engine, [engine.encode(t) for t in texts], given.tokens, given.seed, given.repeat))


def measure_others(given: argparse.Namespace, texts: Sequence[Prompt]) -> None:
    """Measures the rows that take the artifact's own draft."""
    with load(given.artifact, max_sequences=1, prefix_cache=0) as engine:
        tell("machine", {**describe_environment(engine).to_json(), "identical": 0, "runs": 0})
        prompts = [engine.encode(t) for t in texts]
        rows = set(given.rows.split(","))
        if "random" in rows:
            draw, most = random.Random(given.seed), engine.backend.vocab_size - 1
            noise = [[draw.randint(3, most) for _ in range(64)] for _ in prompts]
            tell("random tokens", measure(engine, noise, given.tokens, given.seed, given.repeat))
        for count in (1, 8) if "short" in rows else ():
            tell(f"{count} tokens", measure(engine, prompts, count, given.seed, max(3, given.repeat)))
        if "long" in rows:
            tell(f"{_LONG} of context", measure(engine, _long(prompts), given.tokens, given.seed, given.repeat))
        if "busy" in rows:
            with busy_processor():
                tell("busy", measure(engine, prompts, given.tokens, given.seed, given.repeat))


def _long(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Returns a prompt of 1,500 tokens for each prompt: it, with the ones after it in front."""
    found = []
    for number in range(len(prompts)):
        ring = [*prompts[number:], *prompts[:number]]
        ids = [token for prompt in reversed(ring) for token in prompt]
        found.append((ids * (_LONG // len(ids) + 1))[-_LONG:])
    return found


def main() -> None:
    """Measures the rows and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint of the artifact; needed for the row `sets`")
    parser.add_argument("--artifact", type=Path, required=True, help="artifact with a draft that pays")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="files of prompts, JSON Lines")
    parser.add_argument("--seed", type=int, default=7, help="seed of skip sets, random tokens and sampling")
    parser.add_argument("--first", type=int, default=6, help="number of first prompts of each file")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens to decode")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each prompt in each mode")
    parser.add_argument("--rows", default=",".join(_ROWS), help="rows to measure")
    given = parser.parse_args()
    texts = [p.prompt for file in given.prompts for p in read_prompts(file)[: given.first]]
    if set(given.rows.split(",")) - {"sets"}:
        measure_others(given, texts)
    if "sets" in given.rows.split(","):
        measure_sets(given, texts)


if __name__ == "__main__":
    main()
