"""A search over own weights: what candidates read and cost, and that the winner is the draft published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime import GenerationConfig, load
from ssruntime.artifact import DRAFT_WEIGHTS, LowBitSet, SkipSet, read_artifact
from ssruntime.errors import ConfigError
from sstool.cli.main import run
from sstool.graph.lower import lower_draft
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.pipelines.replace_draft import clone_files, draft_of, replace_draft
from sstool.quantize.draft_memory import searched_memory
from sstool.quantize.low_bit_draft import LowBitStore, bytes_of_parts, with_low_bits
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import DraftSpace, candidate_of
from sstool.search.log.read import read_search
from sstool.search.log.records import COMPLETED, LATENCY, SEARCH_FOLDER
from sstool.search.log.work_folder import store_within
from sstool.search.run import SearchRequest, Start, run_search
from sstool.search.settings import SearchSettings
from sstool.search.speed_model.costs import CostModel
from sstool.search.speed_model.measure import measure_latency
from sstool.search.texts.make import CachedText
from sstool.skip_set import SkipSpec
from tests.search.conftest import SETTINGS
from tests.toolchain.tiny_llama import make_llama

SKIP = SkipSet(attention=(3, 5), mlp=(1, 2))
PARTS = LowBitSet(attention=(0, 1, 2), mlp=(0, 7, 15), head=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LowBitStore:
    """A store for the demo model's weights in int4."""
    return LowBitStore(tmp_path_factory.mktemp("store") / "int4.bin", 10**9)


@pytest.fixture(scope="module")
def own_builder(builder: DraftBuilder, store: LowBitStore) -> DraftBuilder:
    """A builder of drafts with own weights, over the demo artifact's engines."""
    return DraftBuilder(builder.engine, store)


def test_a_store_gives_the_weights_of_an_export(builder: DraftBuilder, store: LowBitStore) -> None:
    for parts in (PARTS, LowBitSet(mlp=(0, 3)), PARTS):
        expected = with_low_bits(lower_draft(builder.verify, SKIP), parts)
        found = store.apply(lower_draft(builder.verify, SKIP), parts)
        assert set(found.graph.initializers) == set(expected.graph.initializers)
        own = store.arrays(found)
        assert own
        for name, value in expected.graph.initializers.items():
            if not isinstance(value.const_value, ir.ExternalTensor):
                assert value.const_value is not None
                tensor = found.graph.initializers[name].const_value
                assert tensor is not None
                np.testing.assert_array_equal(tensor.numpy(), value.const_value.numpy())
                if name in own:
                    np.testing.assert_array_equal(own[name], value.const_value.numpy())


def test_a_candidate_computes_what_the_published_draft_does(
    own_builder: DraftBuilder, demo_model: Path, tmp_path: Path, texts: list[CachedText]
) -> None:
    spec = SkipSpec(attention=SKIP.attention, mlp=SKIP.mlp, int4=PARTS)
    published = export_artifact(ExportRequest(model=demo_model, out=tmp_path / "demo", skip=spec))
    ids = list(texts[0].text.prompt)
    slot = own_builder.filled_slot(ids)
    slot.use_draft(own_builder.open(SKIP, PARTS))
    found = slot.draft((ids[-1],), len(ids) - 1)
    with load(published.folder, threads=1, max_context=1200, max_sequences=1) as engine:
        other = engine.backend.acquire(None)
        other.prefill(ids)
        expected = other.draft((ids[-1],), len(ids) - 1)
        engine.backend.release(other)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_the_table_knows_the_costs_of_own_weights(own_builder: DraftBuilder, texts: list[CachedText]) -> None:
    sizes = bytes_of_parts(own_builder.verify)
    space = DraftSpace(num_layers=own_builder.num_layers, sizes=sizes, room=sum(sizes.values()) / 3)
    table = measure_latency(own_builder, space, [cached.text for cached in texts], SETTINGS)
    assert all(row.int4 is not None for row in table.rows)
    costs, layers = CostModel(table), own_builder.num_layers
    kept = [n for n in range(layers) if n not in SKIP.attention]
    few, many = (candidate_of(SKIP, layers, LowBitSet(attention=tuple(kept[:n]))) for n in (1, 8))
    for candidate in (few, many, candidate_of(SKIP, layers, PARTS), candidate_of(SKIP, layers)):
        cost = costs.draft(candidate, 96)
        assert cost.later > 0
        assert cost.first > 0
        planned = costs.pass_costs(candidate)
        assert planned.draft[0] == pytest.approx((cost.first + cost.later) / 2)
        assert planned.verify[0] == planned.drafted[0] == table.rows[0].verify
    # A part in int4 counts with its own cost, and the head's lies in the base.
    row = table.rows[0]
    assert row.int4 is not None
    flat = dataclasses.replace(row.int4, sizes=(1.0,), first=(1.0,), later=(1.0,))
    plain = dataclasses.replace(row.draft, sizes=(1.0,), first=(1.0,), later=(1.0,))
    simple = CostModel(dataclasses.replace(table, rows=(dataclasses.replace(row, draft=plain, int4=flat),)))
    all_shared = simple.draft(candidate_of(SKIP, layers), 96).first
    changed = row.int4.attention[0] - row.draft.attention[0]
    assert simple.draft(candidate_of(SKIP, layers, LowBitSet(attention=(0,))), 96).first == pytest.approx(all_shared + changed)
    changed = row.int4.base - row.draft.base
    assert simple.draft(candidate_of(SKIP, layers, LowBitSet(head=True)), 96).first == pytest.approx(all_shared + changed)


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a random model with matrices of more than one block. Read only."""
    folder = tmp_path_factory.mktemp("wider")
    model = make_llama(folder / "model", num_hidden_layers=3, hidden_size=256, intermediate_size=512)
    return export_artifact(ExportRequest(model=model, out=folder / "artifact", skip=SkipSpec(mlp=(1,)))).folder


def searched(artifact: Path, work: Path, calibration: Path, memory: int, *, resume: bool = False, trials: int = 40) -> LowBitStore | None:
    """Runs a search with room for own weights; returns the store that it filled."""
    work.mkdir(exist_ok=True)
    store = store_within(work, memory)
    settings = SearchSettings(calibration=str(calibration), trials=trials, budget=None, sampled_tokens=12, greedy_tokens=8, finalists=2)
    start = Start(source="earlier", skip=SkipSet(mlp=(1,)), int4=LowBitSet(mlp=(0,)))
    request = SearchRequest(folder=artifact, work=work, settings=settings, starts=(start,), store=store, threads=1, resume=resume)
    outcome = run_search(request)
    spec, tuning = draft_of(outcome)
    copy = work.with_name(f"{work.name}.copy.{trials}")
    copy.mkdir()
    clone_files(read_artifact(artifact), copy)
    assert store is not None
    manifest = replace_draft(copy, spec, search=work, tuning=tuning, store=store)
    assert manifest.drafts[0].int4 == spec.low_bit()
    assert (copy / DRAFT_WEIGHTS).exists() == bool(spec.low_bit())
    assert read_search(copy / SEARCH_FOLDER).result == outcome.result
    return store


def test_a_search_tries_sets_with_and_without_own_weights(wider: Path, calibration: Path, tmp_path: Path) -> None:
    sizes = bytes_of_parts(ir.load(read_artifact(wider).base_graph()))
    memory = sum(sizes.values()) // 2
    searched(wider, tmp_path / "work", calibration, memory)
    log = read_search(tmp_path / "work")
    assert log.header.draft_memory == memory
    assert log.latency is not None
    assert log.latency.rows[0].int4 is not None
    assert (log.trials[0].source, log.trials[0].skip, log.trials[0].int4) == ("earlier", SkipSet(mlp=(1,)), LowBitSet(mlp=(0,)))
    assert {bool(trial.int4) for trial in log.trials} == {True, False}
    assert [trial.skip for trial in log.trials if trial.source == "whole"] == [SkipSet()]
    assert len({(trial.skip, trial.int4) for trial in log.trials}) == len(log.trials)
    for trial in log.trials:
        own = [None] * trial.int4.head + [s for s in sizes if s is not None and s.layer in getattr(trial.int4, s.kind)]
        assert sum(sizes[part] for part in own) <= memory
        assert (trial.calibration is not None) == (trial.status == COMPLETED)
    # The finals hold the best draft that needs no memory.
    shared = [trial for trial in log.trials if trial.status == COMPLETED and not trial.int4]
    assert max(shared, key=lambda trial: trial.speedup or 0).index in {finalist.trial for finalist in log.finalists}
    assert all(set(finalist.by_kind) == {"sampled", "greedy"} for finalist in log.finalists)


@pytest.mark.slow
def test_a_search_over_own_weights_is_repeatable_and_resumable(wider: Path, calibration: Path, tmp_path: Path) -> None:
    sizes = bytes_of_parts(ir.load(read_artifact(wider).base_graph()))
    memory, work = sum(sizes.values()), tmp_path / "work"
    searched(wider, work, calibration, memory, trials=30)
    first = read_search(work)
    searched(wider, work, calibration, memory, trials=34, resume=True)
    assert [(t.skip, t.int4, t.speedup) for t in read_search(work).trials[:30]] == [(t.skip, t.int4, t.speedup) for t in first.trials]
    again = tmp_path / "again"
    again.mkdir()
    (again / LATENCY).write_bytes((work / LATENCY).read_bytes())
    searched(wider, again, calibration, memory, trials=30)
    assert [(t.skip, t.int4) for t in read_search(again).trials] == [(t.skip, t.int4) for t in first.trials]


def test_the_text_of_a_searched_draft_is_that_of_plain_decoding(
    wider: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    out.mkdir()
    clone_files(read_artifact(wider), out)
    flags = ["--trials", "12", "--budget", "10m", "--calibration", str(calibration), "--draft-memory", "10%"]
    assert run(["search", "--artifact", str(out), *flags]) == 0
    with load(out, max_context=256) as engine:
        how = GenerationConfig(temperature=0.8, seed=3, max_new_tokens=40, ignore_eos=True)
        plain = engine.generate([1, 2, 3], dataclasses.replace(how, mode="plain"))
        for mode, stop in (("auto", None), ("speculative", "fixed")):
            assert engine.generate([1, 2, 3], dataclasses.replace(how, mode=mode, exit=stop)).token_ids == plain.token_ids
    assert run(["search", "--artifact", str(out), "--draft-memory", "much"]) == 1
    assert "neither a percentage nor a size" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "expected"), [(None, 50), ("0", 0), ("10%", 100), ("64", None)])
def test_the_memory_of_a_search_is_checked_against_the_artifact(demo_artifact: Path, asked: str | None, expected: int | None) -> None:
    manifest = read_artifact(demo_artifact).manifest
    weights = {"weights.bin": dataclasses.replace(manifest.files["weights.bin"], size=1000)}
    manifest = dataclasses.replace(manifest, files={**manifest.files, **weights})
    if expected is None:
        with pytest.raises(ConfigError):
            searched_memory(manifest, asked)
        return
    assert searched_memory(manifest, asked) == expected
    other = dataclasses.replace(manifest, dtype="int8")
    if asked in (None, "0"):
        assert searched_memory(other, asked) == 0
    else:
        with pytest.raises(ConfigError, match="not available for ort-cpu in int8"):
            searched_memory(other, asked)


def test_a_skip_set_file_of_a_search_names_the_parts_in_int4() -> None:
    spec = SkipSpec(mlp=(1,), int4=LowBitSet(attention=(0,), head=True))
    data = json.loads(json.dumps(spec.to_json()))
    assert SkipSpec.read({k: v for k, v in data.items() if v is not None}, where="", error=ConfigError).low_bit() == spec.low_bit()
