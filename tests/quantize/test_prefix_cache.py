"""In integer precisions too, KV from the prefix cache has the bits that prefill would give it."""

from __future__ import annotations

import pytest

from ssruntime import GenerationConfig, load
from ssruntime.artifact import Artifact
from ssruntime.results import Trace


@pytest.mark.parametrize("fixture", ["demo_int8", "demo_int4"])
@pytest.mark.parametrize("mode", ["plain", "auto"])
def test_turns_of_a_chat_are_the_same_with_and_without(request: pytest.FixtureRequest, fixture: str, mode: str) -> None:
    artifact: Artifact = request.getfixturevalue(fixture)
    config = GenerationConfig(mode=mode, temperature=0.8, seed=2, max_new_tokens=40, ignore_eos=True)
    with load(artifact.folder, max_context=400) as cached, load(artifact.folder, max_context=400, prefix_cache=0) as plain:
        ids = list(range(5, 60))
        for turn in range(4):
            trace, expected = Trace(logits={}), Trace(logits={})
            found = cached.generate(ids, config, trace=trace)
            assert found.token_ids == plain.generate(ids, config, trace=expected).token_ids
            assert trace.logits is not None
            assert expected.logits is not None
            known = range(len(ids), len(ids) + len(found.token_ids))
            both = [p for p in known if p in trace.logits and p in expected.logits]
            assert len(both) == len(known)
            assert [trace.logits[p] for p in both] == [expected.logits[p] for p in both]
            assert found.stats.cached_tokens >= ((len(ids) - 24) if turn else 0)
            ids += [*found.token_ids, 7, 8, 9]
