"""A search's settings: every value that a recipe or a flag may set is checked before a search begins."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.checks import check_float, check_int
from ssruntime.config import GenerationConfig
from ssruntime.errors import ConfigError

DEFAULT_CALIBRATION: Final = Path(__file__).with_name("calibration.jsonl")
"""The prompts of a search that is given none: 64 of many kinds, so ordered that either half, or any part of one, is of many kinds too."""

SAMPLED: Final = "sampled"
GREEDY: Final = "greedy"
KINDS: Final = (SAMPLED, GREEDY)
"""The kinds of calibration text."""
FEWEST_TOKENS: Final = 32
"""Tokens of a sampled continuation where the budget affords no more."""
GREEDY_EVERY: Final = 3
"""Of so many prompts one is also continued greedily: greedy text repeats itself, so fewer prompts tell as much."""

_BUDGET_HINT: Final = "write a time above 0 such as 90s, 10m or 1.5h; a number alone is seconds"
_BUDGET: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([smh]?)")
_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search a skip set: the keys of a recipe's `search` section.

    Attributes:
        trials: most candidates to try, 1 to 10000. The search ends with these or with `budget`, whichever comes first.
        budget: most time to take: `90s`, `10m`, `1.5h`, or a number of seconds; None for no limit but `trials`.
        calibration: JSON Lines file of `{"prompt": ...}`, relative to the recipe; None takes the prompts that sstool ships.
        seed: of all that is drawn, 0 to 2**63 - 1.
        batch: candidates suggested at a time, 1 to 64. It changes which trials a seed gives.
        sampled_weight: how much sampled text counts in a candidate's speed, 0 or more. Only its ratio to `greedy_weight` matters.
        greedy_weight: how much greedily decoded text counts, 0 or more; not 0 together with `sampled_weight`.
        sampled_tokens: tokens of sampled continuation of each prompt, 8 to 1024; None takes 32 to 96, as the budget affords.
        greedy_tokens: tokens of greedy continuation of each prompt, 8 to 1024.
        temperature: of the sampled text, 0 or more.
        top_p: of the sampled text, above 0, at most 1.
        finalists: best candidates that are timed for real at the end, 1 to 32.
    """

    trials: int = 80
    budget: str | None = "10m"
    calibration: str | None = None
    seed: int = 0
    batch: int = 2
    sampled_weight: float = 0.75
    greedy_weight: float = 0.25
    sampled_tokens: int | None = None
    greedy_tokens: int = 32
    temperature: float = 0.8
    top_p: float = 0.95
    finalists: int = 4

    def __post_init__(self) -> None:
        check_int("trials", self.trials, 1, 10_000)
        check_int("batch", self.batch, 1, 64)
        check_int("sampled_tokens", self.sampled_tokens, 8, 1024)
        check_int("greedy_tokens", self.greedy_tokens, 8, 1024)
        check_int("finalists", self.finalists, 1, 32)
        check_float("sampled_weight", self.sampled_weight, 0.0)
        check_float("greedy_weight", self.greedy_weight, 0.0)
        if self.sampled_weight == 0 and self.greedy_weight == 0:
            raise ConfigError("sampled_weight and greedy_weight are both 0, so no text would count", "give one of them a weight above 0")
        # A sampled text is decoded as a user's would be, so its settings have the same ranges.
        GenerationConfig(seed=self.seed, temperature=self.temperature, top_p=self.top_p)
        if self.calibration is not None and (not self.calibration.strip() or "\0" in self.calibration):
            raise ConfigError("calibration names no file", "name a JSON Lines file of prompts, or leave it out")
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds; infinite where only `trials` ends the search."""
        return math.inf if self.budget is None else parse_budget(self.budget)

    @property
    def kinds(self) -> list[str]:
        """The kinds of text that count in a candidate's score."""
        return [kind for kind in KINDS if self.weight_of(kind) > 0]

    def weight_of(self, kind: str) -> float:
        """Returns how much a kind of text counts in a candidate's score."""
        return self.greedy_weight if kind == GREEDY else self.sampled_weight

    def tokens_of(self, kind: str) -> int:
        """Returns how many tokens of a continuation count; `FEWEST_TOKENS` where `sampled_tokens` is not decided yet."""
        if kind == GREEDY:
            return self.greedy_tokens
        return FEWEST_TOKENS if self.sampled_tokens is None else self.sampled_tokens

    def texts_per_prompt(self) -> list[tuple[float, int]]:
        """Returns, for sampled and greedy text, how many texts a prompt has on average and how many of their tokens count."""
        sampled = 1.0 if self.sampled_weight else 0.0
        greedy = (1 / GREEDY_EVERY if sampled else 1.0) if self.greedy_weight else 0.0
        return [(sampled, self.tokens_of(SAMPLED)), (greedy, self.tokens_of(GREEDY))]

    def decoding(self, kind: str, seed: int) -> GenerationConfig:
        """Returns how a kind of text is decoded, autoregressively, with this seed."""
        if kind == GREEDY:
            return GenerationConfig(mode="plain", temperature=0.0, seed=seed)
        return GenerationConfig(mode="plain", temperature=self.temperature, top_p=self.top_p, sampling="coupled", seed=seed)


def parse_budget(text: str) -> float:
    """Reads a span of time.

    Args:
        text: a decimal number, and `s`, `m` or `h` for seconds (also without a unit), minutes or hours: `90s`, `10m`, `1.5h`, `600`.

    Returns:
        Seconds, above 0 and finite.

    Raises:
        ConfigError: if it is anything else.
    """
    found = _BUDGET.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(f"budget {_shorten(text)} is not a time", _BUDGET_HINT)
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0 < seconds < math.inf:
        raise ConfigError(f"budget is out of range: {_shorten(text)}", _BUDGET_HINT)
    return seconds


def _shorten(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
