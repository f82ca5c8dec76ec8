"""Completion of a caller's configuration from the artifact, the checkpoint and sstool's defaults."""

from __future__ import annotations

import dataclasses
import math
import secrets
from dataclasses import dataclass
from typing import Final, TypeVar

from ssruntime.artifact import BRANCH_MARGIN, DraftEntry
from ssruntime.config.checkpoint_defaults import CheckpointDefaults
from ssruntime.config.generation import GenerationConfig
from ssruntime.errors import ConfigError
from ssruntime.registry import STOPPING_RULES
from ssruntime.stopping.base import DEFAULT_EXIT, EXIT_THRESHOLD, MAX_DRAFT, StoppingRule, rule_class

V = TypeVar("V")

DEFAULT_MAX_NEW_TOKENS: Final = 128
DEFAULT_MAX_ALTERNATIVES: Final = 2
SPECULATIVE: Final = "speculative"
NEED_DRAFT: Final = (SPECULATIVE, "auto")
"""Modes that need an open draft."""
DECIDE_BY_COSTS: Final = ("ngram", "auto")
"""Modes whose stopping rule is `optimal`."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """A completed configuration: every setting has a value.

    The settings are those of `GenerationConfig`; `stopping` holds `exit`, `exit_threshold` and `max_draft`.
    `branch_margin` is the artifact's.
    """

    max_new_tokens: int
    min_new_tokens: int
    mode: str
    stopping: StoppingRule
    max_alternatives: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    sampling: str
    seed: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    eos_token_ids: frozenset[int]
    skip_special_tokens: bool
    logprobs: int | None = None
    deterministic: bool = False
    branch_margin: float = BRANCH_MARGIN

    @property
    def is_greedy(self) -> bool:
        """Whether decoding is greedy: it takes the most probable token at every position."""
        return self.temperature == 0.0

    @property
    def kind(self) -> str:
        """The kind of sampling, `greedy` or the value of `sampling`: each has its own acceptance model."""
        return "greedy" if self.is_greedy else self.sampling


def complete(
    config: GenerationConfig, defaults: CheckpointDefaults, draft: DraftEntry | None, branch_margin: float = BRANCH_MARGIN
) -> DecodeSettings:
    """Returns `config` with a value for every setting that it leaves open.

    The draft's tuned stopping rule and the checkpoint's settings come first, sstool's own defaults last.

    Args:
        config: the caller's configuration.
        defaults: generation settings of the checkpoint.
        draft: the open draft, which gives its tuned stopping rule and its default mode; None if none is open.
        branch_margin: the artifact's `branch_margin`.

    Raises:
        ConfigError: if `min_new_tokens` exceeds `max_new_tokens`, a mode is given that needs a draft
            and none is open, a threshold for a draft whose stopping rule has none, or alternatives with
            `logprobs`.
    """
    if config.mode in NEED_DRAFT and draft is None:
        raise ConfigError(
            f"mode {config.mode!r} needs a draft, and none is open",
            "use mode 'ngram' or 'plain', or export with a skip set and load with draft=True",
        )
    mode = config.mode or _default_mode(config, draft)
    max_new_tokens = config.max_new_tokens or defaults.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    min_new_tokens = config.min_new_tokens or 0
    if min_new_tokens > max_new_tokens:
        raise ConfigError(
            f"min_new_tokens {min_new_tokens} is more than max_new_tokens {max_new_tokens}",
            "raise max_new_tokens, or lower min_new_tokens",
        )
    return DecodeSettings(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        mode=mode,
        stopping=_stopping(config, mode, draft.stopping if draft is not None else None),
        max_alternatives=_max_alternatives(config, draft, branch_margin),
        temperature=_temperature(config, defaults),
        top_k=_first(config.top_k, defaults.top_k, 0),
        top_p=_first(config.top_p, defaults.top_p, 1.0),
        min_p=_first(config.min_p, defaults.min_p, 0.0),
        sampling=config.sampling or "coupled",
        seed=secrets.randbits(32) if config.seed is None else config.seed,
        logprobs=config.logprobs,
        stop=tuple(config.stop),
        stop_token_ids=frozenset(config.stop_token_ids),
        skip_special_tokens=config.skip_special_tokens,
        eos_token_ids=frozenset() if config.ignore_eos else defaults.eos_token_ids,
        deterministic=config.deterministic,
        branch_margin=branch_margin,
    )


def _default_mode(config: GenerationConfig, draft: DraftEntry | None) -> str:
    """Returns the draft's mode, or `speculative` where another stopping rule than `optimal` is asked for."""
    if draft is None:
        return "plain"
    tuned = DEFAULT_EXIT if draft.stopping is None else draft.stopping.exit
    is_optimal = (config.exit or tuned) == DEFAULT_EXIT and config.exit_threshold is None
    return draft.mode if is_optimal or draft.mode not in DECIDE_BY_COSTS else SPECULATIVE


def _stopping(config: GenerationConfig, mode: str, tuned: StoppingRule | None) -> StoppingRule:
    """Returns the tuned rule, or the default one, with the caller's settings."""
    base = tuned or rule_class(DEFAULT_EXIT)()
    if mode in DECIDE_BY_COSTS:
        if config.exit not in (None, DEFAULT_EXIT):
            raise ConfigError(
                f"exit {config.exit!r} cannot be used in mode {mode!r}, which plans draft lengths from measured costs",
                f"leave exit out, or set it to {DEFAULT_EXIT!r}, or use mode 'speculative'",
            )
        base = base if base.exit == DEFAULT_EXIT else rule_class(DEFAULT_EXIT)()
    if config.exit is not None and config.exit != base.exit:
        base = rule_class(config.exit)(max_draft=base.max_draft)
    given = {name: value for name in (EXIT_THRESHOLD, MAX_DRAFT) if (value := getattr(config, name)) is not None}
    if EXIT_THRESHOLD in given and EXIT_THRESHOLD not in base.settings():
        others = [name for name in STOPPING_RULES.names() if EXIT_THRESHOLD in rule_class(name).settings()]
        raise ConfigError(
            f"exit_threshold has no meaning with exit {base.exit!r}, which is the exit of this draft",
            f"leave exit_threshold out, or also set exit to {' or '.join(map(repr, others))}",
        )
    return dataclasses.replace(base, **given)


def _temperature(config: GenerationConfig, defaults: CheckpointDefaults) -> float:
    if config.temperature is not None:
        return config.temperature
    asked = any(v is not None for v in (config.top_k, config.top_p, config.min_p, config.sampling))
    if defaults.do_sample or asked:
        return _first(defaults.temperature, None, 1.0)
    return 0.0


def _first(first: V | None, second: V | None, last: V) -> V:
    return first if first is not None else second if second is not None else last


def _max_alternatives(config: GenerationConfig, draft: DraftEntry | None, branch_margin: float) -> int:
    """Returns the caller's number, else the draft's, else the default.

    The default is none where the token after an accepted alternative is always withheld: there an alternative
    saves no pass, and its row is not free.
    """
    if config.logprobs is not None:
        if config.max_alternatives:
            raise ConfigError("logprobs cannot be reported with max_alternatives above 0", "leave max_alternatives out, or set it to 0")
        return 0
    tuned = draft.max_alternatives if draft is not None else None
    return _first(config.max_alternatives, tuned, 0 if math.isinf(branch_margin) else DEFAULT_MAX_ALTERNATIVES)
