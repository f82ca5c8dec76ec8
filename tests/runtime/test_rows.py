"""Sequences that share engine passes get what each gets alone, whatever their lengths and positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime.backends.base import PREFILL_CHUNK, Pass, StepOutput
from ssruntime.backends.ort.backend import OrtBackend
from ssruntime.backends.ort.ragged_port import RaggedPort
from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.proposal import Alternative
from tests.kv_content import kv_content
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import random_script

SCRIPT: Final = random_script(8, vocab=24, history=True, agreement=0.6)
CONTEXT: Final = 320
ROWS: Final = 4


@pytest.fixture(scope="module")
def backend(open_script: OpenScript) -> Iterator[OrtBackend]:
    """A backend with room for `ROWS` sequences of `CONTEXT` tokens."""
    with open_script(SCRIPT, max_context=CONTEXT, max_sequences=ROWS) as engine:
        assert isinstance(engine.backend, OrtBackend)
        yield engine.backend


@pytest.fixture
def slots(backend: OrtBackend) -> Iterator[list[OrtSlot]]:
    """All slots of the backend."""
    slots = [backend.acquire(0) for _ in range(ROWS)]
    yield slots
    for slot in slots:
        backend.release(slot)


def text(row: int, length: int) -> list[int]:
    return [(5 * i + 7 * row + i * i) % SCRIPT.vocab for i in range(length)]


def expect(output: StepOutput, ids: list[int], start: int, *, last_only: bool = False) -> None:
    """Checks an output against the tables: a row for each token after `start`, or for the last one."""
    first = len(ids) - 1 if last_only else start
    np.testing.assert_array_equal(output.logits, [SCRIPT.target(ids[: at + 1]) for at in range(first, len(ids))])
    np.testing.assert_array_equal(output.tokens, output.logits.argmax(-1))
    assert output.top_tokens[:, 0].tolist() == output.tokens.tolist()


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (4, 1, 16, 2), (1, 16, 1, 1)])
def test_verify_passes_of_any_lengths_share_one_pass(
    backend: OrtBackend, slots: list[OrtSlot], monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    shared = []
    real = RaggedPort.run
    monkeypatch.setattr(RaggedPort, "run", lambda port, rows: (shared.append(len(rows)), real(port, rows))[1])
    starts = (30, 3, 250, 1)
    texts = [text(row, start + length) for row, (start, length) in enumerate(zip(starts, lengths, strict=True))]
    for slot, ids, start in zip(slots, texts, starts, strict=True):
        slot.prefill(ids[:start])
    wanted = [(slot, Pass("verify", ids[start:], start)) for slot, ids, start in zip(slots, texts, starts, strict=True)]
    for output, ids, start in zip(backend.run(wanted), texts, starts, strict=True):
        expect(output, ids, start)
    assert shared == [ROWS]
    assert all(slot.engine_seconds > 0 for slot in slots)


def test_rows_without_a_pass_keep_their_kv_cache(backend: OrtBackend, slots: list[OrtSlot]) -> None:
    for row, slot in enumerate(slots):
        slot.prefill(text(row, 10))
    before = [kv_content(slot) for slot in slots]
    ids = [text(row, 15) for row in range(ROWS)]
    outputs = backend.run([(slots[row], Pass("verify", ids[row][10:], 10)) for row in (3, 0)])
    for row, output in zip((3, 0), outputs, strict=True):
        expect(output, ids[row], 10)
    for row in (1, 2):
        for name, content in kv_content(slots[row]).items():
            np.testing.assert_array_equal(content, before[row][name])


def test_a_row_at_the_end_of_the_context_beside_a_long_prompt(backend: OrtBackend, slots: list[OrtSlot]) -> None:
    at_wall, prompt = text(0, CONTEXT), text(1, PREFILL_CHUNK)
    slots[0].prefill(at_wall[:-1])
    slots[2].prefill(text(2, 5))
    wanted = [
        (slots[0], Pass("verify", at_wall[-1:], CONTEXT - 1)),
        (slots[1], Pass("prefill", prompt, 0)),
        (slots[2], Pass("verify", text(2, 9)[5:], 5)),
    ]
    outputs = backend.run(wanted)
    expect(outputs[0], at_wall, CONTEXT - 1)
    expect(outputs[1], prompt, 0, last_only=True)
    expect(outputs[2], text(2, 9), 5)
    expect(slots[1].verify([9], PREFILL_CHUNK), [*prompt, 9], PREFILL_CHUNK)


def test_prefill_draft_and_verify_in_one_call(backend: OrtBackend, slots: list[OrtSlot]) -> None:
    for row, slot in enumerate(slots):
        slot.prefill(text(row, 8))
    alone = [slots[row].draft(text(row, 9)[8:], 8).logits.copy() for row in (0, 1)]
    wide = slots[3].draft([2, 3], 8).logits.copy()
    wanted = [
        (slots[3], Pass("draft", [2, 3], 8)),
        (slots[0], Pass("draft", text(0, 9)[8:], 8)),
        (slots[2], Pass("verify", text(2, 12)[8:], 8)),
        (slots[1], Pass("draft", text(1, 9)[8:], 8)),
    ]
    outputs = backend.run(wanted)
    np.testing.assert_array_equal(outputs[0].logits, wide)
    np.testing.assert_array_equal(outputs[1].logits, alone[0])
    np.testing.assert_array_equal(outputs[3].logits, alone[1])
    expect(outputs[2], text(2, 12), 8)


def test_token_trees_beside_chains(backend: OrtBackend, slots: list[OrtSlot]) -> None:
    trunks = [text(row, 12) for row in range(3)]
    for slot, ids in zip(slots, trunks, strict=False):
        slot.prefill(ids[:8])
    branches = [Alternative(0, 3), Alternative(0, 5), Alternative(2, 1)]
    wanted = [(slot, Pass("verify", ids[8:], 8, branches if slot is slots[1] else ())) for slot, ids in zip(slots, trunks, strict=False)]
    outputs = backend.run(wanted)
    assert [len(output.tokens) for output in outputs] == [4, 7, 4]
    for row in (0, 2):
        expect(outputs[row], trunks[row], 8)
    expect(outputs[1].head(4), trunks[1], 8)
    for at, branch in enumerate(branches):
        expect(outputs[1].tail(4 + at).head(1), [*trunks[1][: 9 + branch.depth], branch.token], 9 + branch.depth)


REFUSED: Final = {
    "two passes of one slot": (0, 0, Pass("verify", [1], 0)),
    "past the end": (0, 1, Pass("verify", [1, 2], CONTEXT - 1)),
    "before the start": (0, 1, Pass("verify", [1], -1)),
    "nothing": (0, 1, Pass("draft", [], 0)),
    "a long verify pass": (0, 1, Pass("verify", [1] * (MAX_QUERY_LENGTH + 1), 0)),
    "a long draft pass": (0, 1, Pass("draft", [1] * (MAX_QUERY_LENGTH + 1), 0)),
    "a long prompt": (0, 1, Pass("prefill", [1] * (PREFILL_CHUNK + 1), 0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pass_that_does_not_fit_stops_all_before_any_runs(backend: OrtBackend, slots: list[OrtSlot], name: str) -> None:
    first, second, wanted = REFUSED[name]
    slots[first].prefill([1, 2, 3])
    before = kv_content(slots[first])
    with pytest.raises(ValueError, match=r"context of|longer than|each slot"):
        backend.run([(slots[first], Pass("verify", [7, 8], 3)), (slots[second], wanted)])
    for key, content in kv_content(slots[first]).items():
        np.testing.assert_array_equal(content, before[key])


def test_a_slot_of_another_backend_is_refused(backend: OrtBackend, slots: list[OrtSlot], open_script: OpenScript) -> None:
    with open_script(SCRIPT, max_context=CONTEXT) as other:
        foreign = other.backend.acquire(0)
        with pytest.raises(ValueError, match="of this backend"):
            backend.run([(slots[0], Pass("verify", [1], 0)), (foreign, Pass("verify", [1], 0))])
        other.backend.release(foreign)


def test_slots_outside_the_pool_run_beside_each_other(backend: OrtBackend) -> None:
    first, second = backend.new_slot(40), backend.new_slot(60)
    outputs = backend.run([(first, Pass("prefill", text(0, 20), 0)), (second, Pass("prefill", text(1, 30), 0))])
    expect(outputs[0], text(0, 20), 0, last_only=True)
    expect(outputs[1], text(1, 30), 0, last_only=True)


def test_no_passes_give_no_outputs(backend: OrtBackend) -> None:
    assert backend.run([]) == []


@dataclass
class Told:
    """A sequence of the property test: what it has committed, and how much of it has KV."""

    ids: list[int] = field(default_factory=list)
    start: int = 0


STEPS = st.lists(
    st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(1, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=ROWS),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_any_schedule_gives_what_each_sequence_gets_alone(open_script: OpenScript, steps: list[list[tuple[int, int, int, bool]]]) -> None:
    with open_script(SCRIPT, max_context=CONTEXT, max_sequences=ROWS) as engine:
        backend = engine.backend
        slots, told = [backend.acquire(0) for _ in range(ROWS)], [Told([row + 1]) for row in range(ROWS)]
        for step in steps:
            chosen = {row: (length, kept, is_draft) for row, length, kept, is_draft in step}
            passes, news = [], []
            for row, (length, _, is_draft) in chosen.items():
                one = told[row]
                new = [*one.ids[one.start :], *text(row + len(one.ids), length)][:MAX_QUERY_LENGTH]
                news.append(new)
                passes.append((slots[row], Pass("draft" if is_draft else "verify", new, one.start)))
            for (row, (_, kept, is_draft)), new, output in zip(chosen.items(), news, backend.run(passes), strict=True):
                one = told[row]
                if is_draft:
                    continue  # its KV is overwritten by the next verify pass
                expect(output, [*one.ids[: one.start], *new], one.start)
                one.ids = [*one.ids[: one.start], *new[: max(1, kept)]]
                one.start = len(one.ids) - 1
        for slot in slots:
            backend.release(slot)
