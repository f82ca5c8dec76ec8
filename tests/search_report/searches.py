"""Made-up logs of searches, in the format of real ones.

Their counts are drawn from a seed, so that rates and curves look like those of a real search.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ssruntime.artifact import SkipSet
from ssruntime.stopping import ConfidenceRule
from sstool.search.log.records import (
    COMPLETED,
    FAILED,
    FORMAT,
    LATENCY,
    STOPPED,
    TRIALS,
    Counts,
    DraftCosts,
    Finalist,
    Header,
    LatencyRow,
    LatencyTable,
    Result,
    Sensitivity,
    Timed,
    Trial,
)

KINDS: Final = {Header: "search", Sensitivity: "influence", Trial: "trial", Finalist: "finalist", Result: "result"}
WARM: Final = ("recipe", "leave-one-out", "leave-one-out", "block", "block", "every-other", "dynamic-programme", "dynamic-programme")

ALL_PLOTS: Final = [
    "plot-progress", "plot-final", "plot-skip-set", "plot-trade", "plot-influence", "plot-frequency", "plot-positions", "plot-verify",
    "plot-draft-cost", "plot-steps", "plot-clock",
]  # fmt: skip
"""Ids of the figures of a finished search, in the order of the page."""
HOSTILE: Final = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\u202egnp.\u0000\ud800\U0001f600\n%{x} <b>"
"""Text that would do harm if it were read as markup, script or a format string."""

Record = Header | Sensitivity | Trial | Finalist | Result


def line(record: Record) -> str:
    """Returns a record as a line of `trials.jsonl`, without the line end."""
    return json.dumps({"kind": KINDS[type(record)], **dataclasses.asdict(record)})


def write_search(folder: Path, records: Iterable[Record], latency: LatencyTable | None = None) -> Path:
    """Writes a search's files into a folder, which is created if necessary, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIALS).write_text("".join(line(r) + "\n" for r in records), encoding="utf-8")
    if latency is not None:
        (folder / LATENCY).write_text(json.dumps(dataclasses.asdict(latency)), encoding="utf-8")
    return folder


def header(*, num_layers: int = 24, trials: int = 80, model: str = "models/some-24-layers") -> Header:
    """Returns the first record of a search."""
    return Header(
        format=FORMAT,
        model=model,
        num_layers=num_layers,
        verify_sha256="1" * 64,
        weights_sha256="2" * 64,
        calibration_sha256="3" * 64,
        search_prompts=24,
        sampled_tokens=96,
        greedy_tokens=32,
        final_prompts=8,
        latency_sha256="4" * 64,
        seed=0,
        trials=trials,
        batch=2,
        weights={"sampled": 0.75, "greedy": 0.25},
        draft_memory=0,
        cpu="A processor with 2 cores",
        threads=2,
        onnxruntime="1.32.0",
        plain=87.3,
    )


def latency(*, num_layers: int = 24) -> LatencyTable:
    """Returns a latency table for two context lengths."""
    ratios = (1, 1.07, 1.14, 1.2, 1.25, 1.31, 1.4, 1.52, 1.54, 1.56, 1.58, 1.6, 1.67, 1.74, 1.82, 1.89)

    def row(context: int, plain: float) -> LatencyRow:
        part = 0.8 * plain / num_layers
        attention = tuple(part * (0.4 + context / 9000) for _ in range(num_layers))
        return LatencyRow(
            context=context,
            verify=tuple(plain * r for r in ratios),
            draft=DraftCosts(
                base=0.19 * plain,
                attention=attention,
                mlp=tuple(part * 0.6 for _ in range(num_layers)),
                sizes=(0.2 * plain, 0.5 * plain, plain),
                first=(1.0, 0.95, 1.02),
                later=(0.8, 0.7, 0.95),
            ),
        )

    return LatencyTable(
        format=FORMAT,
        weights_sha256="2" * 64,
        verify_sha256="1" * 64,
        cpu="A processor with 2 cores",
        threads=2,
        onnxruntime="1.32.0",
        rows=(row(96, 0.01145), row(1024, 0.0131)),
        fit_error=0.034,
    )


def sensitivity(*, num_layers: int = 24, seed: int = 1) -> Sensitivity:
    """Returns leave-one-out sensitivities: the first layers matter most, and attention more than MLPs."""
    rng = random.Random(seed)

    def agreement(layer: int, scale: float) -> float:
        return max(0.0, 1 - scale * rng.uniform(0.3, 1.0) * (9 if layer == 0 else 1 + 1 / (1 + layer)))

    return Sensitivity(
        attention=tuple(agreement(i, 0.1) for i in range(num_layers)),
        mlp=tuple(agreement(i, 0.05) for i in range(num_layers)),
        seconds=21.5,
    )


def counts(rng: random.Random, acceptance: float, *, max_draft: int, rounds: int) -> Counts:
    """Returns the counts of random rounds: any draft length, and one chance `acceptance` for every token."""
    proposed = accepted = 0
    reached, kept = [0] * max_draft, [0] * max_draft
    for _ in range(rounds):
        length = rng.randint(1, max_draft)
        good = next((i for i in range(length) if rng.random() > acceptance), length)
        proposed, accepted = proposed + length, accepted + good
        for j in range(length):
            reached[j] += 1
            kept[j] += j < good
    return Counts(tokens=accepted + rounds, rounds=rounds, proposed=proposed, accepted=accepted, reached=tuple(reached), kept=tuple(kept))


def trial(index: int, source: str, *, num_layers: int = 24, status: str = COMPLETED, pull: float = 0.0, seed: int = 7) -> Trial:
    """Returns a trial.

    Args:
        index: index of the trial.
        source: source that proposed the trial.
        num_layers: number of layers of the model.
        status: status with which the trial ended.
        pull: probability that the skip set is a good one, rather than any.
        seed: seed of the random numbers, together with the index.
    """
    rng = random.Random(seed * 1000 + index)
    good = rng.random() < pull
    share = rng.uniform(0.65, 0.85) if good else rng.uniform(0.25, 0.8)
    layers = range(1, num_layers - 1)
    skip = SkipSet(
        attention=tuple(sorted(rng.sample(layers, round(share * 0.7 * len(layers))))),
        mlp=tuple(sorted(rng.sample(layers, round(share * 1.1 * len(layers))))),
    )
    took = {"seconds": rng.uniform(2.0, 4.5), "suggest_seconds": rng.uniform(0.5, 2.5) if source == "ax" else 0.0}
    if status == FAILED:
        return Trial(index=index, source=source, status=status, skip=skip, error="a draft engine could not be opened", **took)
    cost = 0.19 + 0.8 * (1 - 0.4 * len(skip.attention) / num_layers - 0.6 * len(skip.mlp) / num_layers)
    acceptance = min(0.95, (0.62 if good else 0.35) + 0.35 * cost + rng.uniform(-0.1, 0.1))
    by_kind = {
        "sampled": counts(rng, acceptance, max_draft=6, rounds=160),
        "greedy": counts(rng, min(0.97, acceptance + 0.12), max_draft=6, rounds=70),
    }
    rate = by_kind["sampled"].accepted / by_kind["sampled"].proposed
    speedup = max((1 - rate ** (k + 1)) / (1 - rate) / (k * cost + 1 + 0.065 * k) for k in range(1, 7)) + 0.06
    return Trial(
        index=index,
        source=source,
        status=status,
        skip=skip,
        stopping=ConfidenceRule(exit_threshold=0.6, max_draft=6),
        cost_ratio=cost,
        counts=by_kind,
        tokens_per_second=87.3 * speedup,
        speedup=speedup,
        timed=Timed(tokens=47, measured=88.0 * speedup * rng.uniform(0.9, 1.08), modelled=88.0 * speedup) if status == COMPLETED else None,
        **took,
    )


def trials(*, count: int = 80, num_layers: int = 24) -> list[Trial]:
    """Returns trials of warm starts, random skip sets and Ax, in this order; some are stopped, two failed."""
    made = []
    for index in range(count):
        source = WARM[index] if index < len(WARM) else ("random" if index < len(WARM) + 6 else "ax")
        status = FAILED if index in (17, 41) else COMPLETED
        one = trial(index, source, num_layers=num_layers, status=status, pull=0.25 if index < 14 else 0.3 + index / count)
        best = max((t.speedup or 0.0 for t in made), default=0.0)
        if index > 8 and one.speedup is not None and one.speedup < 0.93 * best:
            one = dataclasses.replace(one, status=STOPPED, timed=None)
        made.append(one)
    return made


def finalists(of: list[Trial], *, slow: bool = False) -> list[Finalist]:
    """Returns the best four trials as finalists; with `slow`, none is faster than autoregressive decoding."""
    best = sorted((t for t in of if t.status == COMPLETED), key=lambda t: -(t.speedup or 0.0))[:4]
    return [
        Finalist(
            trial=t.index,
            modelled=87.3 * (t.speedup or 0.0) * 0.99,
            measured=86.1 * speedup,
            plain=86.1,
            speedup=speedup,
            interval_95=(speedup - 0.035, speedup + 0.031),
            by_kind={"sampled": speedup - 0.02, "greedy": speedup + 0.06},
            acceptance_rate=0.71,
            tokens_per_round=2.3,
            prompts=24,
        )
        for at, t in enumerate(best)
        for speedup in [0.97 - 0.02 * at if slow else (t.speedup or 0.0) * (0.96 + 0.015 * (at == 1))]
    ]


def result(of: list[Trial], timed: list[Finalist]) -> Result:
    """Returns the last record of a search with these trials and finalists."""
    best = max(timed, key=lambda f: f.speedup)
    warm = max((t for t in of if t.source in WARM and t.status == COMPLETED), key=lambda t: t.speedup or 0.0)
    top = max(t.speedup or 0.0 for t in of if t.status == COMPLETED)
    return Result(
        trial=best.trial if best.speedup > 1 else None,
        speedup=best.speedup if best.speedup > 1 else None,
        by_kind=best.by_kind if best.speedup > 1 else {},
        best_warm_start=warm.index,
        gain=top / (warm.speedup or 1.0) - 1,
        remark="The search found a set that is faster than every warm start.",
        seconds={
            "texts": 31.2,
            "latency": 18.4,
            "influence": 21.5,
            "dynamic_programme": 9.1,
            "candidates": 243.0,
            "ax": 118.6,
            "finalists": 88.0,
            "total": 533.1,
        },
    )


def finished(*, num_layers: int = 24, count: int = 80, model: str = "models/some-24-layers", slow: bool = False) -> list[Record]:
    """Returns all records of a finished search; with `slow`, no draft beat autoregressive decoding."""
    tried = trials(count=count, num_layers=num_layers)
    timed = finalists(tried, slow=slow)
    first = header(num_layers=num_layers, trials=count, model=model)
    return [first, sensitivity(num_layers=num_layers), *tried, *timed, result(tried, timed)]


def hostile() -> list[Record]:
    """Returns the records of a search in which every free text is `HOSTILE`."""
    tried = [dataclasses.replace(t, source=HOSTILE if t.index % 2 else t.source, error=HOSTILE) for t in trials(count=20)]
    tried = [dataclasses.replace(t, counts={f"{HOSTILE}{k}": c for k, c in t.counts.items()}) for t in tried]
    timed = finalists(tried)
    first = dataclasses.replace(header(model=HOSTILE, trials=20), cpu=HOSTILE, onnxruntime=HOSTILE, weights={HOSTILE: 1.0})
    last = dataclasses.replace(result(tried, timed), remark=HOSTILE, seconds={HOSTILE: 1.0, "total": 2.0})
    return [first, sensitivity(), *tried, *timed, last]
