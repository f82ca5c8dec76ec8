"""The decoding settings that a caller may give, with their range checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from ssruntime.checks import check_choice, check_float, check_int
from ssruntime.errors import ConfigError
from ssruntime.registry import ACCEPTANCE_RULES, PROPOSERS, STOPPING_RULES
from ssruntime.stopping.base import EXIT_THRESHOLD, MAX_DRAFT_LIMIT, check_settings, rule_class
from ssruntime.strict_reader import read_record

MODES: Final = ("plain", "speculative", "ngram", "auto")
"""The modes that come with sstool; others may be registered (see `ssruntime.registry`)."""
EXITS: Final = ("fixed", "confidence", "adaptive", "optimal")
SAMPLINGS: Final = ("coupled", "rejection")
MAX_ALTERNATIVES_LIMIT: Final = 3
MAX_LOGPROBS: Final = 20
SEED_LIMIT: Final = 2**63


_NUMBERS: Final[Mapping[str, Callable[[str, object], float | None]]] = {
    "max_new_tokens": partial(check_int, low=1),
    "min_new_tokens": partial(check_int, low=0),
    "max_draft": partial(check_int, low=1, high=MAX_DRAFT_LIMIT),
    "max_alternatives": partial(check_int, low=0, high=MAX_ALTERNATIVES_LIMIT),
    "top_k": partial(check_int, low=0),
    "logprobs": partial(check_int, low=0, high=MAX_LOGPROBS),
    "seed": partial(check_int, low=0, high=SEED_LIMIT - 1),
    "exit_threshold": partial(check_float, low=0.0, high=1.0),
    "temperature": partial(check_float, low=0.0),
    "top_p": partial(check_float, low=0.0, high=1.0, above=True),
    "min_p": partial(check_float, low=0.0, high=1.0),
}
"""The range check of each setting that is a number."""
_FLAGS: Final = ("ignore_eos", "skip_special_tokens", "deterministic")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Decoding settings of a request.

    A setting that is None is taken from the artifact: from the draft's tuned stopping rule or from the
    checkpoint's generation settings. If the artifact does not give it, a default is used.

    Attributes:
        max_new_tokens: largest number of tokens to generate, at least 1. Default 128.
        min_new_tokens: number of tokens before which no token that ends the text (end of sequence or
            `stop_token_ids`) is generated; its probability is 0 until then. Stop strings still end the text.
            Default 0.
        mode: `plain` (autoregressive decoding), `speculative` (the draft engine drafts), `ngram` (tokens are
            looked up in the prompt and the text) or `auto` (in each round whatever is expected to be fastest
            of these three). Default: `auto` if the artifact has a draft, unless it is marked as not faster.
        exit: stopping policy, which ends a draft sequence before `max_draft` tokens: `optimal` (when no
            longer draft is expected to be faster; it may also draft nothing), `fixed` (never), `confidence`
            (below a fixed threshold), `adaptive` (below a threshold that follows the acceptance rate). Modes
            `ngram` and `auto` know `optimal` only.
        exit_threshold: draft confidence in [0, 1] below which drafting stops. Not allowed with `fixed`.
        max_draft: largest number of tokens in a draft sequence, 1 to 15.
        max_alternatives: largest number of alternatives for each drafted token, 0 to 3. An alternative is a
            side branch of the token tree, one token long: one of the draft's next-best tokens, verified in
            the same pass if it is nearly as good as the drafted one. Default 2, and 0 with
            quantized weights. Sampling `rejection` uses no alternatives.
        temperature: 0 for greedy decoding, above 0 for sampling.
        top_k: number of most probable tokens to keep; 0 keeps all.
        top_p: total probability, in (0, 1], to keep: the smallest set of best tokens that reaches it.
        min_p: smallest probability to keep, as a fraction of the most probable token's, in [0, 1].
        sampling: `coupled` (Gumbel-coupled: the text of autoregressive sampling with the same seed) or
            `rejection` (rejection sampling: the same distribution, another text).
        seed: seed of the sampling, 0 to 2**63 - 1. Default: a random one.
        stop: strings that end the text; the text does not include them. They may include special tokens.
        stop_token_ids: ids of tokens that end the text, beside the end-of-sequence tokens. The completion's
            ids include such a token.
        ignore_eos: whether to continue past end-of-sequence tokens.
        skip_special_tokens: whether the text does not include special tokens.
        logprobs: number of most probable tokens, 0 to 20, to report beside each generated token, with the log
            probabilities of all of them (at temperature 1, before filters). It excludes alternatives, whose
            rows do not have the bits of autoregressive decoding. Default: nothing is reported.
        deterministic: whether drafting depends on nothing that is measured or learned while requests run.
            With sampling `rejection` it makes the text a function of the seed. In every other case the text
            does not depend on what is drafted.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
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
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, PROPOSERS.names())
        check_choice("exit", self.exit, STOPPING_RULES.names())
        check_choice("sampling", self.sampling, ACCEPTANCE_RULES.names())
        for name, check in _NUMBERS.items():
            # Stored as Python's own numbers, which other code and JSON can rely on.
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.exit is not None and self.exit_threshold is not None:
            check_settings(rule_class(self.exit), [EXIT_THRESHOLD])
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, found {getattr(self, name)!r}")
        stops: object = self.stop
        if not isinstance(stops, list | tuple) or any(not isinstance(s, str) or not s for s in stops):
            raise ConfigError(
                f"stop must be a list of non-empty strings, found {self.stop!r}", "give a list, each string with at least one character"
            )
        ids: object = self.stop_token_ids
        if not isinstance(ids, list | tuple) or None in ids:
            raise ConfigError(f"stop_token_ids must be a list of token ids, found {ids!r}", "give a list of whole numbers, 0 or more")
        object.__setattr__(self, "stop_token_ids", tuple(check_int("stop_token_ids", i, low=0) for i in ids))

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> GenerationConfig:
        """Returns the configuration that a mapping holds, such as parsed JSON.

        Raises:
            ConfigError: for an unknown key (the hint names the closest known one) or a value out of range.
        """
        return read_record(cls, data, where="generation config", error=ConfigError)
