"""The settings of a search: every value that a recipe or a flag sets is checked before the search begins."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from ssruntime.checks import check_float, check_int
from ssruntime.config import GenerationConfig
from ssruntime.errors import ConfigError

SAMPLED: Final = "sampled"
GREEDY: Final = "greedy"
KINDS: Final = (SAMPLED, GREEDY)
"""The kinds of calibration text: sampled and greedy continuations."""
FEWEST_TOKENS: Final = 32
"""Length of each sampled continuation, in tokens, if the budget affords no more."""
GREEDY_EVERY: Final = 3
"""One of this many prompts is also continued greedily; greedy text repeats itself, so fewer are enough."""

_BUDGET_HINT: Final = "write a time above 0 such as 90s, 10m or 1.5h; a number alone is seconds"
_BUDGET: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([smh]?)")
_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search a skip set: the keys of a recipe's `search` section.

    Attributes:
        trials: largest number of candidates to try, 1 to 10000. The search ends after these or when `budget`
            is used up, whichever comes first.
        budget: time limit: `90s`, `10m`, `1.5h`, or a number of seconds; None for no limit but `trials`.
        calibration: JSON Lines file of `{"prompt": ...}`, relative to the recipe; None for the prompts that
            sstool ships.
        seed: seed of everything random in the search, 0 to 2**63 - 1.
        batch: number of candidates that Ax suggests at a time, 1 to 64. Another number gives other trials for
            the same seed.
        sampled_weight: weight of sampled text in a candidate's speed, 0 or more. Only its ratio to
            `greedy_weight` matters.
        greedy_weight: weight of greedy text in a candidate's speed, 0 or more; not 0 together with
            `sampled_weight`.
        sampled_tokens: length of each sampled continuation, 8 to 1024 tokens; None for 32 to 96, as many as
            the budget affords.
        greedy_tokens: length of each greedy continuation, 8 to 1024 tokens.
        temperature: sampling temperature of the sampled text, 0 or more.
        top_p: top-p filter of the sampled text, above 0, at most 1.
        finalists: number of best candidates that are timed head to head at the end, 1 to 32.
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
            raise ConfigError("sampled_weight and greedy_weight are both 0, so no text would count", "set one of them above 0")
        # Sampled text is decoded as a user's request is, so the same ranges hold.
        GenerationConfig(seed=self.seed, temperature=self.temperature, top_p=self.top_p)
        if self.calibration is not None and (not self.calibration.strip() or "\0" in self.calibration):
            raise ConfigError("calibration names no file", "name a JSON Lines file of prompts, or omit the key")
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds; infinite if only `trials` limits the search."""
        return math.inf if self.budget is None else parse_budget(self.budget)

    @property
    def kinds(self) -> list[str]:
        """The kinds of text that have a weight above 0."""
        return [kind for kind in KINDS if self.weight_of(kind) > 0]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of all kinds of text in a candidate's score."""
        return {kind: self.weight_of(kind) for kind in KINDS}

    def kinds_of(self, number: int) -> list[str]:
        """Returns the kinds of text to make of the prompt at an index: greedy text of every third one only.

        If all text is greedy, it is made of every prompt.
        """
        kinds = self.kinds
        return [kind for kind in kinds if kind != GREEDY or number % GREEDY_EVERY == 0 or len(kinds) == 1]

    def weight_of(self, kind: str) -> float:
        """Returns the weight of a kind of text in a candidate's score."""
        return self.greedy_weight if kind == GREEDY else self.sampled_weight

    def tokens_of(self, kind: str) -> int:
        """Returns the length of a continuation in tokens; `FEWEST_TOKENS` until `sampled_tokens` is known."""
        if kind == GREEDY:
            return self.greedy_tokens
        return FEWEST_TOKENS if self.sampled_tokens is None else self.sampled_tokens

    def texts_per_prompt(self) -> list[tuple[float, int]]:
        """Returns the texts per prompt (a mean) and their length in tokens, sampled first, then greedy."""
        sampled = 1.0 if self.sampled_weight else 0.0
        greedy = (1 / GREEDY_EVERY if sampled else 1.0) if self.greedy_weight else 0.0
        return [(sampled, self.tokens_of(SAMPLED)), (greedy, self.tokens_of(GREEDY))]

    def decoding(self, kind: str, seed: int) -> GenerationConfig:
        """Returns the settings that decode a kind of text autoregressively (mode `plain`) with a seed."""
        if kind == GREEDY:
            return GenerationConfig(mode="plain", temperature=0.0, seed=seed)
        return GenerationConfig(mode="plain", temperature=self.temperature, top_p=self.top_p, sampling="coupled", seed=seed)


def parse_budget(text: str) -> float:
    """Returns a duration in seconds, above 0 and finite.

    Args:
        text: a decimal number with the unit `s`, `m` or `h` (seconds, minutes, hours), such as `90s`, `10m`
            or `1.5h`; a number without a unit is in seconds.

    Raises:
        ConfigError: if the text is not such a duration.
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
