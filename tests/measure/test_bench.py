"""What `bench` counts and reports, on scripted models; no test depends on wall time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ssruntime import ConfigError, Engine, GenerationConfig, PromptError, load
from ssruntime.results import DecodeStats
from ssruntime.sampling.noise import prompt_seed
from sstool.bench import BenchOptions, BenchReport, run_bench
from sstool.bench.summary import Sample, ratio_interval, summarize
from sstool.prompts import PromptRecord
from tests.measure.conftest import CONTEXT, Script, successor_table

OpenScript = Callable[[Script], Engine]
MakeArtifact = Callable[[Script], Path]

SAMPLED = GenerationConfig(max_new_tokens=12, temperature=0.8, top_p=0.95, seed=5)


def records(*texts: str) -> list[PromptRecord]:
    return [PromptRecord(id=f"p{i}", prompt=text, index=i) for i, text in enumerate(texts)]


def good_script() -> Script:
    return Script(verify=successor_table(4.0), draft=successor_table(3.0))


def bench(engine: Engine, prompts: Sequence[PromptRecord], config: GenerationConfig = SAMPLED, **options: object) -> BenchReport:
    return run_bench(engine, prompts, config, BenchOptions(**options))  # type: ignore[arg-type]


def test_runs_and_verdicts_add_up(open_script: OpenScript) -> None:
    report = bench(open_script(good_script()), records("t1 t2", "t3", "t4 t5 t6"), repeat=4)
    plain, speculative = report.runs
    assert (plain.mode, plain.prompts, plain.identical, plain.ratio_to_plain, plain.acceptance_rate) == ("plain", 12, None, None, None)
    counts = speculative.identical
    assert counts is not None
    assert (counts.yes, counts.near_tie, counts.no) == (12, 0, 0)
    assert speculative.prompts == 12
    assert report.num_differing == 0
    assert speculative.ratio_to_plain is not None
    assert speculative.ratio_to_plain.min <= speculative.ratio_to_plain.median <= speculative.ratio_to_plain.max
    assert speculative.ratio_interval_95 is not None
    assert speculative.tokens_per_round is not None
    assert speculative.tokens_per_round >= 1.0


def test_modes_take_turns_in_alternating_order(open_script: OpenScript) -> None:
    report = bench(open_script(good_script()), records("t1", "t2"), repeat=2)
    order = [(row.repeat, row.id, row.mode[0]) for row in report.per_prompt]
    assert order == [
        (0, "p0", "p"), (0, "p0", "a"), (0, "p1", "a"), (0, "p1", "p"),
        (1, "p0", "a"), (1, "p0", "p"), (1, "p1", "p"), (1, "p1", "a"),
    ]  # fmt: skip


def test_a_report_can_be_recomputed_from_its_rows(open_script: OpenScript) -> None:
    report = bench(open_script(good_script()), records("t1", "t2 t3"), repeat=3)
    for run in report.runs:
        speeds = []
        for repeat in range(3):
            rows = [r for r in report.per_prompt if (r.mode, r.repeat) == (run.mode, repeat)]
            speeds.append(sum(r.tokens for r in rows) / sum(r.decode_s for r in rows))
        assert run.tokens_per_second is not None
        assert run.tokens_per_second.median == pytest.approx(float(np.median(speeds)))


def test_json_has_the_documented_keys_and_no_paths_of_the_machine(open_script: OpenScript) -> None:
    engine = open_script(good_script())
    data = json.loads(json.dumps(bench(engine, records("t1", "t2"), repeat=1).to_json()))
    assert list(data) == ["environment", "settings", "runs", "per_prompt", "peers"]
    assert set(data["runs"][0]) == {
        "mode", "tokens_per_second", "ratio_to_plain", "ratio_interval_95", "acceptance_rate", "tokens_per_round", "host_overhead",
        "prefill_s", "identical", "prompts", "refused",
    }  # fmt: skip
    assert set(data["per_prompt"][0]) == {"id", "repeat", "mode", "tokens", "decode_s", "identical"}
    assert set(data["runs"][1]["tokens_per_second"]) == {"median", "min", "max"}
    assert data["settings"]["seed"] == 5
    assert data["environment"]["artifact"] == engine.artifact.folder.name
    assert str(engine.artifact.folder.parent) not in json.dumps(data)


@pytest.mark.parametrize("mode", ["plain", "speculative"])
def test_one_mode_alone_has_no_ratio_and_no_comparison(open_script: OpenScript, mode: str) -> None:
    report = bench(open_script(good_script()), records("t1", "t2"), modes=(mode,), repeat=1)
    (run,) = report.runs
    assert (run.mode, run.ratio_to_plain, run.ratio_interval_95, run.identical) == (mode, None, None, None)
    assert run.tokens_per_second is not None


def test_rejection_sampling_is_not_compared_token_by_token(open_script: OpenScript) -> None:
    config = GenerationConfig(max_new_tokens=12, temperature=0.8, sampling="rejection", seed=5)
    report = bench(open_script(good_script()), records("t1", "t2"), config, repeat=1)
    assert report.runs[1].identical is None
    assert report.runs[1].ratio_to_plain is not None


def test_an_artifact_without_a_draft_is_measured_only_in_mode_plain(open_script: OpenScript) -> None:
    engine = open_script(Script(verify=successor_table(), draft=None))
    assert [run.mode for run in bench(engine, records("t1"), repeat=1).runs] == ["plain"]
    with pytest.raises(ConfigError):
        bench(engine, records("t1"), modes=("speculative",))


@pytest.mark.parametrize(("how", "mode"), [({}, "auto"), ({"exit": "fixed"}, "speculative"), ({"exit": "optimal"}, "auto")])
def test_a_draft_that_did_not_pay_is_measured_all_the_same(make_artifact: MakeArtifact, how: dict[str, str], mode: str) -> None:
    folder = make_artifact(good_script())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["drafts"][0]["mode"] = "plain"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with load(folder, threads=1) as engine:
        config = GenerationConfig(max_new_tokens=8, temperature=0.0, seed=1, **how)
        assert [run.mode for run in bench(engine, records("t1"), config, repeat=1).runs] == ["plain", mode]


def test_refused_prompts_are_counted_and_the_others_are_measured(open_script: OpenScript) -> None:
    engine = open_script(good_script())
    long = " ".join(["t1"] * CONTEXT)
    report = bench(engine, records("", long, "t3 t4"), repeat=2)
    assert [(run.prompts, run.refused) for run in report.runs] == [(2, 2), (2, 2)]
    assert {row.id for row in report.per_prompt} == {"p2"}
    assert report.runs[1].ratio_interval_95 is None  # the spread between prompts needs two of them
    with pytest.raises(PromptError):
        bench(engine, records("", long))


def test_a_differing_token_is_counted_as_a_defect(open_script: OpenScript) -> None:
    script = Script(verify=successor_table(), draft=successor_table())
    script.bump[5, 20] = 50.0
    report = bench(
        open_script(script), records("t3", "t8"), GenerationConfig(max_new_tokens=12, temperature=0.0, seed=1, exit="fixed"), repeat=2
    )
    counts = report.runs[1].identical
    assert counts is not None
    assert (counts.yes, counts.near_tie, counts.no) == (2, 0, 2)
    assert report.num_differing == 2


def test_a_prompt_s_seed_depends_on_its_index_in_the_file(open_script: OpenScript) -> None:
    engine = open_script(Script(verify=successor_table(1.0), draft=successor_table(1.0)))
    prompt = PromptRecord(id="late", prompt="t1", index=7)
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, seed=prompt_seed(5, 7), mode="plain")
    again = GenerationConfig(max_new_tokens=8, temperature=1.0, seed=5)
    seen: list[int] = []
    generate = engine.generate

    def spy(*args: object, **kwargs: object) -> object:
        completion = generate(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(completion.seed)
        return completion

    engine.generate = spy  # type: ignore[method-assign,assignment]
    bench(engine, [prompt], again, repeat=1)
    assert seen[-2:] == [config.seed, config.seed]


@pytest.mark.parametrize("options", [{"modes": ("plane",)}, {"modes": ()}, {"modes": ("plain", "plain")}, {"repeat": 0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BenchOptions(**options)  # type: ignore[arg-type]


def test_a_single_token_has_no_speed(open_script: OpenScript) -> None:
    config = GenerationConfig(max_new_tokens=1, temperature=0.0, seed=1)
    run = bench(open_script(good_script()), records("t1", "t2"), config, repeat=1).runs[1]
    assert (run.tokens_per_second, run.ratio_to_plain, run.ratio_interval_95) == (None, None, None)


def test_progress_covers_every_run(open_script: OpenScript) -> None:
    seen: list[tuple[int, int, str]] = []
    options = BenchOptions(repeat=2)
    run_bench(open_script(good_script()), records("t1", "t2"), SAMPLED, options, on_progress=lambda *step: seen.append(step))
    assert seen == [(0, 4, "p0"), (1, 4, "p1"), (2, 4, "p0"), (3, 4, "p1"), (4, 4, "")]


def sample(index: int, mode: str, tokens: int, seconds: float, repeat: int = 0) -> Sample:
    stats = DecodeStats(emitted=tokens + 2, discarded=2, decode_s=seconds, engine_s=0.9 * seconds, prefill_s=0.25, rounds=4, proposed=10)
    return Sample(prompt_id=str(index), index=index, repeat=repeat, mode=mode, stats=stats, identical=None)


def test_ratios_are_taken_within_a_repeat() -> None:
    samples = [
        sample(0, "plain", 10, 1.0, 0), sample(0, "speculative", 20, 1.0, 0),
        sample(0, "plain", 10, 2.0, 1), sample(0, "speculative", 20, 1.0, 1),
        sample(0, "plain", 10, 4.0, 2), sample(0, "speculative", 20, 4.0, 2),
    ]  # fmt: skip
    report = summarize("speculative", samples, refused=0)
    assert report.ratio_to_plain is not None
    assert (report.ratio_to_plain.min, report.ratio_to_plain.median, report.ratio_to_plain.max) == (2.0, 2.0, 4.0)
    assert report.host_overhead == pytest.approx(0.1)
    assert report.prefill_s == 0.25
    assert report.tokens_per_round == pytest.approx(22 / 4)


def test_the_interval_is_paired_and_deterministic() -> None:
    seconds = [1.0, 3.0, 0.5, 2.0, 9.0]
    plain = [sample(i, "plain", 100, s) for i, s in enumerate(seconds)]
    steady = [sample(i, "speculative", 100, s / 1.5) for i, s in enumerate(seconds)]
    assert ratio_interval(plain, steady) == pytest.approx((1.5, 1.5))  # prompts differ, the ratio does not
    varied = [sample(i, "speculative", 100, s / (1 + i / 4)) for i, s in enumerate(seconds)]
    interval = ratio_interval(plain, varied)
    assert interval == ratio_interval(plain, varied)
    assert interval is not None
    assert 1.0 <= interval[0] < interval[1] <= 2.0
    assert ratio_interval(plain[:1], steady[:1]) is None
