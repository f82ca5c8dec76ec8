"""How near the stopping rule `optimal` comes to the best policies on the same recorded drafts.

    python -m tests.measurements.stopping ARTIFACT PROMPTS.jsonl [--prompts 18] [--tokens 128]

At every position of sampled texts, the draft runs to its longest length. A policy is then replayed on these
drafts, with the costs of passes as measured on this host: it moves through each text as decoding would, and
sees of each draft token what the runtime sees. So policies are compared without noise, and without running
them. Alternatives and lookups are left out.

Policies, from what they know:
* `tuned`: the confidence threshold and draft length that are best for the other half of the texts;
* `threshold`: those that are best for these very texts;
* `optimal`: the runtime's rule, which begins with the artifact's calibration and learns while it goes;
* `best`: dynamic programming over these very drafts. It sees each token's survival, with the regression and
  each request's offset fitted to these texts, but not what will be accepted;
* `clairvoyant`: knows how many tokens will be accepted.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssruntime import GenerationConfig, load
from ssruntime.acceptance import make_acceptance
from ssruntime.backends.base import Pass
from ssruntime.config import DecodeSettings
from ssruntime.engine import Engine
from ssruntime.machine import cpu_model
from ssruntime.pass_costs.stored import known_costs
from ssruntime.planning.acceptance import UNKNOWN, Calibration, Evidence, features, fit, outcomes, sigmoid
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.planning.costs import PassCosts, RoundCosts
from ssruntime.planning.planner import Planner, RequestPlanner
from sstool.prompts import read_prompts

LONGEST: Final = 12
BINS: Final = 24
ITERATIONS: Final = 12


class Draft(NamedTuple):
    """The longest draft at one position: what is known of its tokens, and how many are accepted."""

    evidence: list[Evidence]
    accepted: int


class Text(NamedTuple):
    """The drafts at the positions of a text, and the length of its prompt."""

    drafts: list[Draft]
    prompt: int


def record(engine: Engine, prompt: str, config: GenerationConfig) -> Text:
    """Returns the longest draft at every position of a text that autoregressive decoding gives."""
    ids, settings = list(engine.encode(prompt)), engine.settings(config)
    text = engine.generate(prompt, dataclasses.replace(config, mode="plain")).token_ids
    acceptance = make_acceptance(settings, len(ids))
    slot = engine.backend.acquire(None)
    try:
        slot.prefill(ids)
        drafts = []
        for done in range(1, len(text)):
            start = len(ids) + done - 1
            found, tokens, token = list[Evidence](), list[int](), text[done - 1]
            for depth in range(min(LONGEST, len(text) - done)):
                output = slot.run(Pass("draft", (token,), start + depth))
                (token, *_), evidence, _ = acceptance.sample_draft(output, start + depth + 1, 0)
                found.append(evidence)
                tokens.append(token)
            equal = [a == b for a, b in zip(tokens, text[done:], strict=False)]
            drafts.append(Draft(found, len(list(itertools.takewhile(bool, equal)))))
            slot.run(Pass("verify", (text[done - 1],), start))
    finally:
        engine.backend.release(slot)
    return Text(drafts, len(ids))


Choose = Callable[[Draft, int, int], int]
"""Returns how many tokens to draft, from a draft, the context and the largest number allowed."""
Observe = Callable[[int, int], None]
"""Learns how many tokens were accepted and emitted."""


def replay(texts: Sequence[Text], costs: PassCosts, begin: Callable[[int], tuple[Choose, Observe]]) -> tuple[int, float]:
    """Returns the tokens and seconds of a policy, which `begin` makes for the text of each number."""
    tokens, seconds = 0, 0.0
    for number, text in enumerate(texts):
        choose, observe = begin(number)
        at = 0
        while at < len(text.drafts):
            draft, context = text.drafts[at], text.prompt + at
            # The last token of a text is the bonus token of its last round.
            count = choose(draft, context, min(LONGEST, len(text.drafts) - at - 1))
            emitted = min(draft.accepted, count) + 1
            tokens += emitted
            seconds += costs.at(context).seconds(count + 1, count)
            observe(min(draft.accepted, count), emitted)
            at += emitted
    return tokens, seconds


def _nothing(_accepted: int, _emitted: int) -> None:
    """Learns nothing."""


def _runtime(costs: PassCosts, calibration: Calibration, settings: DecodeSettings) -> Callable[[int], tuple[Choose, Observe]]:
    planner = Planner(BatchCosts(costs, learns=False), calibration, learns=True)

    def begin(_number: int) -> tuple[Choose, Observe]:
        request = RequestPlanner(planner, settings.kind, LONGEST)

        def choose(draft: Draft, context: int, limit: int) -> int:
            if limit < 1 or not request.begin(context, limit):
                return 0
            depths = range(1, limit + 1)
            return next((depth for depth in depths if not request.goes_on(depth, draft.evidence[depth - 1])), limit)

        return choose, request.observe

    return begin


def _threshold(least: float, longest: int) -> Callable[[int], tuple[Choose, Observe]]:
    def choose(draft: Draft, _context: int, limit: int) -> int:
        most = min(limit, longest)
        return next((n for n in range(1, most + 1) if draft.evidence[n - 1].confidence < least), most)

    return lambda _number: (choose, _nothing)


def _tuned(texts: Sequence[Text], costs: PassCosts) -> tuple[float, int]:
    """Returns the threshold and the draft length that are best for some texts."""

    def speed(rule: tuple[float, int]) -> float:
        tokens, seconds = replay(texts, costs, _threshold(*rule))
        return tokens / seconds

    return max(itertools.product((n / 20 for n in range(20)), (2, 3, 4, 6, 8, 12)), key=speed)


def _sum(parts: Iterable[tuple[int, float]]) -> tuple[int, float]:
    tokens, seconds = zip(*parts, strict=True)
    return sum(tokens), sum(seconds)


def _survivals(texts: Sequence[Text]) -> list[NDArray[np.float64]]:
    """Returns the survivals float64[drafts, LONGEST] of each text, by a regression fitted to these texts."""
    reached = [one for text in texts for draft in text.drafts for one in outcomes(draft.evidence, draft.accepted)]
    weights = np.array(fit(reached).weights)
    found = []
    for text in texts:
        known = [outcomes(draft.evidence, draft.accepted) for draft in text.drafts]
        odds = np.array([features(evidence) for one in known for evidence, _ in one]) @ weights
        was = np.array([accepted for one in known for _, accepted in one], dtype=np.float64)
        shift = 0.0
        for _ in range(20):
            expected = sigmoid(odds + shift)
            shift += float((was - expected).sum() / ((expected * (1 - expected)).sum() + 1.0))
        rows = np.zeros((len(text.drafts), LONGEST))
        for row, draft in zip(rows, text.drafts, strict=True):
            if draft.evidence:
                given = sigmoid(np.array([features(evidence) for evidence in draft.evidence]) @ weights + shift)
                row[: len(given)] = np.cumprod(given)
        found.append(rows)
    return found


class Table(NamedTuple):
    """Whether to draft on, by the number of tokens drafted and the bin of their survival."""

    edges: NDArray[np.float64]
    goes_on: NDArray[np.bool_]


def _solve(survivals: NDArray[np.float64], accepted: NDArray[np.int64], costs: RoundCosts, rate: float) -> Table:
    """Returns the best decisions at a rate, with the mean of these drafts for each depth and bin."""
    edges = np.array([np.quantile(survivals[:, depth], np.arange(1, BINS) / BINS) for depth in range(LONGEST)])
    goes_on = np.zeros((LONGEST + 1, BINS), dtype=np.bool_)
    value = np.minimum(accepted, LONGEST) + 1 - rate * costs.seconds(LONGEST + 1, LONGEST)
    for depth in range(LONGEST - 1, -1, -1):
        stopped = np.minimum(accepted, depth) + 1 - rate * costs.seconds(depth + 1, depth)
        bins = np.searchsorted(edges[depth - 1], survivals[:, depth - 1]) if depth else np.zeros(len(accepted), dtype=np.int64)
        better = np.bincount(bins, value - stopped, minlength=BINS) > 0
        goes_on[depth] = better
        value = np.where(better[bins], value, stopped)
    return Table(edges, goes_on)


def _best(texts: Sequence[Text], costs: PassCosts) -> tuple[int, float]:
    """Returns the tokens and seconds of the best policy by dynamic programming."""
    survivals = _survivals(texts)
    whole = np.concatenate([rows[: max(len(rows) - LONGEST, 1)] for rows in survivals])
    accepted = np.concatenate([[d.accepted for d in text.drafts[: max(len(text.drafts) - LONGEST, 1)]] for text in texts])
    usual = costs.at(sum(text.prompt + len(text.drafts) // 2 for text in texts) // len(texts))
    best, rate = (0, 1.0), 1.0 / usual.verify[0]
    for _ in range(ITERATIONS):
        table = _solve(whole, accepted, usual, rate)

        def begin(number: int, table: Table = table) -> tuple[Choose, Observe]:
            rows = {id(draft): row for draft, row in zip(texts[number].drafts, survivals[number], strict=True)}

            def choose(draft: Draft, _context: int, limit: int) -> int:
                row, count = rows[id(draft)], 0
                while count < limit:
                    place = int(np.searchsorted(table.edges[count - 1], row[count - 1])) if count else 0
                    if not table.goes_on[count][place]:
                        break
                    count += 1
                return count

            return choose, _nothing

        found = replay(texts, costs, begin)
        rate = found[0] / found[1]
        best = max(best, found, key=lambda one: one[0] / one[1])
    return best


def _clairvoyant(texts: Sequence[Text], costs: PassCosts) -> tuple[int, float]:
    """Returns the tokens and seconds of a policy that knows what will be accepted."""
    best, rate = (0, 1.0), 1.0 / costs.at(0).verify[0]
    for _ in range(ITERATIONS):

        def choose(draft: Draft, context: int, limit: int, rate: float = rate) -> int:
            now = costs.at(context)
            most = min(limit, draft.accepted)
            return max(range(most + 1), key=lambda count: count - rate * now.seconds(count + 1, count))

        found = replay(texts, costs, lambda _number, choose=choose: (choose, _nothing))  # type: ignore[misc]
        rate = found[0] / found[1]
        best = max(best, found, key=lambda one: one[0] / one[1])
    return best


def main() -> None:
    """Records, replays, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--prompts", dest="count", type=int, default=18)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    given = parser.parse_args()
    config = GenerationConfig(temperature=given.temperature, top_p=0.95, max_new_tokens=given.tokens, ignore_eos=True, mode="speculative")
    with load(given.artifact, prefix_cache=0) as engine:
        draft, backend = engine.preparer.draft, engine.backend
        assert draft is not None, "this artifact has no draft"
        slot = backend.acquire(None)
        costs = known_costs(engine.artifact, backend, draft, [slot])
        backend.release(slot)
        prompts = [str(one.prompt) for one in read_prompts(given.prompts)][: given.count]
        texts = [record(engine, prompt, dataclasses.replace(config, seed=n)) for n, prompt in enumerate(prompts)]
        settings = engine.settings(config)
    results = {"plain": replay(texts, costs, _threshold(2.0, 0))}
    results["tuned"] = _sum(replay(texts[half::2], costs, _threshold(*_tuned(texts[1 - half :: 2], costs))) for half in (0, 1))
    least, longest = _tuned(texts, costs)
    results["threshold"] = replay(texts, costs, _threshold(least, longest))
    results["optimal"] = replay(texts, costs, _runtime(costs, draft.calibration or UNKNOWN, settings))
    results["best"] = _best(texts, costs)
    results["clairvoyant"] = _clairvoyant(texts, costs)
    rates = {name: tokens / seconds for name, (tokens, seconds) in results.items()}
    sys.stdout.write(f"{cpu_model()}; {len(texts)} texts; threshold {least:.2f}, {longest} tokens\n")
    for name, rate in rates.items():
        sys.stdout.write(f"{name:12} {rate:8.1f} tokens/s {rate / rates['plain']:6.3f} x plain {rate / rates['best']:6.3f} x best\n")


if __name__ == "__main__":
    main()
