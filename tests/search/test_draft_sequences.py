"""The rounds that the search counts are those of real decoding, and counting does not change the KV cache."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ssruntime.planning.planner import unlearned
from ssruntime.results import Trace
from ssruntime.stopping import AdaptiveRule, ConfidenceRule, FixedRule, FixedStopping
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.texts.make import CachedText
from tests.kv_content import kv_content
from tests.search.builders import SKIP, drafted
from tests.search.conftest import SETTINGS

RULES = [
    FixedRule(max_draft=1),
    FixedRule(max_draft=4),
    ConfidenceRule(exit_threshold=0.8, max_draft=6),
    ConfidenceRule(exit_threshold=0.4, max_draft=12),
    ConfidenceRule(exit_threshold=0.2, max_draft=15),
    AdaptiveRule(exit_threshold=0.5, max_draft=8),
]


def test_the_counted_rounds_are_those_of_real_decoding(builder: DraftBuilder, texts: list[CachedText]) -> None:
    num_rounds = num_saved = 0
    for cached in texts:
        text = cached.text
        counting = drafted(builder, cached, SKIP)
        for rule in RULES:
            settings = dataclasses.replace(
                builder.engine.settings(SETTINGS.decoding(text.kind, text.seed)),
                mode="speculative",
                stopping=rule,
                max_new_tokens=len(text.tokens),
            )
            slot = builder.backend.new_slot(len(text.prompt) + len(text.tokens), builder.open(SKIP))
            trace = Trace()
            tokens, stats = builder.engine.decode_on(slot, text.prompt, settings, trace=trace)
            assert tuple(tokens) == text.tokens
            if stats.withheld:  # which depends on the target's scores, and counting knows its tokens only
                continue
            count, rounds, accepted, alternatives, pending, policy = 1, [], 0, 0, 1, rule.policy(unlearned(), text.kind)
            while count < len(text.tokens):
                start = counting.position(count) - pending + 1
                proposed, agreed, branches, pending = counting.propose(count, rule, policy, pending=pending)
                policy.observe(proposed, agreed - (pending - 1), agreed + 1)
                rounds.append((start, proposed, branches))
                accepted += agreed
                alternatives += branches
                count += agreed + 1
            assert rounds == [(r.start, r.proposed, len(r.tree.branches)) for r in trace.rounds]
            assert (accepted, alternatives) == (stats.accepted, stats.alternatives)
            num_rounds += len(rounds)
            num_saved += stats.alternatives_accepted
    assert num_rounds > 100
    assert num_saved > 10


def test_a_longer_draft_sequence_gives_the_same_counts(builder: DraftBuilder, texts: list[CachedText]) -> None:
    exact, longer = (drafted(builder, texts[0], SKIP) for _ in range(2))
    for count in range(1, texts[0].text.length):
        longest = FixedRule(max_draft=12)
        longer.propose(count, longest, longest.policy(unlearned(), "sampled"))
        for threshold, max_draft in ((0.7, 3), (0.3, 9), (0.5, 6)):
            rule = ConfidenceRule(exit_threshold=threshold, max_draft=max_draft)
            assert exact.propose(count, rule, rule.policy(unlearned(), "sampled")) == longer.propose(
                count, rule, rule.policy(unlearned(), "sampled")
            )


def test_drafting_does_not_change_the_kv_cache(builder: DraftBuilder, texts: list[CachedText]) -> None:
    cached = texts[0]
    before = kv_content(cached.slot)
    assert any(buffer.any() for buffer in before.values())
    counting = drafted(builder, cached, SKIP)
    for count in range(1, cached.text.length):
        counting.propose(count, FixedRule(max_draft=8), FixedStopping())
    for name, buffer in kv_content(cached.slot).items():
        np.testing.assert_array_equal(buffer, before[name])


def test_drafting_ends_before_the_end_of_the_text_and_of_the_slot(builder: DraftBuilder, texts: list[CachedText]) -> None:
    text = texts[0].text
    counting = drafted(builder, texts[0], SKIP)
    for count in range(1, len(text.tokens)):
        proposed, accepted, _, _ = counting.propose(count, FixedRule(max_draft=15), FixedStopping())
        assert accepted <= proposed <= len(text.tokens) - count - 1
    with pytest.raises(ValueError, match="outside the context"):
        texts[0].slot.draft((0,), texts[0].slot.max_context)
