"""How many runs the finalists get, and the time that a search keeps for them."""

from __future__ import annotations

import math
from typing import Final

from sstool.search.settings import SearchSettings

FINAL_TOKENS: Final = 64
"""Tokens of a finalist's run."""
_FINAL_SHARE: Final = 0.3
"""Of the budget, kept for timing the finalists; they take what else is left, too."""
_LIKELY_SPEEDUP: Final = 1.2
_MORE_DRAFTS: Final = 2
"""Beside the best, the best warm start and the artifact's own draft are timed."""
LEAST_RUNS: Final = 3
"""Runs that finalists have in any case: less says nothing."""
_ENOUGH_SAMPLED: Final = 24
"""Sampled runs wanted: where there are fewer prompts, each is sampled more than once, with other noise."""
_MOST_REPEATS: Final = 4


def final_reserve(num_prompts: int, settings: SearchSettings, step: float, budget: float) -> float:
    """Returns the seconds to keep for timing the finalists: what all runs take, or the finalists' share of the budget."""
    one = _final_run_seconds(settings, step)
    sampled, greedy = (n for n, _ in settings.texts_per_prompt())
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
