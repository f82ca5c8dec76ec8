"""Measures the rows of `speed.json`: each artifact sampled and greedy, modes in turns (`tests/README.md`).

    python -m tests.measurements.speed --prompts FILE.jsonl [--repeat 2] "bench (73 M)=ARTIFACT" ...

Run it on an idle machine. The rows keep what `sstool bench --json` prints, without the single prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from ssruntime import GenerationConfig, load
from sstool.bench import BenchOptions, run_bench
from sstool.prompts import read_prompts
from tests.measurements.pictures import SPEED

SAMPLINGS: Final = {
    "sampled": GenerationConfig(temperature=0.8, top_p=0.95, seed=0),
    "greedy": GenerationConfig(temperature=0.0, seed=0),
}


def main() -> None:
    """Measures every named artifact and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs="+", metavar="NAME=ARTIFACT")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--out", type=Path, default=SPEED)
    given = parser.parse_args()
    prompts, rows = read_prompts(given.prompts), []
    for name, _, folder in (artifact.rpartition("=") for artifact in given.artifacts):
        with load(folder, prefix_cache=0) as engine:
            for sampling, config in SAMPLINGS.items():
                report = run_bench(engine, prompts, config, BenchOptions(repeat=given.repeat)).to_json()
                report.pop("per_prompt")
                rows.append({"row": f"{name}, {sampling}", "bench": report})
                print(rows[-1]["row"], json.dumps(report["runs"]), file=sys.stderr)
    given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
