"""Whether modelled speed is real speed: ten of a search's candidates, and random ones, over its own texts, timed in turns in one run.

    python -m tests.peers.model_and_clock --artifact ARTIFACT [--candidates 10] [--texts 16] [--repeats 2] [--known-table]

ARTIFACT was searched on this machine (`sstool search --artifact`). A latency table is measured anew, as a shared machine's pace may have
changed since; with --known-table the search's own is used. The candidates lie at least 3 % apart
in modelled speed, from the best down. Each decodes the calibration texts for real, as the search scored it, with its own exit; the model
is given the same runs' counts. Prints a table on stderr and one JSON object on stdout: modelled and measured tokens per second of each,
the largest disagreement, and Kendall's tau of the search's scores against the clock.
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
RANDOM: Final = 12


def options() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--known-table", action="store_true", help="use the search's latency table")
    return parser.parse_args()


def apart(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Returns up to `count` trials, each at least 3 % slower by the model than the one before; with luck from the best to the worst."""
    chosen: list[Trial] = []
    for trial in sorted((t for t in trials if t.status == COMPLETED), key=lambda t: -(t.speedup or 0)):
        if trial.speedup and (not chosen or (chosen[-1].speedup or 0) > APART * trial.speedup):
            chosen.append(trial)
    # Of more than are wanted, the first, the last, and evenly between them.
    if len(chosen) > count:
        chosen = [chosen[round(n * (len(chosen) - 1) / (count - 1))] for n in range(count)]
    return chosen


def jobs(searched: Searched, count: int, repeats: int) -> list[DecodeJob]:
    """Returns the calibration texts as tasks, with the noise that made them."""
    texts = [cached.text for cached in searched.texts]
    kept = [texts[round(n * (len(texts) - 1) / (count - 1))] for n in range(min(count, len(texts)))]
    found = []
    for number, text in enumerate(kept):
        plainly = searched.builder.engine.settings(searched.settings.decoding(text.kind, text.seed))
        endless = dataclasses.replace(plainly, max_new_tokens=text.length, eos_token_ids=frozenset())
        found.append(DecodeJob(kind=text.kind, prompt_id=text.prompt_id, index=number, ids=text.prompt, settings=endless))
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
    """Chooses, decodes, prints."""
    given = options()
    with load(given.artifact, max_sequences=1, draft=False) as engine:
        searched = Searched(DraftBuilder(engine), given.artifact, measure=not given.known_table)
        own = [t for t in searched.log.trials if t.status == COMPLETED]
        random = list(searched.scored("random", list(random_sets(searched.builder.num_layers, RANDOM)), whole=True))
        trials = apart([*own, *random], given.builder)
        decoded = jobs(searched, given.texts, given.repeats)
        plain, *drafts = time_head_to_head(searched.builder, trials, decoded, searched.costs, tell_decoding)
        rows = [row(draft, plain, searched) for draft in drafts]
        environment = describe_environment(engine).to_json()
    tau = float(kendalltau([t.speedup for t in trials], [r["measured"] for r in rows]).statistic)
    worst = max(abs(float(str(r["modelled_over_measured"])) - 1) for r in rows)
    print(f"\n{'source':18} {'score':>7} {'c':>6} {'modelled':>9} {'measured':>9} {'model/clock':>12} {'x plain':>8}", file=sys.stderr)
    for r in rows:
        print(
            f"{r['source']:18} {r['score']:7.3f} {r['cost_ratio']:6.3f} {r['modelled']:9.2f} {r['measured']:9.2f}"
            f" {r['modelled_over_measured']:12.3f} {r['measured_speedup']:8.3f}",
            file=sys.stderr,
        )
    print(f"largest disagreement {worst:.1%}, Kendall's tau {tau:.2f}", file=sys.stderr)
    print(json.dumps({"environment": environment, "runs": len(decoded), "candidates": rows, "worst": worst, "kendall_tau": tau}))


if __name__ == "__main__":
    main()
