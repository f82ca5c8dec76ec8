"""How much calibration text a search can afford: in time, as parts of its budget, and in memory, for the texts' caches.

Large models decode slowly and keep megabytes for every position, and a user's file may hold any number of prompts. What cannot be
afforded is left out evenly, and said. Small models are given longer texts: with few tokens the best of many candidates is the luckiest,
and on a model of 13 million parameters the sets found with 80 and 96 tokens a prompt were 3 and 4 % faster on other text than with 32.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ssruntime.errors import ConfigError
from sstool.prompts import PromptRecord
from sstool.search.log.records import Header
from sstool.search.settings import SearchSettings
from sstool.search.texts.make import FEWEST_TOKENS, GREEDY, GREEDY_EVERY, SAMPLED, TAIL, split_prompts, tokens_of, weight_of

logger = logging.getLogger(__name__)

FINAL_TOKENS: Final = 64
"""Tokens of a finalist's run."""

_TEXT_SHARE: Final = 0.15
"""Of the budget, for writing the texts."""
_FINAL_SHARE: Final = 0.3
"""Of the budget, kept for timing the finalists; they take what else is left, too."""
_MEMORY_SHARE: Final = 0.5
"""Of the memory there is, for the texts' caches."""
_TRIALS_SHARE: Final = 0.45
"""Of the budget, for trying candidates: neither more prompts nor longer texts may take more."""
_TRIAL_HOST: Final = 0.0008
_TRIAL_STEPS: Final = 0.2
"""Seconds and plain steps that a candidate's run takes for a token of the texts: many stop early, and drafts are not verified."""
_USUAL_TRIALS: Final = 80
"""Of more the last are worth less than text: whoever asks for thousands expects the budget to end the search."""
_MOST_TOKENS: Final = 96
_TOKENS_STEP: Final = 8
_LEAST_SEARCH: Final = 4
_PROMPT_TOKENS_A_STEP: Final = 8
"""Tokens of a prompt that are read in the time of a step."""
_LATENCY_STEPS: Final = 720
"""Steps' worth of time that the latency table takes at least; of a small model it takes more, in the time that it is allowed."""
_LIKELY_SPEEDUP: Final = 1.2
_MORE_DRAFTS: Final = 2
"""Beside the best, the best warm start and the artifact's own draft are timed."""
LEAST_RUNS: Final = 3
"""Runs that finalists have in any case: less says nothing."""
_ENOUGH_SAMPLED: Final = 24
"""Sampled runs wanted: where there are fewer prompts, each is sampled more than once, with other noise."""
_MOST_REPEATS: Final = 4
_FEW_SEARCH: Final = 16
"""Prompts of ours fewer than which are worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What there is to spend.

    Attributes:
        step: seconds of a plain step.
        budget: seconds; infinite for no limit.
        memory: bytes that may be taken; None if unknown.
        position_bytes: of the cache of one position.
        spent: seconds of the budget that are gone. What is chosen does not depend on them, only whether there is time for it.
    """

    step: float
    budget: float
    memory: int | None
    position_bytes: int
    spent: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """The prompts of one search.

    Attributes:
        search: to try candidates on.
        final: to time the finalists on.
        sampled_tokens: tokens of each sampled text.
    """

    search: list[PromptRecord]
    final: list[PromptRecord]
    sampled_tokens: int

    def seconds(self, settings: SearchSettings, means: Means, length: float) -> float:
        """Returns what the texts, the latency table and the finalists take together at least, about, with prompts of that mean length."""
        given = dataclasses.replace(settings, sampled_tokens=self.sampled_tokens)
        texts = len(self.search) * _text_steps(given, length) * means.step
        return texts + _LATENCY_STEPS * means.step + final_reserve(len(self.final), settings, means.step, means.budget)


def allot(prompts: Sequence[PromptRecord], tokens: Sequence[int], settings: SearchSettings, means: Means) -> Allotment:
    """Returns the prompts to search with, fewer than there are where too dear, the texts' length, and the prompts to time finalists on.

    Args:
        prompts: usable ones.
        tokens: the length of each.
        settings: how long the continuations are, and how many finalists there will be.
        means: what there is to spend.

    Raises:
        ConfigError: if not even the fewest fit the budget.
    """
    search, final = split_prompts(prompts)
    length = sum(tokens) / len(tokens)
    chosen = _evenly(search, _most_prompts(settings, length, means), _LEAST_SEARCH)
    found = Allotment(
        search=chosen,
        final=final,
        sampled_tokens=_sampled_tokens(len(chosen), length, settings, means),
    )
    needed = found.seconds(settings, means, length)
    if needed > means.budget - means.spent:
        raise ConfigError(
            f"the budget of {settings.budget} is too small for one trial: at {1000 * means.step:.3g} ms a step, the texts, the latency"
            f" table and the finalists take {needed:.0f} s",
            f"give at least {math.ceil(2 * needed)}s",
        )
    if len(found.search) < len(search):
        # Whoever brings prompts wants to know; of ours there are more than small models need.
        is_news = settings.calibration is not None or len(found.search) < _FEW_SEARCH
        logger.log(
            logging.WARNING if is_news else logging.INFO,
            "calibrating with %d of %d prompts: with the texts of all, the search does not fit the budget or the memory",
            len(found.search),
            len(search),
        )
    return found


def repeat_allotment(prompts: Sequence[PromptRecord], header: Header) -> Allotment:
    """Returns what an earlier run took of the same prompts."""
    search, final = split_prompts(prompts)
    return Allotment(
        search=_evenly(search, header.search_prompts, 1),
        final=final,
        sampled_tokens=header.sampled_tokens,
    )


def final_reserve(num_prompts: int, settings: SearchSettings, step: float, budget: float) -> float:
    """Returns the seconds to keep for timing the finalists: what all runs take, or the finalists' share of the budget."""
    one = _final_run_seconds(settings, step)
    sampled, greedy = (n for n, _ in _texts(settings))
    runs = num_prompts * (sampled * sampled_repeats(num_prompts) + greedy)
    return max(LEAST_RUNS * one, min(runs * one, _FINAL_SHARE * budget))


def sampled_repeats(num_prompts: int) -> int:
    """Returns how often finalists sample each prompt, every time with other noise."""
    return min(_MOST_REPEATS, math.ceil(_ENOUGH_SAMPLED / num_prompts))


def _final_run_seconds(settings: SearchSettings, step: float) -> float:
    """Returns what one run of a prompt by every finalist and by plain decoding will take."""
    tokens = FINAL_TOKENS + 16  # reading a prompt takes some steps' worth, too
    drafts = (settings.finalists + _MORE_DRAFTS) / _LIKELY_SPEEDUP
    return tokens * step * (1 + drafts)


def _most_prompts(settings: SearchSettings, length: float, means: Means) -> float:
    """Returns how many prompts' texts can be written, kept, and tried candidates on."""
    to_write = means.budget * _TEXT_SHARE / (_text_steps(settings, length) * means.step)
    to_try = means.budget * _TRIALS_SHARE / (min(settings.trials, _USUAL_TRIALS) * _trial_seconds(settings, means))
    in_time = min(to_write, to_try)
    if means.memory is None:
        return in_time
    return min(in_time, means.memory * _MEMORY_SHARE / (_positions(settings, length) * means.position_bytes))


def _trial_seconds(settings: SearchSettings, means: Means) -> float:
    """Returns what the texts of one prompt take of a candidate's run."""
    return sum(n * tokens for n, tokens in _texts(settings)) * (_TRIAL_HOST + _TRIAL_STEPS * means.step)


def _sampled_tokens(num_prompts: int, length: float, settings: SearchSettings, means: Means) -> int:
    """Returns the tokens of each sampled text: what the settings say, or as many as can be afforded for so many prompts."""
    if settings.sampled_tokens is not None:
        return settings.sampled_tokens
    for tokens in range(_MOST_TOKENS, FEWEST_TOKENS, -_TOKENS_STEP):
        if num_prompts <= _most_prompts(dataclasses.replace(settings, sampled_tokens=tokens), length, means):
            return tokens
    return FEWEST_TOKENS


def _text_steps(settings: SearchSettings, length: float) -> float:
    """Returns the steps' worth of a prompt's texts."""
    return sum(n * (tokens + TAIL + length / _PROMPT_TOKENS_A_STEP) for n, tokens in _texts(settings))


def _positions(settings: SearchSettings, length: float) -> float:
    return sum(n * (tokens + TAIL + length) for n, tokens in _texts(settings))


def _texts(settings: SearchSettings) -> list[tuple[float, int]]:
    """Returns how many texts a prompt has of each kind, and their tokens."""
    sampled = 1.0 if weight_of(settings, SAMPLED) else 0.0
    greedy = (1 / GREEDY_EVERY if sampled else 1.0) if weight_of(settings, GREEDY) else 0.0
    return [(sampled, tokens_of(settings, SAMPLED)), (greedy, tokens_of(settings, GREEDY))]


def _evenly(prompts: list[PromptRecord], most: float, least: int) -> list[PromptRecord]:
    count = min(len(prompts), max(least, int(min(most, len(prompts)))))
    return [prompts[n * len(prompts) // count] for n in range(count)]
