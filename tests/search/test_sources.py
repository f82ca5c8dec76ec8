"""Warm starts are valid drafts, and the single-sublayer engines compute the model's own hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.engine import load
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import bits_of, skip_of, skips_some
from sstool.search.log.records import COMPLETED, FAILED, STOPPED, Counts, Sensitivity, Trial
from sstool.search.sources.ax import AxDriver
from sstool.search.sources.dynamic_programme import LEVELS, cosine_front, front_sets
from sstool.search.sources.leave_one_out import cut, cuts, measure_sensitivity, sensitivity_order
from sstool.search.sources.patterns import contiguous_block, default_start, every_other, middle_blocks
from sstool.search.sources.sublayer_engines import EmbeddingEngine, SublayerEngine
from sstool.search.texts.make import CachedText
from sstool.skip_set import SkipSpec
from tests.families.checkpoints import FAMILIES, make_checkpoint


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5, 16, 80])
def test_patterns_are_drafts(num_layers: int) -> None:
    sets = [default_start(num_layers), *every_other(num_layers), *middle_blocks(num_layers)]
    assert all(len(bits) == 2 * num_layers and skips_some(bits) for bits in sets)
    assert len(set(middle_blocks(num_layers))) == len(middle_blocks(num_layers))
    assert all(bits_of(skip_of(bits), num_layers) == bits for bits in sets)


def test_a_block_is_whole_layers() -> None:
    skip = skip_of(contiguous_block(10, 3, 4))
    assert skip.attention == skip.mlp == (3, 4, 5, 6)


def test_the_least_sensitive_sublayers_are_skipped_first() -> None:
    sensitivity = Sensitivity(attention=(0.2, 0.9, 1.0), mlp=(0.5, 0.95, 0.99), seconds=0.0)
    order = sensitivity_order(sensitivity)
    assert order == [2, 5, 4, 1, 3, 0]
    assert cut(order, 0.5) == (0, 0, 1, 0, 1, 1)
    assert all(skips_some(bits) for bits in cuts(order))


def test_leave_one_out_sensitivity_finds_the_sublayers_that_matter(builder: DraftBuilder, texts: list[CachedText]) -> None:
    reports: list[int] = []
    sensitivity = measure_sensitivity(builder, texts, lambda done, _total: reports.append(done))
    assert reports == list(range(32))
    values = np.array([*sensitivity.attention, *sensitivity.mlp])
    assert ((values >= 0) & (values <= 1 + 1e-6)).all()
    # The demo model needs its first MLP. Most other sublayers have little effect.
    assert sensitivity.mlp[0] == values.min() < 0.5
    assert np.median(values) > 0.7


@pytest.mark.parametrize("family", ["exaone4", "gemma2", "gpt2", "granite", "olmo2", "qwen3_moe", "starcoder2"])
def test_single_sublayers_compute_the_residual_stream_of_transformers(family: str, tmp_path: Path) -> None:
    assert family in FAMILIES
    model = make_checkpoint(tmp_path / "model", family, 0)
    artifact = export_artifact(ExportRequest(model=model, out=tmp_path / "artifact", skip=SkipSpec(mlp=(1,)))).folder
    ids = np.random.default_rng(0).integers(3, 90, (1, 40))
    expected = hidden_states(model, ids)
    with load(artifact, threads=1, max_sequences=1, draft=False) as engine:
        builder = DraftBuilder(engine)
        stream = EmbeddingEngine(builder).run(ids)
        close(stream, expected[0])
        for layer in range(builder.num_layers - 1):
            for place in (layer, builder.num_layers + layer):
                # Two streams in one batch, as the dynamic programme runs them.
                stream = SublayerEngine(builder, place).run(np.concatenate([stream, 0.5 * stream]))[:1]
            close(stream, expected[layer + 1])


def hidden_states(model: Path, ids: NDArray[Any]) -> list[NDArray[Any]]:
    """Returns transformers' residual stream before each layer."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [h.numpy() for h in loaded(torch.tensor(ids), output_hidden_states=True, use_cache=False).hidden_states]


def close(ours: NDArray[Any], reference: NDArray[Any]) -> None:
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.slow
def test_the_front_has_the_highest_cosine_at_each_cost(builder: DraftBuilder, texts: list[CachedText]) -> None:
    num_layers = builder.num_layers
    shares = np.array([1.0] * num_layers + [2.0] * num_layers)
    front = cosine_front(builder, texts[0].text, shares, lambda _done, _total: None)
    assert [p.cost for p in front] == sorted(p.cost for p in front)
    assert 5 < len(front) <= LEVELS + 1
    for point in front:
        assert point.cost == pytest.approx(((1 - np.array(point.bits)) * shares).sum() / shares.sum())
    assert front[-1].cosine > 0.98 > 0.8 > front[0].cosine
    # The cosines are those of the skip sets, run sublayer by sublayer. Other sets of as many sublayers have
    # lower cosines.
    for point in front[:: len(front) // 3]:
        assert cosine_of(builder, texts[0], point.bits) == pytest.approx(point.cosine, abs=1e-5)
    rng = np.random.default_rng(0)
    for point in front[len(front) // 3 :: len(front) // 3]:
        rivals = [tuple(int(b) for b in rng.permutation(point.bits)) for _ in range(3)]
        assert point.cosine > max(cosine_of(builder, texts[0], rival) for rival in rivals)
    assert set(front_sets(front)) <= {p.bits for p in front}
    assert front_sets([]) == []


def cosine_of(builder: DraftBuilder, cached: CachedText, bits: tuple[int, ...]) -> float:
    ids = np.array([(*cached.text.prompt, *cached.text.tokens)[-64:]])
    full = stream = EmbeddingEngine(builder).run(ids)
    for layer in range(builder.num_layers):
        for place in (layer, builder.num_layers + layer):
            engine = SublayerEngine(builder, place)
            full = engine.run(full)
            stream = stream if bits[place] else engine.run(stream)
    norms = np.linalg.norm(stream, axis=-1) * np.linalg.norm(full, axis=-1)
    return float(((stream * full).sum(axis=-1) / norms).mean())


@pytest.mark.parametrize(("status", "error"), [(COMPLETED, 0.0), (STOPPED, 0.125), (FAILED, 0.0)])
def test_only_the_score_of_a_stopped_trial_has_an_error(status: str, error: float) -> None:
    counts = {"sampled": Counts(tokens=80, rounds=60), "greedy": Counts(tokens=70, rounds=40)}
    speedup = None if status == FAILED else 1.25
    assert Trial(index=0, source="ax", status=status, skip=SkipSet(), speedup=speedup, counts=counts).score_error() == error


def test_ax_takes_exact_and_uncertain_scores_together() -> None:
    driver = AxDriver(6, has_own_weights=False, seed=3)
    for number, bits in enumerate(((1, 0, 0, 0, 0, 0), (1, 1, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 0, 0, 0, 1, 1))):
        driver.attach(bits, 1.0 + number / 10, 0.1 * (number % 2))
    suggested = driver.suggest(2)
    assert len(suggested) == 2
    errors = {arm.sem for trial in driver._client._experiment.trials.values() for arm in trial.lookup_data().df.itertuples()}
    assert errors == {0.0, 0.1}
