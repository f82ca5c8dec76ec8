"""What decoding gives back: statistics with their invariants, streamed chunks, completions, and the trace a replay needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.proposal import Alternative


@dataclass(slots=True)
class DecodeStats:
    """Counts and times of one request.

    Per round `accepted <= proposed`, and it emits accepted + 1 tokens (a correction or a bonus), so
    `emitted = accepted + rounds`, before EOS, a stop string or the limit cuts; what is cut is `discarded`. With n tokens in
    the completion, `n = 1 + emitted - discarded`: the first token is prefill's and belongs to no round.
    Plain decoding has no rounds: `emitted = n - 1`.

    Attributes:
        rounds: rounds begun and ended.
        proposed: positions drafted: the tokens of the chains.
        accepted: of these, the ones verify agreed with, be it with the chain's token or with an alternative beside it.
        alternatives: tokens that were verified beside the chains'.
        alternatives_accepted: of `accepted`, the ones that an alternative gave; at most one a round.
        emitted: tokens the rounds gave.
        discarded: of these, the ones cut off.
        prefill_s: wall seconds from the first pass to the first token.
        decode_s: wall seconds from the first token to the last.
        engine_s: of decode_s, the seconds inside the engines' run call.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    alternatives: int = 0
    alternatives_accepted: int = 0
    emitted: int = 0
    discarded: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    engine_s: float = 0.0

    def tokens_per_second(self) -> float | None:
        """Returns tokens after the first per second of decoding; None where there is only one."""
        tokens = self.emitted - self.discarded
        return tokens / self.decode_s if tokens > 0 and self.decode_s > 0 else None

    def to_json(self) -> dict[str, int | float | None]:
        """Returns the statistics as `generate --json` prints them."""
        return {
            "rounds": self.rounds,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "alternatives": self.alternatives,
            "alternatives_accepted": self.alternatives_accepted,
            "emitted": self.emitted,
            "discarded": self.discarded,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "tokens_per_second": self.tokens_per_second(),
        }


@dataclass(frozen=True, slots=True)
class Round:
    """One verify pass: it ran `[last token, *proposals]` from position `start`, and the alternatives behind them.

    `alternative` is the index of the alternative that stood, whose keys and values were then moved to its token's place.
    """

    start: int
    proposals: tuple[int, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    alternative: int | None = None


@dataclass(slots=True)
class Trace:
    """The verify passes of a request in their order, enough to run them again exactly (see `sstool.validation.lossless`).

    Plain decoding records rounds without proposals.
    """

    prompt_ids: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed completion. `finish_reason` and `stats` are set on the last one only.

    `token_ids` are the tokens committed since the last chunk; `text` may lag behind them while a character or a possible stop
    string is incomplete.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stats: DecodeStats | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A finished request.

    Attributes:
        text: what was generated, without special tokens, ending before the stop string if one ended it.
        token_ids: with EOS and the token that completed a stop string.
        finish_reason: `eos`, `stop`, `length` or `context`.
        seed: the seed in use, which gives the same text again.
        stats: counts and times.
        prompt_tokens: length of the prompt in tokens.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    stats: DecodeStats
    prompt_tokens: int
