"""A finalist's speed-up and its confidence interval weight the kinds of text by their shares."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ssruntime.results import DecodeStats
from sstool.bench.summary import Sample, weighted_interval
from sstool.search.finals.head_to_head import TimedDraft
from sstool.search.settings import GREEDY, SAMPLED


def timed_draft(seconds: dict[str, list[float]]) -> TimedDraft:
    """Returns a draft that decoded 10 tokens of each prompt in these seconds.

    Args:
        seconds: by kind of text, seconds of each prompt's run; 0 for a prompt without a run of that kind.
    """
    samples = {kind: [sample(place, each) for place, each in enumerate(times) if each] for kind, times in seconds.items()}
    return TimedDraft(None, cast("Any", None), samples=samples)


def sample(place: int, seconds: float) -> Sample:
    stats = DecodeStats(rounds=0, proposed=0, accepted=0, emitted=10, discarded=0, prefill_s=0.0, decode_s=seconds, engine_s=0.0)
    return Sample(prompt_id=str(place), index=place, repeat=0, mode="", stats=stats, identical=None)


def test_kinds_of_text_are_weighted_by_their_shares() -> None:
    plain = timed_draft({SAMPLED: [2.0] * 6, GREEDY: [2.0, 0, 2.0, 0, 2.0, 0]})
    draft = timed_draft({SAMPLED: [1.0] * 6, GREEDY: [4.0, 0, 4.0, 0, 4.0, 0]})
    for share, expected in ((1.0, 2.0), (0.0, 0.5), (0.75, 2 / 1.75)):
        shares = {kind: part for kind, part in ((SAMPLED, share), (GREEDY, 1 - share)) if part}
        speedup = plain.seconds_per_token(shares) / draft.seconds_per_token(shares)
        assert speedup == pytest.approx(expected)
        interval = weighted_interval(plain.samples, draft.samples, shares)
        assert interval is not None
        assert interval == pytest.approx((expected, expected))


def test_differences_between_prompts_widen_the_interval() -> None:
    plain = timed_draft({SAMPLED: [2.0] * 8})
    draft = timed_draft({SAMPLED: [1.0, 2.0] * 4})
    interval = weighted_interval(plain.samples, draft.samples, {SAMPLED: 1.0})
    assert interval is not None
    low, high = interval
    assert 1.0 <= low < plain.seconds_per_token({SAMPLED: 1.0}) / draft.seconds_per_token({SAMPLED: 1.0}) < high <= 2.0


def test_one_prompt_gives_no_interval() -> None:
    assert weighted_interval(timed_draft({SAMPLED: [2.0]}).samples, timed_draft({SAMPLED: [1.0]}).samples, {SAMPLED: 1.0}) is None
