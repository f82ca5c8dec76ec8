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
from sstool.search.finals.runs import final_reserve
from sstool.search.log.records import Header
from sstool.search.settings import FEWEST_TOKENS, SearchSettings
from sstool.search.texts.make import TAIL, split_prompts

logger = logging.getLogger(__name__)


_TEXT_SHARE: Final = 0.15
"""Of the budget, for writing the texts."""
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
_FEW_SEARCH: Final = 16
"""Prompts of ours fewer than which are worth a warning."""


@dataclass(frozen=True, kw_only=True)
class Resources:
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
class CalibrationPlan:
    """The prompts of one search.

    Attributes:
        search: to try candidates on.
        final: to time the finalists on.
        sampled_tokens: tokens of each sampled text.
    """

    search: list[PromptRecord]
    final: list[PromptRecord]
    sampled_tokens: int

    def seconds(self, settings: SearchSettings, resources: Resources, length: float) -> float:
        """Returns what the texts, the latency table and the finalists take together at least, about, with prompts of that mean length."""
        given = dataclasses.replace(settings, sampled_tokens=self.sampled_tokens)
        texts = len(self.search) * _text_steps(given, length) * resources.step
        return texts + _LATENCY_STEPS * resources.step + final_reserve(len(self.final), settings, resources.step, resources.budget)


def plan_calibration(
    prompts: Sequence[PromptRecord], tokens: Sequence[int], settings: SearchSettings, resources: Resources
) -> CalibrationPlan:
    """Returns the prompts to search with, fewer than there are where too dear, the texts' length, and the prompts to time finalists on.

    Args:
        prompts: usable ones.
        tokens: the length of each.
        settings: how long the continuations are, and how many finalists there will be.
        resources: what there is to spend.

    Raises:
        ConfigError: if not even the fewest fit the budget.
    """
    search, final = split_prompts(prompts)
    length = sum(tokens) / len(tokens)
    chosen = _evenly(search, _most_prompts(settings, length, resources), _LEAST_SEARCH)
    found = CalibrationPlan(
        search=chosen,
        final=final,
        sampled_tokens=_sampled_tokens(len(chosen), length, settings, resources),
    )
    needed = found.seconds(settings, resources, length)
    if needed > resources.budget - resources.spent:
        raise ConfigError(
            f"the budget of {settings.budget} is too small for one trial: at {1000 * resources.step:.3g} ms a step, the texts, the latency"
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


def repeat_plan(prompts: Sequence[PromptRecord], header: Header) -> CalibrationPlan:
    """Returns what an earlier run took of the same prompts."""
    search, final = split_prompts(prompts)
    return CalibrationPlan(
        search=_evenly(search, header.search_prompts, 1),
        final=final,
        sampled_tokens=header.sampled_tokens,
    )


def _most_prompts(settings: SearchSettings, length: float, resources: Resources) -> float:
    """Returns how many prompts' texts can be written, kept, and tried candidates on."""
    to_write = resources.budget * _TEXT_SHARE / (_text_steps(settings, length) * resources.step)
    to_try = resources.budget * _TRIALS_SHARE / (min(settings.trials, _USUAL_TRIALS) * _trial_seconds(settings, resources))
    in_time = min(to_write, to_try)
    if resources.memory is None:
        return in_time
    return min(in_time, resources.memory * _MEMORY_SHARE / (_positions(settings, length) * resources.position_bytes))


def _trial_seconds(settings: SearchSettings, resources: Resources) -> float:
    """Returns what the texts of one prompt take of a candidate's run."""
    return sum(n * tokens for n, tokens in settings.texts_per_prompt()) * (_TRIAL_HOST + _TRIAL_STEPS * resources.step)


def _sampled_tokens(num_prompts: int, length: float, settings: SearchSettings, resources: Resources) -> int:
    """Returns the tokens of each sampled text: what the settings say, or as many as can be afforded for so many prompts."""
    if settings.sampled_tokens is not None:
        return settings.sampled_tokens
    for tokens in range(_MOST_TOKENS, FEWEST_TOKENS, -_TOKENS_STEP):
        if num_prompts <= _most_prompts(dataclasses.replace(settings, sampled_tokens=tokens), length, resources):
            return tokens
    return FEWEST_TOKENS


def _text_steps(settings: SearchSettings, length: float) -> float:
    """Returns the steps' worth of a prompt's texts."""
    return sum(n * (tokens + TAIL + length / _PROMPT_TOKENS_A_STEP) for n, tokens in settings.texts_per_prompt())


def _positions(settings: SearchSettings, length: float) -> float:
    return sum(n * (tokens + TAIL + length) for n, tokens in settings.texts_per_prompt())


def _evenly(prompts: list[PromptRecord], most: float, least: int) -> list[PromptRecord]:
    count = min(len(prompts), max(least, int(min(most, len(prompts)))))
    return [prompts[n * len(prompts) // count] for n in range(count)]
