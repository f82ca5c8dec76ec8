"""Engines at fixed addresses decode what the processor's own target decodes, and refuse what does not fit.

ONNX Runtime on the processor runs the graphs here, in place of TensorRT or of a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from ssruntime import ArtifactError, BackendUnavailableError, Engine, GenerationConfig, load
from ssruntime.artifact import MANIFEST
from ssruntime.backends.base import PREFILL_CHUNK, Pass
from ssruntime.backends.device import HostDevice
from ssruntime.backends.device_engines.backend import DeviceBackend
from ssruntime.backends.device_engines.slot import DeviceSlot
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.proposal import Alternative
from sstool.artifact_files.bits_record import NEAR_TIE_TOLERANCE
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from sstool.validation.lossless import TracedRun, compare, traced

CONTEXT: Final = 320
SKIP: Final = SkipSpec(attention=(1, 3), mlp=(0, 2, 3))
PROMPT: Final = "def area(radius):\n    return"
SAMPLED: Final = {"temperature": 0.8, "top_p": 0.95, "seed": 5}


def exported(model: Path, out: Path, target: str, dtype: str | None = None) -> Path:
    return export_artifact(ExportRequest(model=model, out=out, target=target, dtype=dtype, max_context=CONTEXT, skip=SKIP)).folder


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """The demo model for TensorRT in fp32."""
    return exported(demo_model, tmp_path_factory.mktemp("targets") / "tensorrt", "tensorrt", "fp32")


@pytest.fixture(scope="module")
def engine(standard: Path) -> Iterator[Engine]:
    with load(standard, threads=1, max_sequences=2, on_cpu=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Engine]:
    """The demo model on the processor's own target."""
    with load(exported(demo_model, tmp_path_factory.mktemp("reference") / "cpu", "ort-cpu"), threads=1) as engine:
        yield engine


@pytest.fixture
def slot(engine: Engine) -> Iterator[DeviceSlot]:
    slot = engine.backend.acquire(0)
    assert isinstance(slot, DeviceSlot)
    yield slot
    engine.backend.release(slot)


def config(**settings: Any) -> GenerationConfig:
    return GenerationConfig.from_mapping({"max_new_tokens": 48, "ignore_eos": True, **settings})


# Decoding

HOW: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0.0},
    "greedy, plain": {"temperature": 0.0, "mode": "plain"},
    "sampled": SAMPLED,
    "sampled, long drafts, trees": {**SAMPLED, "exit": "fixed", "max_draft": 12, "max_alternatives": 3},
    "filters that read all logits": {"temperature": 1.3, "top_k": 400, "min_p": 0.001, "seed": 7, "min_new_tokens": 20},
}


@pytest.mark.parametrize("name", HOW)
def test_texts_are_those_of_the_processor_s_own_target(engine: Engine, reference: Engine, name: str) -> None:
    ids, how = engine.encode(PROMPT), config(**HOW[name])
    expected = reference.generate(ids, dataclasses.replace(how, mode="plain")).token_ids
    completion, run = traced(engine, ids, how)
    assert len(completion.token_ids) == 48
    assert compare(engine, how, plain=expected, run=run, tie_tolerance=NEAR_TIE_TOLERANCE).verdict in ("yes", "near_tie")


@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
def test_a_model_trained_elsewhere(shared_model: Callable[[str], Path], tmp_path: Path, sampling: str) -> None:
    model = shared_model("stories260k")
    folders = [exported(model, tmp_path / target, target, "fp32") for target in ("ort-cpu", "tensorrt")]
    how = config(**HOW[sampling])
    with load(folders[0], threads=1) as ours, load(folders[1], threads=1, on_cpu=True) as theirs:
        ids = ours.encode("Once upon a time")
        expected = ours.generate(ids, dataclasses.replace(how, mode="plain")).token_ids
        _, run = traced(theirs, ids, how)
        assert compare(theirs, how, plain=expected, run=run, tie_tolerance=NEAR_TIE_TOLERANCE).verdict in ("yes", "near_tie")


def test_rejection_sampling_draws_the_same_law_from_the_same_noise(engine: Engine, reference: Engine) -> None:
    """The rule sees only probabilities, and those of both engines differ by no more than rounding."""
    how = config(temperature=0.8, seed=4, sampling="rejection", deterministic=True)
    assert engine.generate(PROMPT, how).token_ids == reference.generate(PROMPT, how).token_ids


def test_stops_context_ends_and_seeds(engine: Engine, reference: Engine) -> None:
    ids = reference.encode(PROMPT)
    long = reference.generate(ids, config(**SAMPLED, max_new_tokens=60))
    stop = long.text[20:24]
    for how in ({**SAMPLED, "stop": [stop]}, {**SAMPLED, "stop_token_ids": [long.token_ids[9]]}):
        theirs, ours = engine.generate(ids, config(**how)), reference.generate(ids, config(**how))
        assert (theirs.text, theirs.finish_reason) == (ours.text, ours.finish_reason)
        assert theirs.finish_reason == "stop"
    filler = [int(i) for i in np.random.default_rng(1).integers(0, 4000, CONTEXT - 9)]
    for mode in ("plain", "speculative"):
        ended = engine.generate(filler, config(**SAMPLED, mode=mode))
        assert (len(ended.token_ids), ended.finish_reason) == (9, "context")
        assert ended.token_ids == reference.generate(filler, config(**SAMPLED, mode=mode)).token_ids


def test_a_cancelled_request_leaves_no_trace(engine: Engine) -> None:
    expected = engine.generate(PROMPT, config(**SAMPLED)).token_ids
    for mode in ("plain", "speculative"):
        stream = engine.stream("class Stack:\n    pass\n" * 9, config(**SAMPLED, mode=mode))
        for _ in range(3):
            next(stream)
        stream.close()  # type: ignore[attr-defined] # it is a generator
        assert engine.generate(PROMPT, config(**SAMPLED)).token_ids == expected


def test_requests_of_several_threads_take_turns(engine: Engine) -> None:
    expected = {seed: engine.generate(PROMPT, config(temperature=0.9, seed=seed)).token_ids for seed in range(4)}
    found: dict[int, list[int]] = {}

    def request(seed: int) -> None:
        found[seed] = engine.generate(PROMPT, config(temperature=0.9, seed=seed)).token_ids

    threads = [threading.Thread(target=request, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


# Passes


def test_a_rolled_back_draft_is_overwritten(slot: DeviceSlot) -> None:
    ids = list(range(40, 90))
    slot.prefill(ids[:20])
    expected = slot.verify(ids[20:26], 20).logits.copy()
    slot.prefill(ids[:20])
    slot.draft((ids[20],), 20)
    slot.verify([ids[20], 7, 8, 9], 20)
    np.testing.assert_array_equal(slot.verify(ids[20:26], 20).logits.copy(), expected)


def test_a_tree_mask_does_not_outlive_its_pass(slot: DeviceSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = list(range(40, 60))
    slot.prefill(ids[:10])
    expected = slot.verify(ids[10:16], 10).logits.copy()
    slot.verify(ids[10:14], 10, [Alternative(0, 5), Alternative(1, 6)])
    np.testing.assert_array_equal(slot.verify(ids[10:16], 10).logits.copy(), expected)
    context = slot._verify._context

    def fail() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(context, "enqueue", fail)
        with pytest.raises(KeyboardInterrupt):
            slot.verify(ids[10:14], 10, [Alternative(0, 5), Alternative(1, 6)])
    np.testing.assert_array_equal(slot.verify(ids[10:16], 10).logits.copy(), expected)


def test_any_positions_of_a_long_pass(slot: DeviceSlot) -> None:
    ids = [int(i) for i in np.random.default_rng(2).integers(0, 4000, PREFILL_CHUNK + 40)]
    every = slot.forward(ids, 0, range(len(ids)))
    assert every.logits.shape == (len(ids), slot._verify._vocab_size)
    some = slot.forward(ids, 0, (290, 3, 3, 0))
    np.testing.assert_allclose(some.logits, every.logits[[290, 3, 3, 0]], atol=1e-4)
    np.testing.assert_array_equal(some.tokens, every.logits.argmax(-1)[[290, 3, 3, 0]])


def test_logits_are_read_row_by_row(slot: DeviceSlot) -> None:
    slot.prefill([1, 2, 3])
    output = slot.verify([4, 5, 6], 3)
    whole = output.logits.copy()
    assert output.logits.shape == whole.shape
    assert len(output.logits) == 3
    np.testing.assert_array_equal(output.logits[1], whole[1])
    np.testing.assert_array_equal(output.tail(1).logits.copy(), whole[1:])
    np.testing.assert_array_equal(np.asarray(output.head(2).logits), whole[:2])
    np.testing.assert_array_equal(output.logits.astype(np.float64), whole.astype(np.float64))
    banned = output.without([int(output.tokens[0])], [0])
    assert banned.tokens[0] != output.tokens[0]


def test_entries_of_the_draft_s_layers_are_preserved(slot: DeviceSlot) -> None:
    slot.prefill(list(range(30)))
    names = [name for name in slot._buffers if name.startswith("past.0.")]
    before = {name: slot.read(name, 0, 30) for name in names}
    with slot.preserved(10, 20):
        slot.draft_forward(list(range(60, 70)), 10, (9,))
        assert any((slot.read(name, 10, 20) != before[name][:, 10:20]).any() for name in names)
    for name in names:
        np.testing.assert_array_equal(slot.read(name, 0, 30), before[name])


def test_blocks_of_kv_are_what_was_read(slot: DeviceSlot, engine: Engine) -> None:
    ids = list(range(50))
    slot.prefill(ids)
    before = {name: slot.read(name, 0, 50) for name in slot._buffers}
    blocks = [np.empty(16 * engine.backend.kv_entry_bytes, dtype=np.uint8) for _ in range(2)]
    slot.read_kv(5, blocks)
    slot.prefill(ids[::-1])
    slot.write_kv(5, blocks)
    for name in slot._buffers:
        np.testing.assert_array_equal(slot.read(name, 5, 37), before[name][:, 5:37])
        assert (slot.read(name, 37, 50) != before[name][:, 37:50]).any()
    with pytest.raises(ValueError, match="outside the context"):
        slot.write_kv(CONTEXT - 16, blocks)


def test_a_known_prefix_is_copied_if_the_load_says_so(standard: Path, engine: Engine) -> None:
    """By default it is not: passes of other widths round differently, so a copy may decide a near tie."""
    assert not engine.prefix_cache.is_on
    ids = [*range(5, 60)]
    with load(standard, threads=1, on_cpu=True, prefix_cache=10**7) as cached:
        for turn in range(3):
            found = cached.generate(ids, config(mode="plain", temperature=0.0))
            assert found.token_ids == engine.generate(ids, config(mode="plain", temperature=0.0)).token_ids
            assert found.stats.cached_tokens == ((len(ids) - 7) // 16 * 16 if turn else 0)
            ids += [*found.token_ids, *range(6)]


OUTSIDE: Final[dict[str, Callable[[DeviceSlot], object]]] = {
    "past the end": lambda s: s.verify([1, 2], CONTEXT - 1),
    "before the start": lambda s: s.draft([1], -1),
    "nothing": lambda s: s.forward([], 0, ()),
    "a long verify pass": lambda s: s.verify([1] * (MAX_QUERY_LENGTH + 1), 0),
    "a long prompt in one pass": lambda s: s.run(Pass("prefill", [1] * (PREFILL_CHUNK + 1), 0)),
    "a prompt past the end": lambda s: s.prefill([1] * (CONTEXT + 1)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_passes_outside_the_context_are_refused(slot: DeviceSlot, name: str) -> None:
    with pytest.raises(ValueError, match=r"outside the context|longer than"):
        OUTSIDE[name](slot)


# Backends


def test_both_engines_share_one_copy_of_the_weights(engine: Engine) -> None:
    backend = engine.backend
    assert isinstance(backend, DeviceBackend)
    assert backend._weights.nbytes < 1.05 * engine.artifact.manifest.weights_size
    assert backend.capabilities.token_trees
    assert backend.capabilities.logits_on_device
    assert not backend.capabilities.bit_exact
    shared = backend._engines
    assert shared is not None
    assert shared.draft is not None
    whole, own = (backend._weights.addresses(opened.inputs) for opened in (shared.verify, shared.draft))
    assert own.items() <= whole.items()


def test_engines_with_weights_of_their_own_decode_the_same(standard: Path, engine: Engine) -> None:
    expected = engine.generate(PROMPT, config(**SAMPLED)).token_ids
    with load(standard, threads=1, on_cpu=True, bake_weights=True) as baked:
        assert isinstance(baked.backend, DeviceBackend)
        assert baked.backend.packing.startswith("private")
        assert baked.backend._weights.nbytes < 0.1 * baked.artifact.manifest.weights_size
        assert baked.generate(PROMPT, config(**SAMPLED)).token_ids == expected
        with pytest.raises(BackendUnavailableError, match="a file of its own"):
            baked.backend.open_draft(b"", "a draft")


def test_passes_of_several_sequences_run_one_after_another(engine: Engine) -> None:
    slots = [engine.backend.acquire(0) for _ in range(2)]
    for number, slot in enumerate(slots):
        slot.prefill([number + 5] * 10)
    alone = [slot.verify([3, 4], 10).logits.copy() for slot in slots]
    outputs = engine.backend.run([(slot, Pass("verify", [3, 4], 10)) for slot in slots])
    for output, expected in zip(outputs, alone, strict=True):
        np.testing.assert_array_equal(output.logits, expected)
    with pytest.raises(ValueError, match="one pass at a time"):
        engine.backend.run([(slots[0], Pass("verify", [3], 10))] * 2)
    for slot in slots:
        engine.backend.release(slot)


def test_a_closed_engine_refuses_and_lets_running_requests_end(standard: Path) -> None:
    engine = load(standard, threads=1, on_cpu=True)
    stream = engine.stream(PROMPT, config(**SAMPLED))
    first = next(stream)
    engine.close()
    tokens = [*first.token_ids, *(token for chunk in stream for token in chunk.token_ids)]
    assert len(tokens) == 48
    for use in (lambda: engine.generate(PROMPT), lambda: engine.backend.new_slot(8)):
        with pytest.raises(BackendUnavailableError, match="closed"):
            use()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_refuses_inherited_engines(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    with pytest.raises(BackendUnavailableError, match="before the process forked"):
        engine.generate(PROMPT)


def test_a_smaller_context_of_a_load_is_kept(standard: Path) -> None:
    with load(standard, threads=1, max_context=64, on_cpu=True) as engine:
        ended = engine.generate(PROMPT, config(**SAMPLED, max_new_tokens=400))
        assert ended.finish_reason == "context"
        assert ended.prompt_tokens + len(ended.token_ids) == 64


@pytest.fixture
def copy(standard: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may change."""
    return Path(shutil.copytree(standard, tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))


def test_damaged_files_are_refused_in_one_line(copy: Path) -> None:
    edit(copy, max_context=CONTEXT + 1)
    with pytest.raises(ArtifactError, match=rf"a KV cache of {CONTEXT} tokens, the manifest says {CONTEXT + 1}"):
        load(copy, on_cpu=True)
    edit(copy, max_context=CONTEXT)
    graph = copy / "verify.onnx"
    size = graph.stat().st_size
    graph.write_bytes(b"\x08" * size)
    with pytest.raises(ArtifactError, match=r"verify\.onnx"):
        load(copy, on_cpu=True)


def test_too_little_memory_names_what_did_not_fit(standard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = HostDevice.reserve

    def limited(device: HostDevice, nbytes: int, what: str) -> Any:
        if nbytes > 4 * 2**20:
            raise BackendUnavailableError(f"{what}: {nbytes / 1e9:.2f} GB do not fit", "lower max_context or max_sequences")
        return reserve(device, nbytes, what)

    monkeypatch.setattr(HostDevice, "reserve", limited)
    with pytest.raises(BackendUnavailableError, match=r"the weights of tensorrt: 0\.05 GB do not fit"):
        load(standard, on_cpu=True)


def test_a_replay_is_traced(engine: Engine) -> None:
    _, run = traced(engine, PROMPT, config(temperature=0.0))
    assert isinstance(run, TracedRun)
    assert run.trace.rounds
