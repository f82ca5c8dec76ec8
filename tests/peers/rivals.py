"""Compares the winner of a search with simpler ways to choose a skip set, on held-out prompts.

    python -m tests.peers.rivals --artifact ARTIFACT --prompts FILE.jsonl... [--first 16] [--tokens 128]
        [--seeds 3] [--example SET.json]

ARTIFACT is an artifact that was searched on this machine (`sstool search --artifact`); its latency table is
used. Every rival is the best skip set of its kind on the calibration texts of the search, with its own tuned
threshold and draft length. The kinds are:

* contiguous blocks of whole layers;
* every other sublayer;
* random skip sets, as many as the search had trials;
* cuts of the leave-one-out order;
* points of the dynamic programme over cosine similarity.

The winner and the rivals then take turns on each held-out prompt. Prints a table on stderr and one JSON
object on stdout. For each rival they have its speed-up over autoregressive decoding (mode `plain`) and the
winner's speed-up over it, with paired 95 % intervals, and the ratio of modelled to measured speed.

With `--example-saw N`, the winner is also compared with the example on only the prompts that were not used to
choose the example.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ssruntime import load
from ssruntime.artifact import SkipSet
from ssruntime.errors import PromptError
from ssruntime.sampling.noise import prompt_seed
from sstool.bench.environment import describe_environment
from sstool.bench.summary import weighted_interval
from sstool.prompts import read_prompts
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, bits_of
from sstool.search.finals.head_to_head import TimedDraft, time_head_to_head
from sstool.search.log.records import Trial
from sstool.search.scoring.timed_run import DecodeJob
from sstool.search.settings import KINDS, SAMPLED, SearchSettings
from sstool.search.sources.dynamic_programme import cosine_front
from sstool.search.sources.leave_one_out import cut, measure_sensitivity, sensitivity_order
from sstool.search.sources.patterns import contiguous_block, every_other
from tests.peers.searched import Searched, random_sets, tell_decoding

_FILE_STRIDE = 1000
"""The prompts of each file are numbered from a multiple of this."""


def options() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, required=True, help="artifact that was searched on this machine")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="files of held-out prompts, JSON Lines")
    parser.add_argument("--first", type=int, default=16, help="number of first prompts of each file to decode")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens to decode after each prompt")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds to decode each prompt with")
    parser.add_argument("--greedy", action="store_true", help="decode greedily instead of sampling")
    parser.add_argument("--example", type=Path, help="skip-set file of one more rival; its stopping rule is tuned like the others'")
    parser.add_argument("--example-saw", type=int, default=0, help="number of first prompts of each file with which the example was chosen")
    given = parser.parse_args()
    if not 0 <= given.example_saw < given.first:
        parser.error(f"--example-saw must be 0 or more and less than --first ({given.first}), found {given.example_saw}")
    return given


def chosen(searched: Searched, example: Path | None) -> Iterator[Trial | None]:
    """Yields the best trial of every kind of rival; None if a kind has none."""
    num_layers = searched.builder.num_layers
    yield searched.best("block", list(_blocks(num_layers)))
    yield searched.best("every-other", list(_patterns(num_layers)))
    yield searched.best("random", list(random_sets(num_layers, len(searched.log.trials))))
    yield searched.best("leave-one-out", _cuts(searched))
    yield searched.best("dynamic-programme", _front(searched))
    if example is not None:
        data = json.loads(example.read_text(encoding="utf-8"))
        skip = SkipSet(attention=tuple(data["attention"]), mlp=tuple(data["mlp"]))
        yield searched.best("example", [bits_of(skip, num_layers)])


def _cuts(searched: Searched) -> list[Bits]:
    sensitivity = searched.log.sensitivity
    if sensitivity is None:
        sensitivity = measure_sensitivity(searched.builder, searched.texts, lambda _done, _total: None)
    order = sensitivity_order(sensitivity)
    return [cut(order, part) for part in np.linspace(0.2, 0.9, 21)]


def _front(searched: Searched) -> list[Bits]:
    text = searched.texts[0].text
    front = cosine_front(searched.builder, text, searched.costs.shares(len(text.prompt)), lambda _done, _total: None)
    return [point.bits for point in front]


def _blocks(num_layers: int) -> Iterator[Bits]:
    """Yields 39 blocks: thirteen lengths at three places each, with repetitions in small models."""
    for part in np.linspace(0.15, 0.75, 13):
        length = max(1, round(float(part) * num_layers))
        for first in np.linspace(1, max(1, num_layers - length - 1), 3):
            yield contiguous_block(num_layers, round(float(first)), length)


def _patterns(num_layers: int) -> Iterator[Bits]:
    """Yields every other, every third and two of three sublayers, at every offset, of MLPs or both kinds."""
    yield from every_other(num_layers)
    none = (0,) * num_layers
    for step, keeps in ((2, 1), (3, 1), (3, 2)):
        for offset in range(step):
            row = tuple(int((n + offset) % step >= keeps) for n in range(num_layers))
            yield (*none, *row)
            yield (*row, *row)


def held_out(builder: DraftBuilder, settings: SearchSettings, given: argparse.Namespace) -> list[DecodeJob]:
    """Returns the decode jobs: the first prompts of each file, unless they are too long, with every seed."""
    jobs = []
    for number, file in enumerate(given.prompts):
        for prompt in read_prompts(file)[: given.first]:
            try:
                ids = tuple(builder.engine.encode(prompt.prompt))
            except PromptError as err:
                print(f"{prompt.id} is left out: {err.message}", file=sys.stderr)
                continue
            for seed in range(given.seeds):
                kind = KINDS[1] if given.greedy else SAMPLED
                decoding = builder.engine.settings(settings.decoding(kind, prompt_seed(seed, prompt.index)))
                complete = dataclasses.replace(decoding, max_new_tokens=given.tokens)
                jobs.append(DecodeJob(kind=SAMPLED, index=_FILE_STRIDE * number + prompt.index, ids=ids, settings=complete))
    return jobs


def without_first(draft: TimedDraft, count: int) -> TimedDraft:
    """Returns a draft's runs, without those of the first `count` prompts of each file."""
    samples = {kind: [s for s in runs if s.index % _FILE_STRIDE >= count] for kind, runs in draft.samples.items()}
    return dataclasses.replace(draft, samples=samples)


def row(draft: TimedDraft, plain: TimedDraft, winner: TimedDraft) -> dict[str, object]:
    """Returns the figures of one draft."""
    shares = {SAMPLED: 1.0}
    assert draft.trial is not None
    speed, base = 1 / draft.seconds_per_token(shares), 1 / plain.seconds_per_token(shares)
    return {
        "name": draft.trial.source,
        "skipped": len(draft.trial.skip.attention) + len(draft.trial.skip.mlp),
        "cost_ratio": draft.trial.cost_ratio,
        "tokens_per_second": speed,
        "ratio_to_plain": speed / base,
        "ratio_to_plain_95": weighted_interval(plain.samples, draft.samples, shares),
        **lead(winner, draft),
        "modelled_over_measured": draft.seconds_per_token(shares) / draft.modelled_per_token(shares),
    }


def lead(winner: TimedDraft, draft: TimedDraft) -> dict[str, object]:
    """Returns the ratio of the winner's speed to a draft's, with its interval."""
    shares = {SAMPLED: 1.0}
    return {
        "winner_over_this": draft.seconds_per_token(shares) / winner.seconds_per_token(shares),
        "winner_over_this_95": weighted_interval(draft.samples, winner.samples, shares),
    }


def main() -> None:
    """Chooses the rivals, times all drafts and prints the results."""
    given = options()
    with load(given.artifact, max_sequences=1, draft=False, prefix_cache=0) as engine:
        builder = DraftBuilder(engine)
        searched = Searched(builder, given.artifact)
        result = searched.log.result
        if result is None or result.trial is None:
            sys.exit(f"the search of {given.artifact} has no winner")
        trials = [next(t for t in searched.log.trials if t.index == result.trial)]
        trials = [dataclasses.replace(trials[0], source="searched"), *(t for t in chosen(searched, given.example) if t is not None)]
        jobs = held_out(builder, searched.settings, given)
        plain, *drafts = time_head_to_head(builder, trials, jobs, searched.costs, tell_decoding)
        rows = [row(draft, plain, drafts[0]) for draft in drafts]
        report: dict[str, object] = {
            "environment": describe_environment(engine).to_json(),
            "runs": len(jobs),
            "tokens": given.tokens,
            "rivals": rows,
        }
        print(f"\n{'':18} {'x plain':>8} {'95 %':>14} {'searched / this':>16} {'95 %':>14} {'model / measured':>16}", file=sys.stderr)
        for r in rows:
            print(
                f"{r['name']:18} {r['ratio_to_plain']:8.3f} {_interval(r['ratio_to_plain_95']):>14} {r['winner_over_this']:16.3f}"
                f" {_interval(r['winner_over_this_95']):>14} {r['modelled_over_measured']:16.3f}",
                file=sys.stderr,
            )
        spread = statistics.median(float(str(r["modelled_over_measured"])) for r in rows)
        example = next((d for d in drafts if d.trial is not None and d.trial.source == "example"), None)
        if example is not None and given.example_saw > 0:
            example, winner = without_first(example, given.example_saw), without_first(drafts[0], given.example_saw)
            unseen = lead(winner, example)
            report["example_unseen"] = {"runs": len(example.samples[SAMPLED]), **unseen}
            print(
                f"{'example, unseen':18} {'':8} {'':>14} {unseen['winner_over_this']:16.3f} {_interval(unseen['winner_over_this_95']):>14}",
                file=sys.stderr,
            )
        print(
            f"autoregressive decoding {1 / plain.seconds_per_token({SAMPLED: 1.0}):.1f} tokens/s; modelled / measured, median {spread:.3f}",
            file=sys.stderr,
        )
        print(json.dumps(report))


def _interval(value: object) -> str:
    return f"{value[0]:.2f} to {value[1]:.2f}" if isinstance(value, tuple) else "-"


if __name__ == "__main__":
    main()
