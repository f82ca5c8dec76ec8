"""A search runs on any target: it only needs a backend's interface, and drafts in the target's own form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Final

import pytest

from ssruntime import load
from ssruntime.artifact import read_artifact
from ssruntime.stopping import OptimalRule
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.pipelines.replace_draft import draft_of, replace_draft
from sstool.search.log.records import COMPLETED
from sstool.search.run import SearchOutcome, SearchRequest, run_search
from sstool.search.settings import SearchSettings
from sstool.skip_set import SkipSpec
from tests.toolchain.tiny_llama import make_llama

TARGETS: Final = ("ort-cuda", "tensorrt")
TRIALS: Final = 8


@pytest.fixture(scope="module", params=TARGETS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, SearchOutcome]:
    """An artifact of a tiny model, the folder of a short search for its draft, and the outcome."""
    root = tmp_path_factory.mktemp(request.param)
    model, skip = make_llama(root / "model"), SkipSpec(attention=(1,), mlp=(0, 2))
    export = ExportRequest(model=model, out=root / "artifact", target=request.param, dtype="fp16", max_context=128, skip=skip)
    folder = export_artifact(export).folder
    prompts = [{"id": f"p{n}", "prompt": f"w{n} w{n + 5} w{n + 9}"} for n in range(2)]
    calibration = root / "calibration.jsonl"
    calibration.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    settings = SearchSettings(calibration=str(calibration), trials=TRIALS, budget=None, sampled_tokens=12, greedy_tokens=8, finalists=1)
    outcome = run_search(SearchRequest(folder=folder, work=root / "work", settings=settings, threads=1, on_cpu=True))
    return folder, root / "work", outcome


def test_candidates_run_and_are_timed(found: tuple[Path, Path, SearchOutcome]) -> None:
    _, work, outcome = found
    assert outcome.num_trials == TRIALS
    assert outcome.closest is not None
    assert outcome.closest.status == COMPLETED
    assert (work / "latency.json").exists()


def test_the_new_draft_takes_the_place_of_the_old_one(found: tuple[Path, Path, SearchOutcome]) -> None:
    folder, work, outcome = found
    spec, tuning = draft_of(outcome)
    before = read_artifact(folder).manifest
    manifest = replace_draft(folder, spec, search=work, tuning=tuning)
    assert manifest.drafts[0].skip == spec.skip()
    assert manifest.files["draft.onnx"] != before.files["draft.onnx"] or spec.skip() == before.drafts[0].skip
    assert manifest.files["verify.onnx"] == before.files["verify.onnx"]
    with load(folder, threads=1, on_cpu=True) as engine:
        how = dataclasses.replace(engine.settings(), mode="speculative")
        assert engine.generate("w1 w2").token_ids
        assert how.stopping == OptimalRule()
