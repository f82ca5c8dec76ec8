"""n-gram lookup: the index against a plain search, acceptance of lookups, and the text in every mode."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssruntime import GenerationConfig, Trace
from ssruntime.planning.lookup_acceptance import LookupAcceptance, RequestLookups
from ssruntime.proposers.ngram_index import LONGEST, Match, NgramIndex, continuation
from tests.runtime.conftest import OpenScript
from tests.runtime.counts import check_counts
from tests.runtime.scripted import Script, plain_tokens, random_script

SCRIPT = random_script(3, agreement=0.5, scale=1.0, history=True)


def longest(ids: list[int]) -> int:
    """Returns the length of the longest earlier occurrence of the text's end, by comparing all places."""
    best = 0
    for place in range(1, len(ids) - 1):
        length = 0
        while length < LONGEST and length <= place and ids[place - length] == ids[len(ids) - 1 - length]:
            length += 1
        best = max(best, length)
    return best if best >= 2 else 0


@given(st.lists(st.integers(0, 40), max_size=60), st.data())
def test_the_longest_match_is_found(ids: list[int], data: st.DataObject) -> None:
    index = NgramIndex()
    for end in sorted({data.draw(st.integers(0, len(ids))) for _ in range(4)}):
        found = index.find(ids[:end])
        assert (found.length if found else 0) == longest(ids[:end])
        if found:
            start = end - found.length
            assert ids[found.source - found.length : found.source] == ids[start:end]


def test_of_equal_matches_the_newest_is_taken() -> None:
    assert NgramIndex().find([1, 2, 7, 1, 2, 8, 1, 2]) == Match(length=2, source=5)
    assert NgramIndex().find([5, 1, 2, 7, 1, 2, 8, 5, 1, 2]) == Match(length=3, source=3)


def test_a_continuation_runs_on_through_its_own_loop() -> None:
    assert continuation([1, 2, 3, 1, 2, 3], 3, 7) == [1, 2, 3, 1, 2, 3, 1]
    assert continuation([9, 9, 9], 2, 4) == [9] * 4
    assert continuation([1, 2, 3, 4], 1, 2) == [2, 3]


def test_the_odds_follow_what_was_right() -> None:
    shared = LookupAcceptance(learns=True)
    one = RequestLookups(shared)
    before = one.probabilities(4, 3)
    for _ in range(50):
        one.observe(4, [7, 8, 9], [7, 8, 1])
    after = one.probabilities(4, 3)
    assert after[0] > before[0]
    assert after[2] < before[2]
    # Another request begins with what was learned, and other lengths are not touched.
    other = RequestLookups(shared).probabilities(4, 3)
    assert before[0] < other[0] <= after[0]
    assert one.probabilities(2, 3) == RequestLookups(LookupAcceptance(learns=True)).probabilities(2, 3)


def test_odds_that_do_not_learn_stay_for_the_next_request() -> None:
    shared = LookupAcceptance(learns=False)
    before = RequestLookups(shared).probabilities(4, 3)
    RequestLookups(shared).observe(4, [7], [8])
    assert RequestLookups(shared).probabilities(4, 3) == before


HOW: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 9}]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mode", ["ngram", "auto"])
def test_the_text_is_that_of_autoregressive_decoding(open_script: OpenScript, mode: str, how: dict[str, Any]) -> None:
    config = GenerationConfig(mode=mode, max_new_tokens=60, ignore_eos=True, **how)
    trace = Trace()
    with open_script(SCRIPT) as engine:
        for _ in range(3):  # the later ones know more
            completion = engine.generate([1, 2, 3, 1, 2, 3, 1, 2], config, trace=trace)
            expected = plain_tokens(SCRIPT, [1, 2, 3, 1, 2, 3, 1, 2], engine.settings(config), 64)
            assert (completion.token_ids, completion.finish_reason) == expected
            check_counts(completion, plain=False)


@pytest.mark.parametrize("mode", ["ngram", "auto"])
def test_lookups_are_as_long_as_a_draft_may_be(open_script: OpenScript, mode: str) -> None:
    trace = Trace()
    config = GenerationConfig(mode=mode, temperature=0.0, max_draft=2, max_new_tokens=40, ignore_eos=True, deterministic=True)
    looping = Script(verify=np.eye(8, dtype=np.float32)[None, (np.arange(8) + 1) % 8] * 9)
    with open_script(looping if mode == "ngram" else dataclasses.replace(looping, draft=looping.verify)) as engine:
        engine.generate(list(range(8)) * 2, config, trace=trace)
    assert max(r.proposed for r in trace.rounds) == 2


def test_ngram_needs_no_draft(open_script: OpenScript) -> None:
    config = GenerationConfig(mode="ngram", temperature=0.0, max_new_tokens=40, ignore_eos=True, deterministic=True)
    with open_script(Script(verify=SCRIPT.verify, history=True)) as engine:
        completion = engine.generate([1, 2, 3], config)
        assert completion.token_ids == plain_tokens(SCRIPT, [1, 2, 3], engine.settings(config), 64)[0]
