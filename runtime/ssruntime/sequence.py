"""One request being decoded: a `Sequence` says which forward pass it wants next and takes that pass's output.

It prefills the prompt, then goes through rounds of propose, verify and accept until the text ends.
Autoregressive decoding (mode `plain`) is the same without a proposer. Decoding is lossless because only the
acceptance rule decides which tokens are emitted, and it decides from the outputs of verify passes. A proposer
changes the speed, not the text (with rejection sampling: not the distribution of texts).
"""

from __future__ import annotations

from collections import abc
from collections.abc import Generator
from typing import Protocol

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Pass, StepOutput, make_pass, prefill_pass
from ssruntime.config import DecodeSettings
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.logprobs import TokenLogprob, token_logprob
from ssruntime.proposal import TokenTree, room_beside
from ssruntime.proposers.base import Proposer
from ssruntime.results import DecodeStats, Round, Trace


class StopWatch(Protocol):
    """Receives every committed token, and detects stop strings."""

    def push(self, token: int) -> bool:
        """Adds a token; returns whether a stop string is complete with it."""


class SequenceLimits(Protocol):
    """What a KV cache allows; every `Slot` says it."""

    max_context: int
    """Largest number of tokens of prompt and output together."""
    alternatives_end: int
    """First KV-cache entry that no alternative may use."""
    prefill_chunk: int
    """Largest number of prompt tokens in one pass."""
    attention_block: int
    """Number of rows in a block of the attention kernel."""


class Sequence:
    """The state of one request between passes. Proposers read `ids` and `start`.

    Attributes:
        next_pass: pass that the sequence waits for; None when the text has ended.
        ids: token ids of the prompt and of the committed tokens.
        start: number of leading tokens whose KV is in the cache; it is less than the number of `ids`.
        stats: counts so far; the driver adds the times.
        logprobs: log probabilities of the committed tokens; empty if the settings ask for none.
        prefill_chunk: largest number of prompt tokens in each further pass; at most what the KV cache allows.
        finish_reason: None until the text ends; then `eos`, `stop`, `length`, `context`, or what `cancel` was
            given.
    """

    def __init__(
        self,
        prompt_ids: abc.Sequence[int],
        settings: DecodeSettings,
        limits: SequenceLimits,
        *,
        acceptance: Acceptance,
        proposer: Proposer | None,
        stop_watch: StopWatch | None,
        prefill_chunk: int | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Begins a request.

        Args:
            prompt_ids: at least one token id, and fewer than the context holds.
            settings: completed settings.
            limits: limits of the KV cache.
            acceptance: acceptance rule of this request.
            proposer: source of drafts; None for autoregressive decoding.
            stop_watch: detector of stop strings; None if there are none.
            prefill_chunk: most prompt tokens in the first pass; None for what the KV cache allows.
            trace: record to fill with the verify passes.
        """
        self.ids = list(prompt_ids)
        self.start = 0
        self.stats = DecodeStats()
        self.logprobs: list[TokenLogprob] = []
        self.prefill_chunk = min(prefill_chunk or limits.prefill_chunk, limits.prefill_chunk)
        self.finish_reason: str | None = None
        self._settings = settings
        self._limits = limits
        self._acceptance = acceptance
        self._proposer = proposer
        self._completes_stop = None if stop_watch is None else stop_watch.push
        self._eos = settings.eos_token_ids
        self._ends = settings.eos_token_ids | settings.stop_token_ids
        self._trace = trace
        room = limits.max_context - len(prompt_ids)
        self._end = len(prompt_ids) + min(settings.max_new_tokens, room)
        self._reason_at_end = "length" if settings.max_new_tokens <= room else "context"
        self._new: abc.Sequence[int] = ()
        if trace is not None:
            trace.begin(prompt_ids)
        self._passes = self._prefill()
        self.next_pass: Pass | None = next(self._passes)

    def begin_at(self, start: int) -> None:
        """Begins, instead of a first pass, after prompt tokens whose KV is in the KV cache already.

        Args:
            start: number of these tokens, less than the prompt has.
        """
        self.start = self.stats.cached_tokens = start
        self._passes = self._prefill()
        self.next_pass = next(self._passes)

    def commit(self, output: StepOutput) -> abc.Sequence[int]:
        """Takes the output of the pass; returns the tokens that are committed with it, possibly none."""
        self.next_pass = self._passes.send(output)
        new = self._new
        self._new = ()
        return new

    def cancel(self, reason: str) -> None:
        """Ends the text between two passes, with this finish reason."""
        self.close()
        self.finish_reason = reason

    def close(self) -> None:
        """Asks for no further pass: the suspended generator and this object keep each other alive."""
        self._passes.close()
        self.next_pass = None

    # The generators below yield the passes that they want, and None at the end of the text.

    def _prefill(self) -> Generator[Pass | None, StepOutput, None]:
        while self.start < len(self.ids):
            wanted = prefill_pass(self.ids, self.start, self.prefill_chunk, self._limits.attention_block)
            output = yield wanted
            self.start += len(wanted.trunk)
        if self._trace is not None:
            self._trace.add_logits(len(self.ids), output.logits)
        self._emit((self._acceptance.sample(output, len(self.ids)),), output)
        # The next generator takes this one's place, instead of being delegated to: one call less a pass.
        self._passes = self._autoregressive() if self._proposer is None else self._rounds(self._proposer)
        yield next(self._passes)

    def _autoregressive(self) -> Generator[Pass | None, StepOutput, None]:
        ids, stats, trace, sample = self.ids, self.stats, self._trace, self._acceptance.sample
        ends, end, may_end, logprobs = self._ends, self._end, self._completes_stop is not None, self._settings.logprobs
        while self.finish_reason is None:
            start, trunk = self.start, (ids[-1],)
            output = yield make_pass(("verify", trunk, start, ()))
            stats.emitted += 1
            if trace is not None:
                trace.rounds.append(Round(start, TokenTree(trunk)))
                trace.add_logits(start + 1, output.logits)
            self.start = start + 1
            # As `_emit`, without the call.
            token = sample(output, start + 1)
            ids.append(token)
            self._new = (token,)
            if logprobs is not None:
                self._score(self._new, output)
            if may_end or token in ends or len(ids) >= end:
                self.finish_reason = self._reason_after(token, len(ids))
        yield None

    def _rounds(self, proposer: Proposer) -> Generator[Pass | None, StepOutput, None]:
        stats = self.stats
        while self.finish_reason is None:
            start, position = self.start, len(self.ids)
            committed = self.ids[start:]
            # A round emits one token more than it accepts, so a draft up to the end would waste its last one.
            limit = min(self._end - position - 1, MAX_QUERY_LENGTH - len(committed))
            proposal = yield from proposer.propose(self, limit)
            if not proposal.tokens and len(committed) == 1:
                yield from self._undrafted(committed, proposer)
                continue
            tree = proposal.tree(committed)
            room = room_beside(len(tree.trunk) - 1, start, self._limits.alternatives_end) if tree.branches else 0
            if len(proposal.tokens) > limit or len(tree.branches) > room:
                raise ValueError(
                    f"mode {self._settings.mode!r}: a proposer may propose at most {limit} tokens and {room} alternatives here; it proposed"
                    f" {len(proposal.tokens)} and {len(tree.branches)}"
                )
            rows = yield make_pass(("verify", tree.trunk, start, tree.branches))
            output = rows.tail(position - 1 - start) if position - 1 > start else rows
            emitted, alternative, is_withheld = self._acceptance.accept(output, proposal, position)
            proposed, accepted = len(proposal.tokens), len(emitted) - (not is_withheld)
            accepted_draft = accepted - (alternative is not None)
            # The KV of an accepted alternative is in the entry of another position, and the token after it
            # has none yet. The next pass runs both again, as the first tokens of its trunk.
            self.start = position + accepted_draft
            # Stopping policies learn about the draft sequence only, whose token the alternative replaced.
            proposer.observe(proposed, accepted_draft, emitted)
            stats.rounds += 1
            if proposed:
                outcome = tuple(proposal.sources), accepted
                stats.outcomes[outcome] = stats.outcomes.get(outcome, 0) + 1
            stats.proposed += proposed
            stats.accepted += accepted
            stats.alternatives += len(proposal.alternatives)
            stats.alternatives_accepted += alternative is not None
            stats.withheld += is_withheld
            stats.emitted += len(emitted)
            if self._trace is not None:
                self._trace.rounds.append(Round(start, tree, proposed, alternative, tuple(proposal.sources)))
                self._trace.add_logits(start + 1, rows.logits[: position + accepted_draft - start])
            self._emit(emitted, output)
        yield None

    def _undrafted(self, committed: abc.Sequence[int], proposer: Proposer) -> Generator[Pass | None, StepOutput, None]:
        """Runs a round without a proposal, which is an autoregressive step."""
        start = self.start
        output = yield make_pass(("verify", committed, start, ()))
        emitted = (self._acceptance.sample(output, start + 1),)
        self.start = start + 1
        proposer.observe(0, 0, emitted)
        self.stats.rounds += 1
        self.stats.emitted += 1
        if self._trace is not None:
            self._trace.rounds.append(Round(start, TokenTree(committed)))
            self._trace.add_logits(start + 1, output.logits)
        self._emit(emitted, output)

    def _emit(self, emitted: abc.Sequence[int], output: StepOutput) -> None:
        """Commits tokens up to the one that ends the text, if there is such a token.

        Args:
            emitted: tokens that the pass decided.
            output: output of the pass, from the row that decided the first of them on.
        """
        if self._completes_stop is None and len(self.ids) + len(emitted) < self._end and self._ends.isdisjoint(emitted):
            self._commit(emitted, output)
            return
        for count, token in enumerate(emitted, 1):
            reason = self._reason_after(token, len(self.ids) + count)
            if reason is not None:
                self.finish_reason = reason
                self.stats.discarded += len(emitted) - count
                emitted = emitted[:count]
                break
        self._commit(emitted, output)

    def _commit(self, emitted: abc.Sequence[int], output: StepOutput) -> None:
        self.ids += emitted
        self._new = emitted
        if self._settings.logprobs is not None:
            self._score(emitted, output)

    def _score(self, emitted: abc.Sequence[int], output: StepOutput) -> None:
        """Records log probabilities. Without alternatives, row i of a pass decided the token i."""
        top = self._settings.logprobs or 0
        self.logprobs += [token_logprob(row, token, top) for row, token in zip(output.logits, emitted, strict=False)]

    def _reason_after(self, token: int, length: int) -> str | None:
        """Returns the finish reason if a token ends the text.

        Args:
            token: newest token.
            length: number of tokens of prompt and text with it.
        """
        stopped = self._completes_stop is not None and self._completes_stop(token)
        if token in self._eos:
            return "eos"
        if stopped or token in self._ends:
            return "stop"
        return self._reason_at_end if length >= self._end else None
