"""What a caller may ask of a generation, with the checks on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ssruntime.artifact import StoppingRule
from ssruntime.checks import check_choice, check_float, check_int
from ssruntime.errors import ConfigError
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.strict_reader import read_record

MODES: Final = ("plain", "speculative")
EXITS: Final = ("fixed", "confidence", "adaptive")
SAMPLINGS: Final = ("coupled", "rejection")
MAX_DRAFT_LIMIT: Final = MAX_QUERY_LENGTH - 1
MAX_ALTERNATIVES_LIMIT: Final = 3
SEED_LIMIT: Final = 2**63


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to decode. What is None is taken from the artifact: its tuned exit, the checkpoint's generation settings, then defaults.

    Attributes:
        max_new_tokens: most tokens to add, at least 1. Default 128.
        mode: `plain` or `speculative`. Default speculative where the artifact has a draft.
        exit: when a draft stops: `fixed` (always `max_draft`), `confidence` (below a fixed threshold), `adaptive` (the threshold
            follows acceptance).
        exit_threshold: draft confidence in [0, 1] below which drafting stops; not for `fixed`.
        max_draft: most tokens a draft proposes in a round, 1 to 15.
        max_alternatives: most of the draft's next-best tokens that are verified beside each, 0 to 3; those that are nearly as good as it
            is. Default 2. None with `rejection`.
        temperature: 0 for greedy decoding, or above 0.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1].
        min_p: keep tokens at least this fraction as probable as the best, in [0, 1].
        sampling: `coupled` (the same text as plain sampling with the same seed) or `rejection` (the same distribution).
        seed: 0 to 2**63 - 1. Random unless given.
        stop: texts that end the output; they are left out of it.
        ignore_eos: go on past end-of-sequence tokens.
    """

    max_new_tokens: int | None = None
    mode: str | None = None
    exit: str | None = None
    exit_threshold: float | None = None
    max_draft: int | None = None
    max_alternatives: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    sampling: str | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("exit", self.exit, EXITS)
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_int("max_new_tokens", self.max_new_tokens, 1)
        check_int("max_draft", self.max_draft, 1, MAX_DRAFT_LIMIT)
        check_int("max_alternatives", self.max_alternatives, 0, MAX_ALTERNATIVES_LIMIT)
        check_int("top_k", self.top_k, 0)
        check_int("seed", self.seed, 0, SEED_LIMIT - 1)
        check_float("exit_threshold", self.exit_threshold, 0.0, 1.0)
        check_float("temperature", self.temperature, 0.0)
        check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        check_float("min_p", self.min_p, 0.0, 1.0)
        if self.exit == "fixed" and self.exit_threshold is not None:
            raise ConfigError("exit_threshold has no meaning with exit 'fixed'", "leave one of the two out")
        ignores: object = self.ignore_eos
        if not isinstance(ignores, bool):
            raise ConfigError(f"ignore_eos must be true or false, found {ignores!r}")
        stops: object = self.stop
        if not isinstance(stops, list | tuple) or any(not isinstance(s, str) or not s for s in stops):
            raise ConfigError(f"stop must be a list of texts, none of them empty, found {self.stop!r}", "leave empty ones out")

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> GenerationConfig:
        """Builds a configuration from parsed JSON or keyword-like data.

        Raises:
            ConfigError: for an unknown key, naming the closest known one, or a value out of its range.
        """
        return read_record(cls, data, where="generation config", error=ConfigError)


def check_stopping_rule(tuned: StoppingRule, mode: str | None) -> None:
    """Checks an exit that a file says a draft was tuned for. Raises ConfigError if a value is out of its range."""
    GenerationConfig(
        exit=tuned.exit,
        exit_threshold=tuned.exit_threshold,
        max_draft=tuned.max_draft,
        max_alternatives=tuned.max_alternatives,
        mode=mode,
    )
