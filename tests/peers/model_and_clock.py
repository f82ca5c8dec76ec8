"""Compares modelled with measured speed, for candidates of a search and for random skip sets.

    python -m tests.peers.model_and_clock --artifact ARTIFACT [--candidates 10] [--texts 16] [--repeats 2]
        [--known-table]

ARTIFACT is an artifact that was searched on this machine (`sstool search --artifact`). A new latency table is
measured, because the speed of a shared machine may have changed since the search; --known-table uses the
search's own table.

The candidates are at least 3 % apart in modelled speed, from the best down. Each decodes calibration texts of
the search with its own stopping rule, and all take turns on each text. The speed model gets the counts of the
same runs.

Prints a table on stderr and one JSON object on stdout: the modelled and the measured tokens per second of
each candidate, the largest relative error of the model, and Kendall's tau between the search's scores and the
measured speeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scipy.stats import kendalltau

from ssruntime import load
from sstool.bench.environment import describe_environment
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.finals.head_to_head import TimedDraft, time_head_to_head
from sstool.search.log.records import COMPLETED, Trial
from sstool.search.scoring.timed_run import DecodeJob
from tests.peers.searched import Searched, random_sets, tell_decoding

APART: Final = 1.03
"""Least ratio of the modelled speeds of two candidates."""
RANDOM: Final = 12
"""Number of random skip sets."""


def options() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="artifact that was searched on this machine")
    parser.add_argument("--candidates", type=int, default=10, help="most candidates to time")
    parser.add_argument("--texts", type=int, default=16, help="calibration texts to decode")
    parser.add_argument("--repeats", type=int, default=2, help="times that each text is decoded")
    parser.add_argument("--known-table", action="store_true", help="use the search's latency table instead of a new one")
    return parser.parse_args()


def apart(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Returns up to `count` completed trials, from the best to the worst.

    Each is at least 3 % slower than the one before it, in modelled speed.
    """
    chosen: list[Trial] = []
    for trial in sorted((t for t in trials if t.status == COMPLETED), key=lambda t: -(t.speedup or 0)):
        if trial.speedup and (not chosen or (chosen[-1].speedup or 0) > APART * trial.speedup):
            chosen.append(trial)
    # Of too many, keep the first, the last, and evenly spaced ones between them.
    if len(chosen) > count:
        chosen = [chosen[round(n * (len(chosen) - 1) / (count - 1))] for n in range(count)]
    return chosen


def jobs(searched: Searched, count: int, repeats: int) -> list[DecodeJob]:
    """Returns decode jobs for up to `count` calibration texts, with the seeds of the texts."""
    texts = [cached.text for cached in searched.texts]
    kept = [texts[round(n * (len(texts) - 1) / (count - 1))] for n in range(min(count, len(texts)))]
    found = []
    for number, text in enumerate(kept):
        settings = searched.builder.engine.settings(searched.settings.decoding(text.kind, text.seed))
        endless = dataclasses.replace(settings, max_new_tokens=text.length, eos_token_ids=frozenset())
        found.append(DecodeJob(kind=text.kind, index=number, ids=text.prompt, settings=endless))
    return found * repeats


def row(draft: TimedDraft, plain: TimedDraft, searched: Searched) -> dict[str, object]:
    """Returns one candidate's figures."""
    assert draft.trial is not None
    modelled, measured = 1 / draft.modelled_per_token(searched.shares), 1 / draft.seconds_per_token(searched.shares)
    return {
        "source": draft.trial.source,
        "cost_ratio": draft.trial.cost_ratio,
        "score": draft.trial.speedup,
        "modelled": modelled,
        "measured": measured,
        "modelled_over_measured": modelled / measured,
        "measured_speedup": measured * plain.seconds_per_token(searched.shares),
    }


def main() -> None:
    """Chooses the candidates, times them and prints the results."""
    given = options()
    with load(given.artifact, max_sequences=1, draft=False, prefix_cache=0) as engine:
        searched = Searched(DraftBuilder(engine), given.artifact, measure=not given.known_table)
        own = [t for t in searched.log.trials if t.status == COMPLETED]
        random = list(searched.scored("random", list(random_sets(searched.builder.num_layers, RANDOM)), whole=True))
        trials = apart([*own, *random], given.candidates)
        decoded = jobs(searched, given.texts, given.repeats)
        plain, *drafts = time_head_to_head(searched.builder, trials, decoded, searched.costs, tell_decoding)
        rows = [row(draft, plain, searched) for draft in drafts]
        environment = describe_environment(engine).to_json()
    tau = float(kendalltau([t.speedup for t in trials], [r["measured"] for r in rows]).statistic)
    worst = max(abs(float(str(r["modelled_over_measured"])) - 1) for r in rows)
    print(f"\n{'source':18} {'score':>7} {'c':>6} {'modelled':>9} {'measured':>9} {'model/measured':>14} {'x plain':>8}", file=sys.stderr)
    for r in rows:
        print(
            f"{r['source']:18} {r['score']:7.3f} {r['cost_ratio']:6.3f} {r['modelled']:9.2f} {r['measured']:9.2f}"
            f" {r['modelled_over_measured']:14.3f} {r['measured_speedup']:8.3f}",
            file=sys.stderr,
        )
    print(f"largest error of the model {worst:.1%}, Kendall's tau {tau:.2f}", file=sys.stderr)
    print(json.dumps({"environment": environment, "runs": len(decoded), "candidates": rows, "worst": worst, "kendall_tau": tau}))


if __name__ == "__main__":
    main()
