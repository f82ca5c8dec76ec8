"""What several callers get from `sstool serve` and from other servers of its checkpoint, which take turns.

    python -m tests.measurements.serving_peers ARTIFACT --model CHECKPOINT --prompts FILE.jsonl
        [--llama-server PROGRAM] [--transformers PROGRAM] [--openvino PYTHON] [--out FILE.json]

Each server is up alone while it is measured. The converted models of llama.cpp and OpenVINO GenAI are those
that `sstool bench --against llamacpp,openvino` leaves in the cache folder. A peer that is missing is a row
that says why.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssruntime.machine import cpu_model, logical_cpus
from sstool.bench.peers import PEERS, PeerError
from sstool.prompts import read_prompts
from tests.measurements.serving_engines import Engine, Job, Level, llama_server, openvino, our_engine, ours, transformers_serve

OURS = "sstool serve"
Results = dict[str, list[list[Level]]]
"""The levels of each engine, once for each round."""


def main() -> None:
    """Measures, and prints a table."""
    given = _options().parse_args()
    texts = [str(record.prompt) for record in read_prompts(given.prompts)]
    callers = tuple(sorted(int(one) for one in given.callers.split(",")))
    job = Job(
        artifact=given.artifact.absolute(),
        model=given.model.absolute(),
        texts=texts,
        callers=callers,
        waves=given.waves,
        tokens=given.tokens,
        threads=given.threads,
    )
    results: Results = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        engines = _engines(job, given, Path(scratch), missing)
        for number in range(given.rounds):
            for name in list(engines)[:: 1 if number % 2 == 0 else -1]:
                _measure(name, engines[name], results, missing)
    report = _report(job, given.rounds, results, missing)
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _say("\n".join(["", *_table(report)]))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="the artifact's checkpoint")
    parser.add_argument("--prompts", type=Path, required=True, help="texts, as JSON Lines")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's program of this name")
    parser.add_argument("--transformers", type=Path, help="the program of this name, of an environment with transformers[serving]")
    parser.add_argument("--openvino", type=Path, default=PEERS["openvino"].python, help="Python with openvino-genai")
    parser.add_argument("--callers", default="1,4,8")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--waves", type=int, default=3, help="requests for each caller; at least 8 in all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    return parser


def _engines(job: Job, given: argparse.Namespace, scratch: Path, missing: dict[str, str]) -> dict[str, Engine]:
    """Returns the engines that can be started, and keeps why others cannot."""
    makers: dict[str, Callable[[], Engine]] = {
        OURS: lambda: ours(job),
        f"{OURS} --no-draft": lambda: ours(job, "--no-draft"),
        "sstool, without a server": lambda: our_engine(job),
        "llama-server": lambda: llama_server(job, given.llama_server or Path("llama-server")),
        "OpenVINO GenAI": lambda: openvino(job, given.openvino),
        "transformers serve": lambda: transformers_serve(job, given.transformers or Path("transformers"), scratch),
    }
    engines: dict[str, Engine] = {}
    for name, make in makers.items():
        try:
            engines[name] = make()
        except PeerError as err:
            missing[name] = str(err)
    return engines


def _measure(name: str, engine: Engine, results: Results, missing: dict[str, str]) -> None:
    """Measures an engine once; one that has failed takes no further part."""
    if name in missing:
        return
    try:
        levels = engine.measure()
    except PeerError as err:
        missing[name] = str(err)
        return
    results.setdefault(name, []).append(levels)
    _say(f"{name}: " + ", ".join(f"{level.callers} callers {level.tokens_per_second:.1f} tokens/s" for level in levels))


def _report(job: Job, rounds: int, results: Results, missing: dict[str, str]) -> dict[str, Any]:
    """Returns the JSON: medians over rounds, and the levels of each round."""
    rows = [
        _row(name, at, levels, results.get(OURS, []))
        for name, levels in results.items()
        if name not in missing
        for at in range(len(job.callers))
    ]
    settings = asdict(job) | {"artifact": job.artifact.name, "model": job.model.name, "texts": len(job.texts), "rounds": rounds}
    environment = {"cpu": cpu_model(), "logical_cpus": logical_cpus()}
    every = {name: [[asdict(level) for level in one] for one in levels] for name, levels in results.items()}
    return {"environment": environment, "settings": settings, "rows": rows, "missing": missing, "rounds": every}


def _row(name: str, at: int, levels: list[list[Level]], base: list[list[Level]]) -> dict[str, Any]:
    """Returns the figures of an engine at one number of callers; the ratios are those of the same round."""
    mine = [one[at] for one in levels]
    ratios = [b[at].tokens_per_second / m.tokens_per_second for b, m in zip(base, mine, strict=False) if m.tokens_per_second]
    return {
        "engine": name,
        "callers": mine[0].callers,
        "tokens_per_second": statistics.median(level.tokens_per_second for level in mine),
        "ours_over_this": statistics.median(ratios) if ratios else None,
        "ttft_s": _median([level.ttft_s for level in mine]),
        "itl_s": _median([level.itl_s for level in mine]),
        "tokens_per_request": sum(level.output_tokens for level in mine) / max(1, sum(level.requests for level in mine)),
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _table(report: dict[str, Any]) -> list[str]:
    """Returns the lines of a table in Markdown."""
    lines = [
        f"{report['environment']['cpu']}; {report['settings']['tokens']} tokens, {report['settings']['rounds']} rounds",
        "",
        "| engine | callers | tokens/s | sstool serve over this | first token, p50 | between tokens, p50 | tokens a request |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratio = "-" if row["ours_over_this"] is None else f"{row['ours_over_this']:.2f}"
        times = ["-" if row[name] is None else f"{1000 * row[name]:.{digits}f} ms" for name, digits in (("ttft_s", 0), ("itl_s", 1))]
        figures = [f"{row['tokens_per_second']:.1f}", ratio, *times, f"{row['tokens_per_request']:.1f}"]
        lines.append(f"| {row['engine']} | {row['callers']} | {' | '.join(figures)} |")
    return lines + [f"| {name} | | {reason} | | | | |" for name, reason in report["missing"].items()]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
