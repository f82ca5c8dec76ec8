"""Streamed text has whole characters and all spaces, stop strings are found, and no tokens raise an error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ssruntime.text.incremental import IncrementalText
from ssruntime.text.output import OutputText
from ssruntime.text.stop import StopScanner
from tests.runtime.scripted import byte_fallback, byte_level, every_byte, pieces

EVERY_BYTE = every_byte()
FALLBACK = byte_fallback()
MERGED = byte_level({"</s>": 0, "<s>": 1, "a": 2, "Ġ": 3, "Ã": 4, "©": 5, "aÃ": 6, "©b": 7, "ðŁĺĢ": 8, "ENDÃ": 9}, ["</s>", "<s>"])
TOKENIZERS = {"bytes": EVERY_BYTE, "fallback": FALLBACK, "merged": MERGED}


def stream(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> tuple[list[str], str]:
    """Returns the text that each token completes, and the rest at the end."""
    text = IncrementalText(tokenizer, prompt)
    return [text.push(t) for t in tokens], text.finish()


def byte_tokens(text: str) -> list[int]:
    """Returns the tokens of the UTF-8 bytes; `EVERY_BYTE` and `FALLBACK` have the same ids for them."""
    return [b + 2 for b in text.encode()]


@settings(max_examples=400)
@given(st.data(), st.sampled_from(sorted(TOKENIZERS)))
def test_no_token_sequence_raises_an_error(data: st.DataObject, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = st.integers(0, tokenizer.get_vocab_size() + 3)  # padded vocabularies have ids without a token
    prompt = data.draw(st.lists(ids, min_size=1, max_size=12))
    tokens = data.draw(st.lists(ids, max_size=90))
    shown, rest = stream(tokenizer, prompt, tokens)
    # Later tokens do not change the text that was already shown.
    again, _ = stream(tokenizer, prompt, tokens[: len(tokens) // 2])
    assert again == shown[: len(again)]
    assert not rest.endswith("\ufffd")


valid_text = st.text(st.sampled_from("ab é€😀ñ\n\u0301"), max_size=30)


@settings(max_examples=300)
@given(valid_text, valid_text, st.integers(0, 3), st.sampled_from(["bytes", "fallback"]))
@example("", "😀😀😀😀", 0, "fallback")
@example("😀😀", "€€€", 2, "fallback")
def test_valid_bytes_are_shown_as_soon_as_they_complete_a_character(before: str, after: str, held: int, name: str) -> None:
    """The prompt ends with the first `held` bytes; a character begun there is shown once it is complete."""
    tokenizer, encoded = TOKENIZERS[name], byte_tokens(after)
    before = "a" + before  # byte fallback's decoder drops a space at the very start of a text
    held = min(held, len(encoded))
    shown, rest = stream(tokenizer, [1, *byte_tokens(before), *encoded[:held]], encoded[held:])
    data = after.encode()
    whole = data[:held].decode("utf-8", "ignore")
    assert "".join(shown) + rest == after[len(whole) :]
    for index, piece in enumerate(shown):
        already = data[: held + index].decode("utf-8", "ignore")
        assert piece == data[: held + index + 1].decode("utf-8", "ignore")[len(already) :]


@settings(max_examples=200)
@given(st.lists(st.sampled_from([258, 259, 260, 261, 262, 263, 264, *byte_tokens("ab€")]), max_size=40), st.booleans())
def test_streamed_text_equals_the_decoding_of_all_tokens(tokens: list[int], after_word: bool) -> None:
    """Mixes byte tokens with words that have leading spaces.

    Texts with a broken character are not compared: the parts around it may be split differently.
    """
    prompt = [1, 261] if after_word else [0]
    shown, rest = stream(FALLBACK, prompt, tokens)
    whole = FALLBACK.decode([*prompt, *tokens])
    if "\ufffd" not in whole:
        assert "".join(shown) + rest == whole[len(FALLBACK.decode(prompt)) :]


def test_spaces_between_words_are_kept() -> None:
    the, a = 262, 261
    assert stream(FALLBACK, [0, the], [the, the, a])[0] == [" the", " the", " a"]
    assert stream(FALLBACK, [0], [the, the])[0] == ["the", " the"]
    # with any number of special tokens in between
    for count in (1, 2, 5, 100):
        shown, rest = stream(FALLBACK, [0, the], [*[1] * count, the])
        assert "".join(shown) + rest == " the"
        shown, rest = stream(FALLBACK, [0, the], [the, *[1] * count, the, *[1] * count, a])
        assert "".join(shown) + rest == " the the a"


def test_a_real_tokenizer_streams_the_text_that_it_encoded(demo_tokenizer: Tokenizer) -> None:
    text = "def area(radius):\n    return 3.14 * radius ** 2  # πr², naïve 😀😀😀 家族\n\n\tx = [1, 2]"
    ids = demo_tokenizer.encode(text).ids
    for cut in range(1, len(ids)):
        shown, rest = stream(demo_tokenizer, ids[:cut], ids[cut:])
        before = demo_tokenizer.decode(ids[:cut])
        assert "".join(shown) + rest == text[len(before.rstrip("\ufffd")) :]


@pytest.fixture(scope="module")
def demo_tokenizer() -> Tokenizer:
    from tests.conftest import DEMO_MODEL

    return Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))


def test_invalid_bytes_become_replacement_characters_and_later_text_is_shown() -> None:
    lone = 0xFF + 2
    # With byte fallback, one invalid byte invalidates its whole run of byte tokens, so the run must end with
    # another kind of token.
    for tokenizer, a_and_b in ((EVERY_BYTE, byte_tokens("ab")), (FALLBACK, [259, 260])):
        shown, rest = stream(tokenizer, [1, a_and_b[0]], [lone, *a_and_b])
        assert "".join(shown) + rest == "\ufffdab"
        # A long run is shown in parts, and the text after it is complete.
        shown, rest = stream(tokenizer, [1, a_and_b[0]], [lone] * 200 + a_and_b)
        assert "".join(shown) + rest == "\ufffd" * 200 + "ab"
        assert any(shown[:100])
        # An incomplete character at the end is not shown at all.
        shown, rest = stream(tokenizer, [1, a_and_b[0]], [a_and_b[0], *byte_tokens("€")[:-1]])
        assert "".join(shown) + rest == "a"


words = st.text("abc", min_size=1, max_size=4)


def reference_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Returns the text before the stop string that is complete first, and whether there is one.

    If several are complete at the same place, the longest counts.
    """
    ends = sorted((at + len(s), at) for s in stops if (at := text.find(s)) >= 0)
    return (text[: ends[0][1]], True) if ends else (text, False)


@settings(max_examples=400)
@given(st.text("abcd", max_size=30), st.lists(words, max_size=4), st.lists(st.integers(0, 30), max_size=12))
def test_stop_strings_are_found_however_the_text_is_split(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, stopped = reference_stop(text, stops)
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    for parts in ([text[a:b] for a, b in itertools.pairwise(bounds)], list(text), [text]):
        scanner, shown = StopScanner(stops), ""
        for part in parts:
            shown += scanner.push(part)
            # No part of a stop string is shown. Text is held back only if a stop string can begin with it.
            assert expected.startswith(shown)
            assert all(len(scanner._held) < len(s) for s in stops) or any(s.startswith(scanner._held) for s in stops)
        if not scanner.stopped:
            shown += scanner.finish()
        assert (shown, scanner.stopped) == (expected, stopped)
        assert scanner.push("more") == "" if stopped else True


@pytest.mark.parametrize("lazy", [True, False])
def test_output_text_does_not_depend_on_when_it_is_taken(lazy: bool) -> None:
    tokenizer = pieces(["</s>", "a", "b", "END", "E", "ND", "x"])
    for stops, tokens, text, at in [
        ([], [1, 2, 3], "abEND", None),
        (["END"], [1, 2, 3], "ab", 2),
        (["END"], [1, 4, 5, 6], "a", 2),
        (["END"], [1, 4, 6], "aEx", None),
        (["END"], [1, 4], "aE", None),
        (["aE", "b"], [2, 1], "", 0),
    ]:
        output, shown, stopped_at, waiting = output_text(tokenizer, stops), "", None, []
        for index, token in enumerate(tokens):
            waiting.append(token)
            if output.has_stops and output.push(token):
                stopped_at = index
                break
            if not lazy:
                shown += output.take(waiting)
                waiting.clear()
        assert (shown + output.finish(waiting), stopped_at) == (text, at)


def output_text(tokenizer: Tokenizer, stops: list[str], *, skip_special_tokens: bool = True) -> OutputText:
    """Returns the empty text of a request whose prompt is token 6; `</s>` and `<eot>` are special tokens."""
    special = {t: s for s in ("</s>", "<eot>") if (t := tokenizer.token_to_id(s)) is not None}
    return OutputText(tokenizer, [6], stops=stops, special_tokens=special, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("stop", "shown", "hidden"),
    [
        ("<eot>", "a", ""),
        ("a<eot>", "", ""),
        ("<eot>b", "a", ""),
        ("eot", "a", "<"),
        ("<eot>a", "abb", "<eot>"),
        ("t>bb", "a", "<eo"),
        ("abb", "", None),
        ("ab<", "abb", "<eot>"),
    ],
)
def test_stop_strings_may_include_special_tokens_whether_shown_or_not(stop: str, shown: str, hidden: str | None, skip: bool) -> None:
    """The tokens are a, <eot>, b and b. `hidden` is the part of <eot> before the stop string.

    It is None where only the text without special tokens has the stop string.
    """
    tokenizer = pieces(["</s>", "a", "b", "x"])
    tokenizer.add_special_tokens(["<eot>"])
    special = tokenizer.token_to_id("<eot>")
    output = output_text(tokenizer, [stop], skip_special_tokens=skip)
    stopped = [output.push(token) for token in (1, special, 2, 2)]
    if hidden is None and not skip:
        shown, hidden = "abb", "<eot>"
    assert output.finish() == (shown if skip else shown[:1] + (hidden or "") + shown[1:])
    assert any(stopped) == (stop in "a<eot>bb" or (skip and stop in "abb"))
