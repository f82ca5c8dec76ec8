"""Texts end at EOS, a stop string, the length limit or the context limit, at any place in a round.

Every mode and stopping rule ends them alike.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime import Completion, ConfigError, ContextOverflowError, GenerationConfig
from ssruntime.engine import Engine, load
from tests.runtime.conftest import OpenScript
from tests.runtime.counts import check_counts
from tests.runtime.scripted import EOS, Script, every_byte, phrase_table, pieces, random_script, write_artifact

# The scripted text "say: one ENDING, two ENOUGHxx", in tokens that split "END" and "ENDING" in several ways.
PIECES = ["</s>", "<eot>", "say:", " ", "one", "E", "N", "D", "IN", "G,", "two", "EN", "OUGH", "x", "END"]
PHRASE = [3, 4, 3, 5, 6, 7, 8, 9, 3, 10, 3, 11, 12, 13, 13]
EVERY_WAY = [
    GenerationConfig(mode="plain"),
    *(GenerationConfig(exit="fixed", max_draft=k) for k in (1, 2, 3, 4, 5, 8, 15)),
    GenerationConfig(exit="confidence", exit_threshold=0.5),
    GenerationConfig(exit="confidence", exit_threshold=1.0),
    GenerationConfig(exit="adaptive"),
]


@pytest.fixture(scope="session")
def phrase_engine(open_script: OpenScript) -> Engine:
    """An engine that emits PHRASE, over and over, after the one-token prompt [2]; its draft is equal."""
    table = phrase_table(PHRASE, vocab=len(PIECES))
    return open_script(Script(verify=table, draft=table), tokenizer=pieces(PIECES), max_context=64, generation={"eos_token_id": [0, 1]})


def complete(engine: Engine, prompt: list[int] | str, how: GenerationConfig, **changes: object) -> Completion:
    """Returns the completion with some settings changed, after a check of its counters."""
    completion = engine.generate(prompt, GenerationConfig.from_mapping({**dataclasses.asdict(how), **changes}))
    check_counts(completion, plain=how.mode == "plain")
    return completion


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize(
    ("stop", "text", "last"),
    [
        (["END"], " one ", 6),  # token "D" completes it, in the middle of an accepted block
        (["ENDING"], " one ", 8),  # only half of token "G," belongs to it; that token stays in token_ids
        (["ENDI"], " one ", 7),
        (["NOT", "ING,"], " one END", 8),
        (["never", "ENDING, two EN"], " one ", 12),
        (["EN", "END"], " one ", 5),
        ([" two"], " one ENDING,", 10),
        (["ENO"], " one ENDING, two ", 13),
    ],
)
def test_a_stop_string_ends_the_text_and_is_left_out(
    phrase_engine: Engine, how: GenerationConfig, stop: list[str], text: str, last: int
) -> None:
    completion = complete(phrase_engine, [2], how, stop=stop, max_new_tokens=15)
    assert completion.text == text
    assert completion.finish_reason == "stop"
    assert completion.token_ids == PHRASE[:last]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_a_stop_string_that_is_never_completed_withholds_nothing(phrase_engine: Engine, how: GenerationConfig) -> None:
    completion = complete(phrase_engine, [2], how, stop=["ENOUGHxx!", "xxE"], max_new_tokens=15)
    assert (completion.text, completion.finish_reason) == (" one ENDING, two ENOUGHxx", "length")


@pytest.mark.parametrize("how", EVERY_WAY)
def test_a_stop_string_that_begins_in_the_prompt_is_not_found(phrase_engine: Engine, how: GenerationConfig) -> None:
    completion = complete(phrase_engine, [2], how, stop=["say: one"], max_new_tokens=4)
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 15])
def test_the_length_limit_ends_the_text_after_that_many_tokens(phrase_engine: Engine, how: GenerationConfig, limit: int) -> None:
    completion = complete(phrase_engine, [2], how, max_new_tokens=limit)
    assert completion.token_ids == PHRASE[:limit]
    assert completion.finish_reason == "length"
    assert completion.stats.discarded == 0
    if limit == 1:
        assert (completion.stats.rounds, completion.stats.emitted, completion.stats.tokens_per_second()) == (0, 0, None)


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize("token", [0, 1])
def test_eos_ends_the_text_at_any_place_in_a_round(open_script: OpenScript, how: GenerationConfig, at: int, token: int) -> None:
    phrase = [3, 4, 5, 6, 7, 8, 9, 10, 11]
    phrase[at] = token
    engine = _engine_of_phrase(open_script, tuple(phrase))
    completion = complete(engine, [2], how, max_new_tokens=30)
    assert completion.token_ids == phrase[: at + 1]
    assert completion.finish_reason == "eos"
    assert completion.text == "".join(PIECES[t] for t in phrase[:at])
    ignoring = complete(engine, [2], how, max_new_tokens=30, ignore_eos=True)
    assert ignoring.finish_reason == "length"
    assert ignoring.token_ids == (phrase * 4)[:30]


_phrase_engines: dict[tuple[int, ...], Engine] = {}


def _engine_of_phrase(open_script: OpenScript, phrase: tuple[int, ...]) -> Engine:
    if phrase not in _phrase_engines:
        table = phrase_table(phrase, vocab=len(PIECES))
        _phrase_engines[phrase] = open_script(
            Script(verify=table, draft=table), tokenizer=pieces(PIECES), generation={"eos_token_id": [0, 1]}
        )
    return _phrase_engines[phrase]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_eos_and_stop_strings_take_precedence_over_the_length_limit(
    phrase_engine: Engine, open_script: OpenScript, how: GenerationConfig
) -> None:
    assert complete(_engine_of_phrase(open_script, (3, 4, 0)), [2], how, max_new_tokens=3).finish_reason == "eos"
    assert complete(phrase_engine, [2], how, max_new_tokens=6, stop=["END"]).finish_reason == "stop"


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("length", [1, 30, 50, 61, 62, 63])
def test_the_context_limit_does_not_depend_on_the_mode(phrase_engine: Engine, how: GenerationConfig, length: int) -> None:
    completion = complete(phrase_engine, [2] * length, how, max_new_tokens=1000)
    assert completion.finish_reason == "context"
    assert len(completion.token_ids) == 64 - length
    assert completion.token_ids == [PHRASE[(length - 1 + i) % len(PHRASE)] for i in range(64 - length)]
    exact = complete(phrase_engine, [2] * length, how, max_new_tokens=64 - length)
    assert (exact.finish_reason, exact.token_ids) == ("length", completion.token_ids)


@pytest.mark.parametrize("length", [64, 65, 1000])
def test_a_prompt_that_leaves_no_room_is_refused(phrase_engine: Engine, length: int) -> None:
    with pytest.raises(ContextOverflowError, match=f"the prompt has {length} tokens, and the context of 64") as caught:
        phrase_engine.generate([2] * length)
    assert "max_context" in caught.value.hint
    with pytest.raises(ContextOverflowError):  # raised before the first chunk is requested
        phrase_engine.stream([2] * length)


def test_a_larger_context_is_advised_only_where_the_artifact_allows_it(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "artifact", random_script(8, vocab=5), max_context=64)
    for max_context, advised in ((32, True), (64, False)):
        with load(folder, threads=1, max_context=max_context) as engine, pytest.raises(ContextOverflowError) as caught:
            engine.generate([2] * max_context)
        assert ("load with a larger max_context (at most 64 here)" in caught.value.hint) is advised


def test_special_tokens_add_no_text(open_script: OpenScript) -> None:
    engine = _engine_of_phrase(open_script, (3, 1, 4, 0, 0, 4))
    completion = complete(engine, [2], GenerationConfig(), ignore_eos=True, max_new_tokens=6)
    assert completion.text == " oneone"


@settings(max_examples=60)
@given(
    data=st.lists(st.sampled_from(["a", "é", "€", "😀", "\udcff", "b"]), min_size=1, max_size=12),
    how=st.sampled_from(EVERY_WAY),
    stop=st.sampled_from([(), ("b",), ("€",), ("é😀",)]),
)
def test_chunks_add_up_to_the_text_and_contain_no_half_characters(
    open_script: OpenScript, data: list[str], how: GenerationConfig, stop: tuple[str, ...]
) -> None:
    """Each byte is one token. A lone 0xFF byte (written as a surrogate escape here) is invalid UTF-8."""
    encoded = "".join(data).encode("utf-8", "surrogateescape")
    table = phrase_table([b + 2 for b in encoded], vocab=258, sharpness=30.0)
    with open_script(Script(verify=table, draft=table), tokenizer=every_byte(), max_context=128) as engine:
        config = dataclasses.replace(how, max_new_tokens=len(encoded), stop=stop, temperature=0.0)
        whole = engine.generate([99], config)
        chunks = list(engine.stream([99], config))
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks for t in c.token_ids] == whole.token_ids
    assert [c.finish_reason for c in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]
    assert [c.stats is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all(c.token_ids for c in chunks)
    shown = encoded.decode("utf-8", "replace")
    cut = min((shown.find(s) for s in stop if s in shown), default=len(shown))
    assert whole.text == shown[:cut].rstrip("\ufffd") if cut == len(shown) else whole.text == shown[:cut]
    if "\udcff" not in data:
        assert "\ufffd" not in whole.text
        assert all("\ufffd" not in c.text for c in chunks)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), stop=st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3), how=st.sampled_from(EVERY_WAY))
def test_stop_strings_end_random_text_where_they_are_first_completed(
    letter_engine: Engine, seed: int, stop: list[str], how: GenerationConfig
) -> None:
    config = dataclasses.replace(how, seed=seed, temperature=1.0, max_new_tokens=40, ignore_eos=True)
    free = letter_engine.generate([1], config)
    stopped = letter_engine.generate([1], dataclasses.replace(config, stop=tuple(stop)))
    ends = sorted((at + len(s), at) for s in stop if (at := free.text.find(s)) >= 0)
    assert stopped.text == (free.text[: ends[0][1]] if ends else free.text)
    assert stopped.finish_reason == ("stop" if ends else "length")
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    check_counts(stopped, plain=how.mode == "plain")
    chunks = list(letter_engine.stream([1], dataclasses.replace(config, stop=tuple(stop))))
    assert "".join(c.text for c in chunks) == stopped.text
    assert all(len(a.text) <= 40 for a, _ in pairwise(chunks))


@pytest.fixture(scope="session")
def letter_engine(open_script: OpenScript) -> Engine:
    return open_script(LETTERS)


LETTERS = random_script(8, vocab=5, scale=0.5)


# Tokens that end the text, a minimum length, and special tokens in the text


@pytest.mark.parametrize("how", EVERY_WAY)
def test_a_stop_token_ends_the_text_and_is_the_last_of_its_ids(phrase_engine: Engine, how: GenerationConfig) -> None:
    stopped = complete(phrase_engine, [2], how, stop_token_ids=[8, 12], max_new_tokens=40)
    assert (stopped.token_ids, stopped.finish_reason, stopped.text) == (PHRASE[:7], "stop", " one ENDIN")


def test_stop_tokens_that_cannot_be_are_refused(phrase_engine: Engine) -> None:
    with pytest.raises(ConfigError, match="stop_token_ids: 15 is not a token id"):
        phrase_engine.settings(GenerationConfig(stop_token_ids=(15,)))
    with pytest.raises(ConfigError, match="every token ends the text"):
        phrase_engine.settings(GenerationConfig(stop_token_ids=tuple(range(2, 15)), min_new_tokens=1))
    with pytest.raises(ConfigError, match="min_new_tokens 9 is more than max_new_tokens 8"):
        phrase_engine.settings(GenerationConfig(min_new_tokens=9, max_new_tokens=8))


@pytest.fixture(scope="session")
def eager_engine(open_script: OpenScript) -> Engine:
    """An engine that prefers to end the text, and else writes `a` and `<tool>` in turns."""
    table = np.zeros((1, 4, 4), dtype=np.float32)
    table[0, :, 0], table[0, 1, 2], table[0, 2, 1], table[0, 3, 2] = 30.0, 15.0, 15.0, 15.0
    return open_script(Script(verify=table, draft=table), tokenizer=pieces(["</s>", "a", "<tool>", "b"]), max_context=64)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("how", EVERY_WAY)
def test_no_token_ends_the_text_before_its_minimum_length(eager_engine: Engine, how: GenerationConfig, temperature: float) -> None:
    for shortest in (0, 1, 2, 6, 20):
        found = complete(eager_engine, [3], how, min_new_tokens=shortest, max_new_tokens=40, temperature=temperature)
        expected = [2, 1] * 20
        assert found.token_ids == [*expected[: max(0, shortest - 1)], 0]
        assert (found.text, found.finish_reason) == ("a" * (max(0, shortest - 1) // 2), "eos")
    shown = complete(eager_engine, [3], how, min_new_tokens=4, temperature=temperature, skip_special_tokens=False)
    assert shown.text == "<tool>a<tool></s>"
    stopped = complete(eager_engine, [3], how, min_new_tokens=20, temperature=temperature, stop=["a<tool>"])
    assert (stopped.text, stopped.finish_reason) == ("", "stop")


@pytest.mark.parametrize("sampling", ["coupled", "rejection"])
@pytest.mark.parametrize("mode", ["plain", "speculative"])
def test_a_minimum_length_leaves_the_odds_of_the_other_tokens(letter_engine: Engine, mode: str, sampling: str) -> None:
    """The first token has the model's distribution without the end token."""
    counts = np.zeros(5)
    for seed in range(1500):
        how = GenerationConfig(mode=mode, sampling=sampling, temperature=1.0, seed=seed, min_new_tokens=3, max_new_tokens=3)
        counts[letter_engine.generate([1], how).token_ids[1]] += 1
    weights = np.exp(np.float64(LETTERS.verify))
    weights[:, :, EOS] = 0
    probs = weights / weights.sum(axis=2, keepdims=True)
    expected = probs[0, 1] @ probs[1]
    assert counts[EOS] == 0
    assert abs(counts / counts.sum() - expected).max() < 0.055
