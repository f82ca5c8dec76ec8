"""Decoding is exact to the bit: every way to compute a token's logits gives those of passes of one token."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ssruntime import Engine, GenerationConfig, load
from ssruntime.artifact import read_artifact
from ssruntime.backends.base import Slot, StepOutput
from ssruntime.results import Trace
from sstool.artifact_files.bits_record import BitsReport, Kernels, exactness, known_bits, store_bits, tie_tolerance
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.validation.bits import GATE_CONTEXT, measure_bits
from tests.toolchain.tiny_llama import make_llama

CONTEXT = 300
PROMPTS = (1, *range(120, 136), *range(250, 261))
"""Lengths of prompts around the blocks that attention kernels divide a pass into."""
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 3}


@pytest.fixture(scope="module")
def engine(demo_artifact: Path) -> Iterator[Engine]:
    """The demo artifact, with a context of 300 tokens and a KV cache for one sequence."""
    with load(demo_artifact, max_context=CONTEXT, max_sequences=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def ids(engine: Engine) -> list[int]:
    """Random token ids, as many as the context holds."""
    return [int(i) for i in np.random.default_rng(8).integers(0, engine.backend.vocab_size, CONTEXT)]


@pytest.fixture(scope="module")
def one_by_one(engine: Engine, ids: list[int]) -> list[bytes]:
    """The digest of the logits after each of `ids`, from passes of one token."""
    with a_slot(engine) as slot:
        return [digest(slot.verify((token,), position)) for position, token in enumerate(ids)]


@contextlib.contextmanager
def a_slot(engine: Engine) -> Iterator[Slot]:
    slot = engine.backend.acquire(None)
    try:
        yield slot
    finally:
        engine.backend.release(slot)


def digest(output: StepOutput) -> bytes:
    return hashlib.sha256(output.logits[-1].tobytes()).digest()


@pytest.mark.parametrize("length", PROMPTS)
def test_a_prompt_of_any_length(engine: Engine, ids: list[int], one_by_one: list[bytes], length: int) -> None:
    with a_slot(engine) as slot:
        assert digest(slot.prefill(ids[:length])) == one_by_one[length - 1]
        assert digest(slot.verify((ids[length],), length)) == one_by_one[length]


def test_a_prompt_that_fills_the_context_but_for_one_token(engine: Engine, ids: list[int], one_by_one: list[bytes]) -> None:
    with a_slot(engine) as slot:
        assert digest(slot.prefill(ids[:-1])) == one_by_one[-2]
    completion = engine.generate(ids[:-1], GenerationConfig(max_new_tokens=9, ignore_eos=True))
    assert (len(completion.token_ids), completion.finish_reason) == (1, "context")


def test_the_last_position_of_the_context(engine: Engine, ids: list[int], one_by_one: list[bytes]) -> None:
    with a_slot(engine) as slot:
        slot.prefill(ids[:-4])
        assert digest(slot.verify(ids[-4:], CONTEXT - 4)) == one_by_one[-1]
        assert digest(slot.verify(ids[-1:], CONTEXT - 1)) == one_by_one[-1]


def decoded(engine: Engine, ids: Sequence[int], mode: str, **settings: object) -> tuple[list[int], dict[int, bytes]]:
    trace = Trace(logits={})
    config = GenerationConfig.from_mapping({"mode": mode, "ignore_eos": True, "max_new_tokens": 64, **settings})
    tokens = engine.generate(ids, config, trace=trace).token_ids
    assert trace.logits is not None
    return tokens, {p: d for p, d in trace.logits.items() if p < len(ids) + len(tokens)}


@pytest.mark.parametrize("sampling", [{}, SAMPLED])
def test_a_text_that_ends_at_the_context_s_wall_after_a_full_draft(engine: Engine, ids: list[int], sampling: dict[str, object]) -> None:
    prompt = ids[: CONTEXT - 40]
    plain, expected = decoded(engine, prompt, "plain", **sampling)
    tokens, found = decoded(engine, prompt, "speculative", exit="fixed", max_draft=12, max_alternatives=3, **sampling)
    assert tokens == plain
    assert len(tokens) == 40
    assert found.items() <= expected.items()
    assert len(found) >= len(expected) - 1  # the row of an alternative that ends the text is not computed again


@pytest.mark.parametrize("sampling", [{}, SAMPLED])
def test_a_cancelled_request_leaves_no_trace_in_its_slot(engine: Engine, ids: list[int], sampling: dict[str, object]) -> None:
    expected = decoded(engine, ids[:50], "speculative", exit="fixed", max_draft=6, **sampling)
    for mode in ("plain", "speculative"):
        stream = engine.stream(ids[100:290], GenerationConfig.from_mapping({"mode": mode, "ignore_eos": True, **sampling}))
        for _ in range(3):
            next(stream)
        stream.close()  # type: ignore[attr-defined] # it is a generator
        assert decoded(engine, ids[:50], "speculative", exit="fixed", max_draft=6, **sampling) == expected
        assert decoded(engine, ids[:50], "plain", **sampling)[0] == expected[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
def test_the_bit_test_passes_with_any_number_of_threads(tiny_artifact: Path, threads: int) -> None:
    with load(tiny_artifact, threads=threads) as opened:
        report = measure_bits(opened.backend)
    assert report.equal, report
    assert report.rows > 300


@pytest.fixture(scope="module")
def shared_artifact(shared_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that exports a model outside the repository, once."""

    @functools.cache
    def export(name: str) -> Path:
        request = ExportRequest(model=shared_model(name), out=tmp_path_factory.mktemp(name) / "out")
        return export_artifact(request).folder

    return export


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", ["demo", "bench", "stories260k"])
def test_the_bit_test_passes_on_real_models(shared_artifact: Callable[[str], Path], name: str, threads: int) -> None:
    with load(shared_artifact(name), threads=threads) as opened:
        assert measure_bits(opened.backend).equal


@pytest.mark.parametrize("head_dim", [32, 48, 80, 112])
def test_the_bit_test_passes_with_heads_of_any_size(tmp_path: Path, head_dim: int) -> None:
    """The kernel's blocks of rows, around which prompts are cut, follow from the head size."""
    model = make_llama(tmp_path / "model", head_dim=head_dim, max_position_embeddings=512)
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "out"))
    bits = artifact.manifest.gate["bits"]
    assert bits["equal"], bits
    with load(artifact.folder) as opened, a_slot(opened) as slot:
        block = slot.attention_block
        assert block % 2 == 0
        ids = [int(i) for i in np.random.default_rng(1).integers(0, opened.backend.vocab_size, 261)]
        rows = [digest(slot.verify((token,), position)) for position, token in enumerate(ids)]
        for length in (*range(2, 261, 16), block - 1, block, block + 1, block + 2, 256, 257, 258):
            assert digest(slot.prefill(ids[:length])) == rows[length - 1], length


@pytest.mark.parametrize("context", [1, 2, 5, 16, 17, 18, 19, 40])
def test_the_bit_test_fits_into_any_context(tiny_artifact: Path, context: int) -> None:
    with load(tiny_artifact, max_context=context) as opened:
        report = measure_bits(opened.backend)
    assert report.differing == 0
    assert report.equal == (context > 1)
    assert (report.rows > 90) == (context >= 16)
    if context == 1:
        assert report.difference == "too short a context to compare"


def test_the_kernels_depend_on_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_GQA_DISABLE_FLASH_ATTENTION", raising=False)
    usual = Kernels.here(2)
    monkeypatch.setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    assert Kernels.here(2) == dataclasses.replace(usual, flash_attention=False)


def test_kernels_for_a_single_row_fail_the_bit_test(demo_artifact: Path) -> None:
    with load(demo_artifact, max_context=GATE_CONTEXT, bit_exact=False) as opened:
        report = measure_bits(opened.backend)
        assert tie_tolerance(opened) > 0
    assert not report.equal
    assert report.first == "query length 2"
    assert report.differing > report.rows / 4


def test_the_gate_records_the_result_and_inspect_shows_it(demo_artifact: Path) -> None:
    artifact = read_artifact(demo_artifact)
    here = Kernels.here(load_threads(demo_artifact))
    known = known_bits(artifact, here)
    assert known is not None
    assert known.equal
    assert exactness(artifact, here.threads) == "bits"
    elsewhere = exactness(artifact, here.threads + 1)
    assert elsewhere.startswith("near-tie (tested elsewhere: bits on ")
    assert "sstool check" in elsewhere


def load_threads(artifact: Path) -> int:
    with load(artifact) as opened:
        return opened.backend.threads


def test_a_check_stores_its_result_for_this_host(demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_artifact(demo_artifact)
    other = dataclasses.replace(Kernels.here(1), threads=77)
    assert known_bits(artifact, other) is None
    here = Kernels.here(load_threads(demo_artifact))
    store_bits(artifact, BitsReport(rows=9, differing=1, first="query length 2", kernels=here))
    assert exactness(artifact, here.threads) == "near-tie (query length 2: 1 of 9 rows differ)"  # the host knows better
    store_bits(artifact, BitsReport(rows=9, differing=0, first=None, kernels=here))
    failed = BitsReport(rows=10, differing=2, first="query length 3", kernels=other)
    store_bits(artifact, failed)
    assert known_bits(artifact, other) == failed
    assert exactness(artifact, 77) == "near-tie (query length 3: 2 of 10 rows differ)"
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "a file"))
    (tmp_path / "a file").write_text("")
    store_bits(artifact, failed)  # no error
    assert known_bits(artifact, other) is None
    for name in ("SSTOOL_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    store_bits(artifact, failed)  # no error
    assert known_bits(artifact, other) is None


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"rows": 3}', b"\xff"])
def test_a_damaged_result_counts_as_none(demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path))
    artifact = read_artifact(demo_artifact)
    kernels = dataclasses.replace(Kernels.here(1), threads=78)
    store_bits(artifact, BitsReport(rows=1, differing=0, first=None, kernels=kernels))
    (path,) = (tmp_path / "bits").glob("*.json")
    path.write_bytes(damage)
    assert known_bits(artifact, kernels) is None
