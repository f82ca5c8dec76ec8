"""The invariants of a completion's counters (rounds, proposed, accepted, emitted and so on)."""

from __future__ import annotations

from ssruntime import Completion


def check_counts(completion: Completion, *, plain: bool) -> None:
    """Asserts the invariants.

    Args:
        completion: result of a request.
        plain: whether it was decoded autoregressively (mode `plain`), without rounds.
    """
    stats, count = completion.stats, len(completion.token_ids)
    assert count >= 1
    assert count == 1 + stats.emitted - stats.discarded
    if plain:
        assert stats.rounds == stats.proposed == stats.accepted == stats.discarded == stats.alternatives == 0
        assert stats.emitted == count - 1
    else:
        assert stats.emitted == stats.accepted + stats.rounds - stats.withheld
        assert 0 <= stats.accepted <= stats.proposed
        assert 0 <= stats.withheld <= stats.alternatives_accepted <= min(stats.alternatives, stats.accepted, stats.rounds)
    shown = stats.to_json()
    if count == 1:
        assert shown["tokens_per_second"] is None
    else:
        assert shown["tokens_per_second"] == (count - 1) / stats.decode_s
    counts = {"rounds", "proposed", "accepted", "alternatives", "alternatives_accepted", "withheld", "emitted", "discarded"}
    assert set(shown) == {*counts, "cached_tokens", "prefill_s", "decode_s", "tokens_per_second"}
    assert 0 <= stats.cached_tokens < completion.prompt_tokens
    assert 0 <= stats.engine_s <= stats.decode_s
