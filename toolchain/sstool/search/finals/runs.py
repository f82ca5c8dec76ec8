"""The number of runs that finalists get, and the time that a search reserves for them."""

from __future__ import annotations

import math
from typing import Final

from sstool.search.settings import SearchSettings

FINAL_TOKENS: Final = 64
"""Tokens that a finalist decodes in one run."""
_FINAL_SHARE: Final = 0.3
"""Share of the budget reserved for timing the finalists, which also get all other time that is left."""
_LIKELY_SPEEDUP: Final = 1.2
"""Speed-up of a finalist that the estimate of its time assumes."""
_MORE_DRAFTS: Final = 3
"""Drafts that are timed besides the best candidates (see `finalists.choose_finalists`)."""
LEAST_RUNS: Final = 3
"""Fewest runs of each finalist, whatever the budget: fewer would prove nothing."""
_ENOUGH_SAMPLED: Final = 24
"""Sampled runs to reach. With fewer prompts, each is sampled several times with different noise."""
_MOST_REPEATS: Final = 4
"""Most times that one prompt is sampled."""


def final_reserve(num_prompts: int, settings: SearchSettings, step: float, budget: float) -> float:
    """Returns the seconds to reserve for the finalists: for all runs, within their share of the budget.

    Time for the fewest runs is reserved in any case.

    Args:
        num_prompts: number of held-out prompts.
        settings: settings of the search.
        step: seconds of one autoregressive step (mode `plain`).
        budget: time budget in seconds; infinite for no limit.
    """
    one = _final_run_seconds(settings, step)
    sampled, greedy = (n for n, _ in settings.texts_per_prompt())
    runs = num_prompts * (sampled * sampled_repeats(num_prompts) + greedy)
    return max(LEAST_RUNS * one, min(runs * one, _FINAL_SHARE * budget))


def sampled_repeats(num_prompts: int) -> int:
    """Returns how often the finalists sample each prompt, each time with different noise."""
    return min(_MOST_REPEATS, math.ceil(_ENOUGH_SAMPLED / num_prompts))


def _final_run_seconds(settings: SearchSettings, step: float) -> float:
    """Returns the estimated seconds for one prompt, decoded by all finalists and autoregressively."""
    tokens = FINAL_TOKENS + 16  # prefill takes as long as some steps
    drafts = (settings.finalists + _MORE_DRAFTS) / _LIKELY_SPEEDUP
    return tokens * step * (1 + drafts)
