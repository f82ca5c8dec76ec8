"""A search of a model of 40 or 80 layers starts from a published skip set; Ax handles 160 sublayers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.pipelines.recipe import read_recipe
from sstool.pipelines.search import SearchTarget, search_for
from sstool.search.log.read import read_search
from sstool.search.log.records import COMPLETED
from sstool.search.settings import SearchSettings
from sstool.skip_set import SkipSpec
from tests.toolchain.tiny_llama import make_llama

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SETTINGS = SearchSettings(trials=1, budget=None, sampled_tokens=8, greedy_tokens=8, finalists=1)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Artifacts of random models, by number of layers. Read only."""
    folder = tmp_path_factory.mktemp("published")
    made = {}
    for depth in (40, 80):
        model = make_llama(folder / f"model-{depth}", num_hidden_layers=depth, hidden_size=32, intermediate_size=48, num_attention_heads=2)
        made[depth] = export_artifact(ExportRequest(model=model, out=folder / f"artifact-{depth}", skip=SkipSpec(mlp=(1,)))).folder
    return made


def search(artifact: Path, name: str, calibration: Path, out: Path, settings: SearchSettings) -> None:
    search_for(
        SearchTarget(
            model=None,
            artifact=artifact,
            out=out,
            force=False,
            recipe=read_recipe(RECIPES / f"{name}.yaml"),
            recipe_name=name,
            settings=dataclasses.replace(settings, calibration=str(calibration)),
            draft_memory="0",
            threads=1,
            resume=False,
            progress=lambda _text: None,
        )
    )


@pytest.mark.parametrize(("name", "depth"), [("llama-2-13b", 40), ("llama-2-13b-chat", 40), ("codellama-13b", 40), ("llama-2-70b", 80)])
def test_a_published_set_is_the_first_candidate(
    name: str, depth: int, artifacts: dict[int, Path], calibration: Path, tmp_path: Path
) -> None:
    search(artifacts[depth], name, calibration, tmp_path / "found", SETTINGS)
    log = read_search(tmp_path / "found")
    published = read_recipe(RECIPES / f"{name}.yaml").warm_start
    assert published is not None
    first = log.trials[0]
    assert (first.source, first.skip, first.status) == ("recipe", published.skip(), COMPLETED)
    assert first.counts
    assert log.result is not None
    assert first.index in {f.trial for f in log.finalists}


@pytest.mark.slow
def test_ax_continues_from_a_published_set_of_160_sublayers(artifacts: dict[int, Path], calibration: Path, tmp_path: Path) -> None:
    warm = 20
    search(artifacts[80], "llama-2-70b", calibration, tmp_path / "found", dataclasses.replace(SETTINGS, trials=warm + 4))
    trials = read_search(tmp_path / "found").trials
    assert len(trials) == warm + 4
    assert sum(t.source == "ax" for t in trials) >= 4
