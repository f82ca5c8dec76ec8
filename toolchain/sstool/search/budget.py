"""The calibration plan of a search: how many prompts, and how much text of each, its time and memory afford.

Large models decode slowly and need megabytes of KV cache per position, and a user's file may hold any number
of prompts. Prompts beyond the limits are left out at even intervals, with a log message. Small models get
longer texts: with few tokens, the best-scoring candidate of many is mostly the luckiest one.
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
"""Share of the budget for making the calibration texts."""
_MEMORY_SHARE: Final = 0.5
"""Share of the available memory for the texts' KV caches."""
_TRIALS_SHARE: Final = 0.45
"""Share of the budget for trying candidates: it limits both the number of prompts and the length of texts."""
_TRIAL_HOST: Final = 0.0008
_TRIAL_STEPS: Final = 0.2
"""Estimated time of a candidate's run per token of the texts: seconds of host work, and autoregressive steps.

It is less than one step, because many candidates stop early and drafts are not verified."""
_USUAL_TRIALS: Final = 80
"""Most trials that the plan leaves time for. Further trials are worth less than more text, and a user who
asks for thousands expects the budget to end the search."""
_MOST_TOKENS: Final = 96
_TOKENS_STEP: Final = 8
_LEAST_SEARCH: Final = 4
_PROMPT_TOKENS_A_STEP: Final = 8
"""Prompt tokens that prefill reads in the time of one autoregressive step."""
_LATENCY_STEPS: Final = 720
"""Shortest time that measuring the latency table takes, in autoregressive steps. Small models are measured
for more steps, within a time limit."""
_OWN_WEIGHTS_FACTOR: Final = 1.5
"""The same with drafts over own weights, relative to that without."""
_FEW_SEARCH: Final = 16
"""If fewer of the shipped prompts than this are used, a warning says so."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The time and memory of a search.

    Attributes:
        step: seconds of one autoregressive step (mode `plain`).
        budget: time budget in seconds; infinite for no limit.
        memory: available memory in bytes; None if unknown.
        position_bytes: bytes of KV cache per position.
        spent: seconds of the budget already used. The plan does not depend on them; they only decide whether
            there is time left for it.
        has_own_weights: whether drafts may have int4 weights, whose costs are measured too.
    """

    step: float
    budget: float
    memory: int | None
    position_bytes: int
    spent: float = 0.0
    has_own_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """The prompts of one search, and the length of its texts.

    Attributes:
        search: prompts whose texts candidates are scored on.
        final: held-out prompts that finalists are timed on.
        sampled_tokens: length of each sampled text, in tokens.
    """

    search: list[PromptRecord]
    final: list[PromptRecord]
    sampled_tokens: int

    def seconds(self, settings: SearchSettings, resources: Resources, length: float) -> float:
        """Returns the estimated least time, in seconds, of the texts, the latency table and the finalists.

        Args:
            settings: settings of the search.
            resources: time and memory of the search.
            length: mean length of the prompts, in tokens.
        """
        given = dataclasses.replace(settings, sampled_tokens=self.sampled_tokens)
        texts = len(self.search) * _text_steps(given, length) * resources.step
        latency = _LATENCY_STEPS * (_OWN_WEIGHTS_FACTOR if resources.has_own_weights else 1.0) * resources.step
        return texts + latency + final_reserve(len(self.final), settings, resources.step, resources.budget)


def plan_calibration(
    prompts: Sequence[PromptRecord], tokens: Sequence[int], settings: SearchSettings, resources: Resources
) -> CalibrationPlan:
    """Returns the calibration plan: as many prompts as time and memory allow, and the length of their texts.

    Args:
        prompts: usable prompts.
        tokens: length of each prompt, in tokens.
        settings: settings of the search.
        resources: time and memory of the search.

    Raises:
        ConfigError: if not even the smallest plan fits the budget.
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
            f"the budget of {settings.budget} is too small for one trial: at {1000 * resources.step:.3g} ms a step, the calibration"
            f" texts, the latency table and the finalists take {needed:.0f} s",
            f"give at least {math.ceil(2 * needed)}s",
        )
    if len(found.search) < len(search):
        # Users want to know what happens to their own prompts. Of the shipped prompts, some can be spared.
        is_news = settings.calibration is not None or len(found.search) < _FEW_SEARCH
        logger.log(
            logging.WARNING if is_news else logging.INFO,
            "calibrating with %d of %d prompts: the texts of all of them do not fit the time budget or the memory",
            len(found.search),
            len(search),
        )
    return found


def repeat_plan(prompts: Sequence[PromptRecord], header: Header) -> CalibrationPlan:
    """Returns the plan of an earlier run over the same prompts, from the header of its log."""
    search, final = split_prompts(prompts)
    return CalibrationPlan(
        search=_evenly(search, header.search_prompts, 1),
        final=final,
        sampled_tokens=header.sampled_tokens,
    )


def _most_prompts(settings: SearchSettings, length: float, resources: Resources) -> float:
    """Returns for how many prompts texts can be made, kept in memory and used to score candidates."""
    to_write = resources.budget * _TEXT_SHARE / (_text_steps(settings, length) * resources.step)
    to_try = resources.budget * _TRIALS_SHARE / (min(settings.trials, _USUAL_TRIALS) * _trial_seconds(settings, resources))
    in_time = min(to_write, to_try)
    if resources.memory is None:
        return in_time
    return min(in_time, resources.memory * _MEMORY_SHARE / (_positions(settings, length) * resources.position_bytes))


def _trial_seconds(settings: SearchSettings, resources: Resources) -> float:
    """Returns the seconds that a candidate's run takes for the texts of one prompt."""
    return sum(n * tokens for n, tokens in settings.texts_per_prompt()) * (_TRIAL_HOST + _TRIAL_STEPS * resources.step)


def _sampled_tokens(num_prompts: int, length: float, settings: SearchSettings, resources: Resources) -> int:
    """Returns the length of each sampled text: that of the settings, or the longest affordable one."""
    if settings.sampled_tokens is not None:
        return settings.sampled_tokens
    for tokens in range(_MOST_TOKENS, FEWEST_TOKENS, -_TOKENS_STEP):
        if num_prompts <= _most_prompts(dataclasses.replace(settings, sampled_tokens=tokens), length, resources):
            return tokens
    return FEWEST_TOKENS


def _text_steps(settings: SearchSettings, length: float) -> float:
    """Returns the time of making one prompt's texts, in autoregressive steps."""
    return sum(n * (tokens + TAIL + length / _PROMPT_TOKENS_A_STEP) for n, tokens in settings.texts_per_prompt())


def _positions(settings: SearchSettings, length: float) -> float:
    """Returns the positions of KV cache that one prompt's texts take."""
    return sum(n * (tokens + TAIL + length) for n, tokens in settings.texts_per_prompt())


def _evenly(prompts: list[PromptRecord], most: float, least: int) -> list[PromptRecord]:
    """Returns up to `most` prompts at even intervals; never fewer than `least` unless there are fewer."""
    count = min(len(prompts), max(least, int(min(most, len(prompts)))))
    return [prompts[n * len(prompts) // count] for n in range(count)]
