"""Proposers and stopping policies plug in through the registries and work with every acceptance rule."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ssruntime import GenerationConfig, Trace
from ssruntime.acceptance import RejectionAcceptance
from ssruntime.backends.base import Pass, StepOutput
from ssruntime.config import CheckpointDefaults, DecodeSettings, complete
from ssruntime.errors import ConfigError
from ssruntime.planning.acceptance import Evidence
from ssruntime.planning.planner import Planner
from ssruntime.proposal import Alternative, Proposal
from ssruntime.proposers import SequenceView
from ssruntime.registry import ACCEPTANCE_RULES, PROPOSERS, STOPPING_RULES
from ssruntime.sampling.distribution import Distribution, accept_probability, draw, point_mass, residual
from ssruntime.sampling.filters import filtered, probabilities
from ssruntime.stopping import StoppingRule
from tests.runtime.conftest import OpenScript
from tests.runtime.counts import check_counts
from tests.runtime.scripted import plain_tokens, proposal_of, random_script, step_of

SCRIPT = random_script(3, agreement=0.5, scale=1.0, history=True)


class Lookup:
    """Proposes what followed the last token the last time that it occurred, without any pass of an engine."""

    def __init__(self, stopping: Any) -> None:
        self._stopping = stopping

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Returns the tokens that followed."""
        proposal, ids = Proposal(), list(sequence.ids)
        found = next((n for n in range(len(ids) - 2, -1, -1) if ids[n] == ids[-1]), None)
        for depth, token in enumerate([] if found is None else ids[found + 1 :][:limit]):
            if depth == 0 and not self._stopping.begin(len(ids), limit):
                break
            proposal.append(token, "lookup")
            if not self._stopping.goes_on(depth + 1, Evidence(1.0, 1.0, 1.0)):
                break
        return proposal
        yield  # a generator without passes

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Learns nothing."""


@dataclass(frozen=True, kw_only=True)
class TwoRule(StoppingRule):
    """At most two tokens, and a setting of its own."""

    exit: str = field(default="two", init=False)
    tokens: int = 2

    def policy(self, planner: Planner, kind: str) -> AtMostTwo:
        """Returns a new policy."""
        return AtMostTwo()


class AtMostTwo:
    """Lets drafts have two tokens, and none while the context has an odd number of tokens."""

    def begin(self, context: int, limit: int) -> bool:
        """Returns whether to draft at all."""
        return context % 2 == 0

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        """Returns whether the draft goes on."""
        return depth < 2

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        """Learns nothing."""


@pytest.fixture(autouse=True)
def _plugged_in() -> Iterator[None]:
    PROPOSERS.register("lookup", lambda parts: Lookup(parts.settings.stopping.policy(parts.planner, parts.settings.kind)))
    STOPPING_RULES.register("two", TwoRule)
    yield
    PROPOSERS.remove("lookup")
    STOPPING_RULES.remove("two")


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 9}])
@pytest.mark.parametrize("mode", ["lookup", "speculative"])
def test_the_text_is_that_of_autoregressive_decoding(open_script: OpenScript, mode: str, how: dict[str, Any]) -> None:
    config = GenerationConfig(mode=mode, exit="two", max_new_tokens=50, ignore_eos=True, **how)
    trace = Trace()
    with open_script(SCRIPT) as engine:
        completion = engine.generate([1, 2, 3], config, trace=trace)
        assert (completion.token_ids, completion.finish_reason) == plain_tokens(SCRIPT, [1, 2, 3], engine.settings(config), 64)
    check_counts(completion, plain=False)
    assert {r.proposed for r in trace.rounds} >= {0, 2}
    assert max(r.proposed for r in trace.rounds) == 2
    assert completion.stats.accepted > 0


def test_rejection_sampling_takes_a_proposal_that_was_not_drawn(open_script: OpenScript) -> None:
    config = GenerationConfig(
        mode="lookup", exit="fixed", sampling="rejection", temperature=1.0, seed=5, max_new_tokens=50, ignore_eos=True
    )
    with open_script(SCRIPT) as engine:
        completion = engine.generate([1, 2, 3], config)
    check_counts(completion, plain=False)
    assert 0 < completion.stats.accepted < completion.stats.proposed


def settings_of(**how: Any) -> DecodeSettings:
    return complete(GenerationConfig.from_mapping({"temperature": 1.0, "seed": 0, **how}), CheckpointDefaults(), None)


@pytest.mark.parametrize("proposed", [0, 1, 2])
def test_the_law_of_rejection_sampling_is_the_targets_whatever_was_proposed(proposed: int) -> None:
    """By enumeration: accept with the target's probability, else draw from the rest: the target's law."""
    target = Distribution(np.arange(3), np.array([0.5, 0.3, 0.2]))
    draft = point_mass(proposed)
    accept, left = accept_probability(proposed, target, draft), residual(target, draft)
    law = {int(i): (1 - accept) * float(p) for i, p in zip(left.ids, left.probs, strict=True)}
    law[proposed] = law.get(proposed, 0.0) + accept
    assert law == pytest.approx({0: 0.5, 1: 0.3, 2: 0.2})


def test_rejection_sampling_follows_that_arithmetic_draw_by_draw() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=np.float32))
    candidates = [filtered(row, settings_of()) for row in logits]
    rows = [Distribution(ids, probabilities(weights)) for ids, weights in candidates]
    for token, first, second in itertools.product(range(3), (0.05, 0.25, 0.4, 0.9), (0.1, 0.5, 0.8)):
        acceptance = RejectionAcceptance(settings_of(sampling="rejection"))
        numbers = iter((first, second))
        acceptance._random = type("Dice", (), {"random": lambda _self, n=numbers: next(n)})()
        emitted = acceptance.accept(step_of(logits), proposal_of([token]), 0).emitted
        if first < rows[0].prob(token):
            assert emitted == [token, draw(rows[1], second)]
        else:
            assert emitted == [draw(residual(rows[0], point_mass(token)), second)]


def test_a_rule_of_one_s_own_is_stored_in_an_artifact_and_used(open_script: OpenScript) -> None:
    trace = Trace()
    with open_script(SCRIPT, stopping=TwoRule(max_draft=9)) as engine:
        assert engine.settings().stopping == TwoRule(max_draft=9, tokens=2)
        engine.generate([1, 2, 3], GenerationConfig(max_new_tokens=50, ignore_eos=True), trace=trace)
    assert max(r.proposed for r in trace.rounds) == 2


def test_an_acceptance_rule_of_one_s_own_is_used(open_script: OpenScript) -> None:
    class Last(RejectionAcceptance):
        """Takes the last token of the vocabulary."""

        def sample(self, output: StepOutput, position: int) -> int:
            return SCRIPT.vocab - 1

    ACCEPTANCE_RULES.register("last", Last)
    try:
        with open_script(SCRIPT) as engine:
            config = GenerationConfig(mode="plain", sampling="last", temperature=1.0, max_new_tokens=5, ignore_eos=True)
            assert engine.generate([1, 2, 3], config).token_ids == [SCRIPT.vocab - 1] * 5
    finally:
        ACCEPTANCE_RULES.remove("last")


def test_a_name_that_is_not_registered_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode must be one of plain, speculative, ngram, auto, lookup, found 'lookupp'") as caught:
        GenerationConfig(mode="lookupp")
    assert caught.value.hint == "did you mean 'lookup'?"
    with pytest.raises(ValueError, match="registered already"):
        PROPOSERS.register("lookup", lambda: None)


class TooMuch:
    """Proposes more tokens, or more alternatives, than the sequence allows."""

    def __init__(self, tokens: int, alternatives: int) -> None:
        self._tokens, self._alternatives = tokens, alternatives

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Returns too much."""
        proposal = Proposal()
        for _ in range(limit + self._tokens):
            proposal.append(1, "much")
        proposal.alternatives = [Alternative(0, n) for n in range(self._alternatives)]
        return proposal
        yield  # a generator without passes

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Learns nothing."""


@pytest.mark.parametrize(("tokens", "alternatives"), [(1, 0), (0, 16)])
def test_a_proposal_beyond_the_limits_is_refused_before_its_pass(open_script: OpenScript, tokens: int, alternatives: int) -> None:
    PROPOSERS.register("much", lambda _parts: TooMuch(tokens, alternatives))
    told = rf"'much': a proposer may propose at most 15 tokens .* proposed {15 + tokens} and {alternatives}"
    sound = GenerationConfig(temperature=0.0, max_new_tokens=5, ignore_eos=True)
    try:
        with open_script(SCRIPT) as engine:
            with pytest.raises(ValueError, match=told):
                engine.generate([1, 2, 3], GenerationConfig(mode="much", temperature=0.0, max_new_tokens=40))
            assert engine.generate([1, 2, 3], sound).finish_reason == "length"
    finally:
        PROPOSERS.remove("much")
