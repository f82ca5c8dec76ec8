"""Where texts end: EOS, stop strings, the length limit and the context, wherever in a round they fall, and the same in every mode."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime import Completion, ContextOverflowError, GenerationConfig
from ssruntime.engine import Engine
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, every_byte, phrase_table, pieces, random_script
from tests.runtime.test_decode import check_counts

# The scripted text "say: one ENDING, two ENOUGH", as tokens that cut "END" and "ENDING" in several ways.
PIECES = ["</s>", "<eot>", "say:", " ", "one", "E", "N", "D", "IN", "G,", "two", "EN", "OUGH", "x", "END"]
SAID = [3, 4, 3, 5, 6, 7, 8, 9, 3, 10, 3, 11, 12, 13, 13]
EVERY_WAY = [
    GenerationConfig(mode="plain"),
    *(GenerationConfig(exit="fixed", max_draft=k) for k in (1, 2, 3, 4, 5, 8, 15)),
    GenerationConfig(exit="confidence", exit_threshold=0.5),
    GenerationConfig(exit="confidence", exit_threshold=1.0),
    GenerationConfig(exit="adaptive"),
]


@pytest.fixture(scope="session")
def speaker(open_script: OpenScript) -> Engine:
    """Says SAID after the one-token prompt [2], then x; the draft says the same."""
    table = phrase_table(SAID, vocab=len(PIECES))
    return open_script(Script(verify=table, draft=table), tokenizer=pieces(PIECES), max_context=64, generation={"eos_token_id": [0, 1]})


def said(engine: Engine, prompt: list[int] | str, how: GenerationConfig, **changes: object) -> Completion:
    completion = engine.generate(prompt, GenerationConfig.from_mapping({**dataclasses.asdict(how), **changes}))
    check_counts(completion, plain=how.mode == "plain")
    return completion


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize(
    ("stop", "text", "last"),
    [
        (["END"], " one ", 6),  # the D token completes it, in the middle of an accepted block
        (["ENDING"], " one ", 8),  # half of token "IN" and "G," belongs to it: the token that completes it stays in token_ids
        (["ENDI"], " one ", 7),
        (["NOT", "ING,"], " one END", 8),
        (["never", "ENDING, two EN"], " one ", 12),
        (["EN", "END"], " one ", 5),
        ([" two"], " one ENDING,", 10),
        (["ENO"], " one ENDING, two ", 13),
    ],
)
def test_stop_strings(speaker: Engine, how: GenerationConfig, stop: list[str], text: str, last: int) -> None:
    completion = said(speaker, [2], how, stop=stop, max_new_tokens=15)
    assert completion.text == text
    assert completion.finish_reason == "stop"
    assert completion.token_ids == SAID[:last]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_a_stop_string_that_never_comes_holds_nothing_back(speaker: Engine, how: GenerationConfig) -> None:
    completion = said(speaker, [2], how, stop=["ENOUGHxx!", "xxE"], max_new_tokens=15)
    assert (completion.text, completion.finish_reason) == (" one ENDING, two ENOUGHxx", "length")


@pytest.mark.parametrize("how", EVERY_WAY)
def test_a_stop_string_may_not_begin_in_the_prompt(speaker: Engine, how: GenerationConfig) -> None:
    completion = said(speaker, [2], how, stop=["say: one"], max_new_tokens=4)
    assert completion.finish_reason == "length"


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 15])
def test_length_limit(speaker: Engine, how: GenerationConfig, limit: int) -> None:
    completion = said(speaker, [2], how, max_new_tokens=limit)
    assert completion.token_ids == SAID[:limit]
    assert completion.finish_reason == "length"
    assert completion.stats.discarded == 0
    if limit == 1:
        assert (completion.stats.rounds, completion.stats.emitted, completion.stats.tokens_per_second()) == (0, 0, None)


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("at", range(9))
@pytest.mark.parametrize("token", [0, 1])
def test_eos_anywhere_in_a_block(open_script: OpenScript, how: GenerationConfig, at: int, token: int) -> None:
    phrase = [3, 4, 5, 6, 7, 8, 9, 10, 11]
    phrase[at] = token
    engine = _speaker_of(open_script, tuple(phrase))
    completion = said(engine, [2], how, max_new_tokens=30)
    assert completion.token_ids == phrase[: at + 1]
    assert completion.finish_reason == "eos"
    assert completion.text == "".join(PIECES[t] for t in phrase[:at])
    going_on = said(engine, [2], how, max_new_tokens=30, ignore_eos=True)
    assert going_on.finish_reason == "length"
    assert going_on.token_ids == (phrase * 4)[:30]


_speakers: dict[tuple[int, ...], Engine] = {}


def _speaker_of(open_script: OpenScript, phrase: tuple[int, ...]) -> Engine:
    if phrase not in _speakers:
        table = phrase_table(phrase, vocab=len(PIECES))
        _speakers[phrase] = open_script(Script(verify=table, draft=table), tokenizer=pieces(PIECES), generation={"eos_token_id": [0, 1]})
    return _speakers[phrase]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_eos_wins_over_the_limit_and_the_stop_over_the_limit(speaker: Engine, open_script: OpenScript, how: GenerationConfig) -> None:
    assert said(_speaker_of(open_script, (3, 4, 0)), [2], how, max_new_tokens=3).finish_reason == "eos"
    assert said(speaker, [2], how, max_new_tokens=6, stop=["END"]).finish_reason == "stop"


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("length", [1, 30, 50, 61, 62, 63])
def test_context_limit_does_not_depend_on_the_mode(speaker: Engine, how: GenerationConfig, length: int) -> None:
    completion = said(speaker, [2] * length, how, max_new_tokens=1000)
    assert completion.finish_reason == "context"
    assert len(completion.token_ids) == 64 - length
    assert completion.token_ids == [SAID[(length - 1 + i) % len(SAID)] for i in range(64 - length)]
    exact = said(speaker, [2] * length, how, max_new_tokens=64 - length)
    assert (exact.finish_reason, exact.token_ids) == ("length", completion.token_ids)


@pytest.mark.parametrize("length", [64, 65, 1000])
def test_a_prompt_that_leaves_no_room_is_refused(speaker: Engine, length: int) -> None:
    with pytest.raises(ContextOverflowError, match=f"the prompt has {length} tokens, and the context of 64") as caught:
        speaker.generate([2] * length)
    assert "max_context" in caught.value.hint
    with pytest.raises(ContextOverflowError):  # before the first chunk is asked for
        speaker.stream([2] * length)


def test_special_tokens_leave_no_text(open_script: OpenScript) -> None:
    engine = _speaker_of(open_script, (3, 1, 4, 0, 0, 4))
    completion = said(engine, [2], GenerationConfig(), ignore_eos=True, max_new_tokens=6)
    assert completion.text == " oneone"


@settings(max_examples=60)
@given(
    data=st.lists(st.sampled_from(["a", "é", "€", "😀", "\udcff", "b"]), min_size=1, max_size=12),
    how=st.sampled_from(EVERY_WAY),
    stop=st.sampled_from([(), ("b",), ("€",), ("é😀",)]),
)
def test_streams_join_and_never_show_half_a_character(
    open_script: OpenScript, data: list[str], how: GenerationConfig, stop: tuple[str, ...]
) -> None:
    """Bytes of characters come as single tokens; a lone 0xFF byte (a surrogate escape here) is garbage."""
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
def test_stop_strings_on_random_text(letter_engine: Engine, seed: int, stop: list[str], how: GenerationConfig) -> None:
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
    return open_script(random_script(8, vocab=5, scale=0.5))
