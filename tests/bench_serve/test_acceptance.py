"""Acceptance comes from responses where they say it, else from the difference of the server's counters."""

from __future__ import annotations

import pytest

from sstool.bench_serve.acceptance import Speculation, difference, read_counters, read_speculation, sum_responses

PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="a } b\\" c"} 10.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 5.0 1712345678000
vllm:spec_decode_num_drafts_created{engine="0"} 1.7e+09
vllm:spec_decode_num_draft_tokens_total 4.5e+01
vllm:spec_decode_num_accepted_tokens_total{} 30
vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 15.0
"""
OBJECT = {
    "mean_acceptance_length": 3.0,
    "draft_acceptance_rate": 0.5,
    "acceptance_histogram": [1, 0, 2],
    "num_spec_steps": 3,
    "num_draft_tokens": 8,
    "num_accepted_draft_tokens": 4,
}


def test_counters_are_summed_over_labels() -> None:
    assert read_counters(PAGE) == {"num_drafts": 15.0, "num_draft_tokens": 45.0, "num_accepted_tokens": 30.0}


@pytest.mark.parametrize("page", ["", "<html>", PAGE.replace("4.5e+01", "many"), PAGE.replace("num_drafts_total{", "others_total{")])
def test_a_page_without_the_counters_gives_none(page: str) -> None:
    assert read_counters(page) is None


def test_the_difference_of_counters() -> None:
    before = {"num_drafts": 10.0, "num_draft_tokens": 40.0, "num_accepted_tokens": 20.0}
    after = {"num_drafts": 14.0, "num_draft_tokens": 52.0, "num_accepted_tokens": 26.0}
    found = difference(before, after)
    assert found is not None
    assert (found.source, found.num_drafts, found.num_draft_tokens, found.num_accepted_draft_tokens) == ("metrics", 4, 12, 6)
    assert (found.mean_acceptance_length, found.draft_acceptance_rate) == (2.5, 0.5)
    assert found.acceptance_histogram is None
    assert difference(after, before) is None
    assert difference(before, before) is None
    assert difference(None, after) is None
    assert difference(before, None) is None


def test_a_response_s_object() -> None:
    found = read_speculation({"metrics": {"speculative_decoding": OBJECT}})
    assert found == Speculation(num_drafts=3, num_draft_tokens=8, num_accepted=4, histogram=(1, 0, 2))


@pytest.mark.parametrize(
    ("histogram", "expected"),
    [({"0": 1, "2": 2}, (1, 0, 2)), ({}, ()), (None, None), ([1, -1], None), ([True], None), ({"x": 1}, None), ("101", None)],
)
def test_forms_of_a_histogram(histogram: object, expected: object) -> None:
    found = read_speculation({"metrics": {"speculative_decoding": {**OBJECT, "acceptance_histogram": histogram}}})
    assert found is not None
    assert found.histogram == expected


@pytest.mark.parametrize(
    "metrics", [None, 1, {}, {"speculative_decoding": None}, {"speculative_decoding": {**OBJECT, "num_spec_steps": "3"}}]
)
def test_what_is_no_such_object_is_none(metrics: object) -> None:
    assert read_speculation({"metrics": metrics}) is None


def test_responses_are_summed_and_not_averaged() -> None:
    found = sum_responses(
        [
            Speculation(num_drafts=3, num_draft_tokens=8, num_accepted=4, histogram=(1, 0, 2)),
            Speculation(num_drafts=1, num_draft_tokens=2, num_accepted=0, histogram=(1,)),
            Speculation(num_drafts=0, num_draft_tokens=0, num_accepted=0, histogram=()),
        ]
    )
    assert found is not None
    assert (found.source, found.mean_acceptance_length, found.draft_acceptance_rate) == ("responses", 2.0, 0.4)
    assert found.acceptance_histogram == (2, 0, 2)


def test_a_histogram_of_some_responses_is_none() -> None:
    found = sum_responses(
        [
            Speculation(num_drafts=1, num_draft_tokens=0, num_accepted=0, histogram=(1,)),
            Speculation(num_drafts=1, num_draft_tokens=0, num_accepted=0),
        ]
    )
    assert found is not None
    assert (found.acceptance_histogram, found.draft_acceptance_rate) == (None, None)


def test_no_draft_is_no_acceptance() -> None:
    assert sum_responses([Speculation(num_drafts=0, num_draft_tokens=0, num_accepted=0)]) is None
