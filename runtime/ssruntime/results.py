"""The results of decoding: statistics with their invariants, streamed chunks, completions and traces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssruntime.logprobs import TokenLogprob
from ssruntime.proposal import TokenTree


@dataclass(slots=True)
class DecodeStats:
    """Counts and times of one request.

    In each round `accepted <= proposed`, and the round emits accepted + 1 tokens: the last one is a
    correction token after a rejection, and a bonus token otherwise. After an accepted alternative the bonus
    token may be withheld, for the next round to emit. So `emitted = accepted + rounds - withheld`. EOS or a
    stop string inside a round cuts off the tokens after it, which `discarded` counts. A completion of n
    tokens has `n = 1 + emitted - discarded`: its first token comes from prefill and belongs to no round. (A
    completion that a timeout ended before its first token has no token.)
    Autoregressive decoding (mode `plain`) has no rounds: `emitted = n - 1`.

    Attributes:
        cached_tokens: number of prompt tokens whose KV came from the prefix cache.
        rounds: number of rounds.
        proposed: number of tokens in the draft sequences, without alternatives.
        accepted: number of drafted positions at which verify accepted the drafted token or an alternative.
        alternatives: number of alternatives verified (side branches of the token tree, one token long).
        alternatives_accepted: number of accepted positions that an alternative filled; at most one per round.
        withheld: number of rounds whose bonus token was left to the next round.
        emitted: number of tokens that rounds or autoregressive steps emitted.
        discarded: number of emitted tokens that were cut off.
        prefill_s: wall seconds from the first pass to the first token.
        decode_s: wall seconds from the first token to the last.
        engine_s: seconds of `decode_s` spent inside the engines' run call.
        outcomes: number of rounds by the sources of their draft sequence (see `Round.sources`) and the number
            of accepted tokens; without rounds that proposed nothing.
    """

    cached_tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    alternatives: int = 0
    alternatives_accepted: int = 0
    withheld: int = 0
    emitted: int = 0
    discarded: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    engine_s: float = 0.0
    outcomes: dict[tuple[tuple[str, ...], int], int] = field(default_factory=dict)

    def tokens_per_second(self) -> float | None:
        """Returns tokens per second of `decode_s`, the first token not counted; None if there is no other."""
        tokens = self.emitted - self.discarded
        return tokens / self.decode_s if tokens > 0 and self.decode_s > 0 else None

    def to_json(self) -> dict[str, int | float | None]:
        """Returns the statistics as `generate --json` prints them."""
        return {
            "cached_tokens": self.cached_tokens,
            "rounds": self.rounds,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "alternatives": self.alternatives,
            "alternatives_accepted": self.alternatives_accepted,
            "withheld": self.withheld,
            "emitted": self.emitted,
            "discarded": self.discarded,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "tokens_per_second": self.tokens_per_second(),
        }


@dataclass(frozen=True, slots=True)
class Round:
    """One verify pass.

    Attributes:
        start: position of the tree's first token.
        tree: tokens of the pass.
        proposed: length of the draft sequence, which is the end of the trunk.
        alternative: index of the branch that was accepted; None if none was.
        sources: source of each token of the draft sequence, such as `skip` for the draft engine.
    """

    start: int
    tree: TokenTree
    proposed: int = 0
    alternative: int | None = None
    sources: tuple[str, ...] = ()

    @property
    def first_decided(self) -> int:
        """First position whose token the round decided: the one after the committed tokens of its trunk."""
        return self.start + len(self.tree.trunk) - self.proposed

    def row_for(self, position: int) -> int:
        """Returns the row that decided the token at a position, of those that the round emitted."""
        offset = position - 1 - self.start
        if self.alternative is not None and offset == self.tree.branch_offset(self.alternative):
            return self.tree.branch_row(self.alternative)
        return offset

    def has_path(self, tokens: Sequence[int]) -> bool:
        """Returns whether the round ran, or accepted, these tokens after the one at `start`."""
        path = tuple(self.tree.trunk[1:])
        if self.alternative is not None:
            depth, token = self.tree.branches[self.alternative]
            path = (*path[:depth], token)
        return path[: len(tokens)] == tuple(tokens)


@dataclass(slots=True)
class Trace:
    """The verify passes of a request in order, from which `sstool.validation.lossless` replays them exactly.

    Autoregressive decoding (mode `plain`) records rounds without proposals.

    Attributes:
        prompt_ids: token ids of the prompt.
        rounds: the verify passes.
        logits: digest of the logits that predict each position after the prompt; None to compute none. Rows
            of alternatives are left out, because they do not have the bits of autoregressive decoding; the
            pass after an accepted alternative computes its row again.
    """

    prompt_ids: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    logits: dict[int, bytes] | None = None

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Forgets an earlier request, and records the prompt of a new one."""
        self.prompt_ids = list(prompt_ids)
        self.rounds = []
        if self.logits is not None:
            self.logits = {}

    def add_logits(self, position: int, rows: Iterable[NDArray[np.float32]]) -> None:
        """Records the rows of logits that predict `position` and the positions after it."""
        if self.logits is not None:
            for offset, row in enumerate(rows):
                # The first row of a position decided its token; the pass after an alternative repeats a row.
                self.logits.setdefault(position + offset, logits_digest(row))


def logits_digest(row: NDArray[np.float32]) -> bytes:
    """Returns a digest of one row of logits."""
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed completion. `finish_reason` and `stats` are set on the last one only.

    `token_ids` are the tokens committed since the last chunk, and `logprobs` their log probabilities if these
    were asked for. `text` may lag behind them: an incomplete character and the possible beginning of a stop
    string are held back.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None
    stats: DecodeStats | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A finished request.

    Attributes:
        text: generated text, without special tokens and without the stop string that ended it.
        token_ids: generated tokens, including EOS and the token that completed a stop string.
        finish_reason: `eos`, `stop`, `length`, `context`, `timeout` or `cancelled`.
        seed: seed that was used; it reproduces the text.
        stats: counts and times.
        prompt_tokens: length of the prompt in tokens.
        logprobs: log probabilities of the generated tokens; None if they were not asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    stats: DecodeStats
    prompt_tokens: int
    logprobs: list[TokenLogprob] | None = None
