"""The shipped recipes and calibration prompts are usable as they are and agree with their documentation."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ssruntime.artifact import WEIGHTS, read_artifact
from ssruntime.errors import RecipeError
from sstool.pipelines.recipe import Recipe, check_recipe_depth, read_recipe
from sstool.prompts import BUILT_IN_CALIBRATION, read_prompts
from sstool.search.log.read import read_search
from sstool.search.settings import SearchSettings
from sstool.skip_set import SkipSpec
from sstool.targets.registry import GRAPH_TARGETS

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
SHARED = REPOSITORY.parent / "shared"
PUBLISHED = {
    "llama-2-13b": ("meta-llama/Llama-2-13b-hf", 40, 24, 10),
    "llama-2-13b-chat": ("meta-llama/Llama-2-13b-chat-hf", 40, 24, 10),
    "codellama-13b": ("codellama/CodeLlama-13b-hf", 40, 22, 12),
    "llama-2-70b": ("meta-llama/Llama-2-70b-hf", 80, 47, 37),
}
README = (RECIPES / "README.md").read_text(encoding="utf-8")


def recipe_from(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


# The recipes in the repository.


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_can_be_read_and_fits_its_model(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.model
    num_layers = recipe.num_layers
    if Path(recipe.model).is_dir():
        num_layers = json.loads((Path(recipe.model) / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    assert num_layers
    check_recipe_depth(recipe, num_layers)
    assert f"`{path.name}`" in README
    target = GRAPH_TARGETS[recipe.target or "ort-cpu"]
    assert target.chosen_dtype(recipe.dtype, "fp32") in target.dtypes


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_recipe_has_a_warm_start_and_no_fixed_skip_set(name: str) -> None:
    model, num_layers, num_attention, num_mlp = PUBLISHED[name]
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert (recipe.model, recipe.num_layers, recipe.skip_set) == (model, num_layers, None)
    assert recipe.warm_start is not None
    assert (len(recipe.warm_start.attention), len(recipe.warm_start.mlp)) == (num_attention, num_mlp)
    assert "arXiv 2309.08168" in (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{name}.yaml` | `{model}` |"))
    assert row.endswith(f"| {num_layers} | `warm_start`: {num_attention} attention, {num_mlp} MLP |")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_recipe_holds_the_published_numbers(name: str) -> None:
    source = SHARED / "recipes" / "paper_skip_sets.json"
    if not source.exists():
        pytest.skip("the published sets are not next to the repository (../shared/recipes/paper_skip_sets.json)")
    published = json.loads(source.read_text(encoding="utf-8"))[name]
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert recipe.warm_start == SkipSpec(attention=tuple(published["attention"]), mlp=tuple(published["mlp"]))


def test_the_demo_s_skip_set_is_what_its_search_found(demo_artifact: Path) -> None:
    recipe, log = read_recipe(RECIPES / "demo.yaml"), read_search(RECIPES / "demo" / "search")
    assert log.result is not None
    winner = next(t for t in log.trials if t.index == log.result.trial)
    assert recipe.skip_set == dataclasses.replace(winner.spec(), stopping=None)
    weights = read_artifact(demo_artifact).manifest.files[WEIGHTS]
    assert weights.sha256 == log.header.weights_sha256


# What is documented.


def documented_rows(heading: str) -> dict[str, list[str]]:
    """Returns the rows of the table under a heading of the recipes' README, by key."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


@pytest.mark.parametrize(
    ("heading", "cls"),
    [("Keys", Recipe), ("Keys of `search`", SearchSettings)],
)
def test_every_key_is_documented(heading: str, cls: Any) -> None:
    assert list(documented_rows(heading)) == [field.name for field in dataclasses.fields(cls)]


def test_every_key_of_a_skip_set_is_documented() -> None:
    assert tuple(documented_rows("Keys of `skip_set` and `warm_start`")) == SkipSpec.keys()


def test_every_field_of_a_recipe_is_documented() -> None:
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(Recipe) or "", flags=re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(Recipe)]


def test_the_documented_defaults_are_the_defaults() -> None:
    shown = {name: cells[0].strip("`") for name, cells in documented_rows("Keys of `search`").items()}
    defaults = dataclasses.asdict(SearchSettings())
    assert shown == {name: "null" if value is None else str(value) for name, value in defaults.items()}


def test_the_documented_ranges_are_those_of_the_docstring() -> None:
    attributes = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(SearchSettings) or "", flags=re.MULTILINE)
    rows = documented_rows("Keys of `search`")
    for name, text in attributes:
        assert numbers(text) <= numbers(rows[name][1]), name


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.*]*(?<!\.)", text))


# Depth.


def test_a_recipe_for_another_depth_is_refused() -> None:
    recipe = read_recipe(RECIPES / "llama-2-13b.yaml")
    with pytest.raises(RecipeError, match="for a model of 40 layers, and this one has 32") as caught:
        check_recipe_depth(recipe, 32, where="llama-2-13b.yaml")
    assert caught.value.message.startswith("llama-2-13b.yaml")
    assert caught.value.hint


@pytest.mark.parametrize("section", ["skip_set", "warm_start"])
def test_a_skip_set_is_checked_against_the_depth_that_the_recipe_names(section: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"{section}: mlp layer 4 does not exist"):
        recipe_from(tmp_path, f"num_layers: 4\n{section}: {{mlp: [4]}}\n")
    with pytest.raises(RecipeError, match=rf"{section}: exit_threshold is out of range"):
        recipe_from(tmp_path, f"num_layers: 4\n{section}: {{mlp: [3], exit: confidence, exit_threshold: 2}}\n")


@pytest.mark.parametrize("section", ["skip_set", "warm_start"])
def test_a_recipe_that_names_no_depth_is_checked_against_the_model(section: str, tmp_path: Path) -> None:
    recipe = recipe_from(tmp_path, f"{section}: {{attention: [7]}}\n")
    check_recipe_depth(recipe, 8)
    with pytest.raises(RecipeError, match=rf"recipe: {section}: attention layer 7 does not exist"):
        check_recipe_depth(recipe, 4)


def test_a_depth_is_at_least_1(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="num_layers is out of range: 0"):
        recipe_from(tmp_path, "num_layers: 0\n")


def test_a_recipe_without_skip_sets_fits_every_model() -> None:
    check_recipe_depth(Recipe(), 3)


@pytest.mark.parametrize("place", ["model", "search", "x", "? *i\n: y\nmodel"])
def test_a_recipe_of_nested_aliases_is_refused_without_expanding_them(place: str, tmp_path: Path) -> None:
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in itertools.pairwise(names)]
    with pytest.raises(RecipeError):
        recipe_from(tmp_path, "\n".join([*lines, f"{place}: *i"]) + "\n")
    nested = "[" * 9 + "x" + "]" * 9
    with pytest.raises(RecipeError, match=r"model: expected str, found list"):
        recipe_from(tmp_path, f"model: {nested}\n")


# Keys and values.


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("search: {trails: 3}", "search: unknown key 'trails'", "'trials'"),
        ("warmstart: {mlp: [1]}", "unknown key 'warmstart'", "'warm_start'"),
        ("warm_start: {mpl: [1]}", "warm_start: unknown key 'mpl'", "'mlp'"),
        ("num_layer: 3", "unknown key 'num_layer'", "'num_layers'"),
        ("search: [1]", "search: expected an object", ""),
        ("search: {trials: many}", "search: trials: expected int", ""),
        ("search: {budget: true}", "search: budget: expected str", ""),
        ("search: {budget: soon}", "search: budget 'soon' is not a time", "10m"),
        ("search: {budget: 0}", "search: budget is out of range", "10m"),
        ("search: {budget: -5}", "search: budget '-5' is not a time", "10m"),
        ("search: {budget: .nan}", "search: budget 'nan' is not a time", "10m"),
        ("search: {trials: 0}", "search: trials is out of range: 0", "1 or more"),
        ("search: {top_p: 0}", "search: top_p is out of range", "above 0"),
        ("model: a\nmodel: b", "key 'model' is given twice", ""),
        ("skip_set: {mlp: [1], mlp: [2]}", "key 'mlp' is given twice", ""),
        ("revision: 2024-13-45", "is not YAML", ""),
        ("a: " + "[" * 3000, "is not YAML", ""),
        ("? [a]\n: b", "is not YAML", ""),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(text: str, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from(tmp_path, text)
    assert message in caught.value.message
    assert "recipe.yaml" in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"model: \xff\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        read_recipe(path)


@pytest.mark.parametrize(("text", "seconds"), [("600", 600), ("0.5", 0.5), ("10m", 600), ("'90'", 90), ("null", math.inf)])
def test_a_budget_may_be_a_number_of_seconds(text: str, seconds: float, tmp_path: Path) -> None:
    recipe = recipe_from(tmp_path, f"search: {{budget: {text}}}\n")
    assert recipe.search is not None
    assert recipe.search.budget_seconds == seconds


def test_an_empty_search_section_gives_the_defaults(tmp_path: Path) -> None:
    assert recipe_from(tmp_path, "search: {}\n").search == SearchSettings()
    assert recipe_from(tmp_path, "search:\n").search is None


# Paths.


@pytest.mark.parametrize("given", ["mine.jsonl", "../mine.jsonl", "sub/mine.jsonl"])
def test_a_calibration_file_is_relative_to_the_recipe(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(f"search: {{calibration: {given}, trials: 7}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    search = read_recipe(Path("recipes/recipe.yaml")).search
    assert search == SearchSettings(calibration=str((folder / given).resolve()), trials=7)


def test_an_absolute_calibration_path_is_kept(tmp_path: Path) -> None:
    path = tmp_path.resolve() / "elsewhere" / "mine.jsonl"
    search = recipe_from(tmp_path, f"search: {{calibration: {path}}}\n").search
    assert search is not None
    assert search.calibration == str(path)


def test_a_model_and_a_calibration_file_next_to_the_recipe_are_found(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    recipe = recipe_from(tmp_path, "model: model\nsearch: {calibration: mine.jsonl}\n")
    assert recipe.model == str((tmp_path / "model").resolve())
    assert recipe.search is not None
    assert recipe.search.calibration == str((tmp_path / "mine.jsonl").resolve())


# The calibration prompts that sstool ships.


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


def test_there_are_64_different_prompts() -> None:
    prompts = read_prompts(BUILT_IN_CALIBRATION)
    assert len(prompts) == len({p.id for p in prompts}) == len({p.prompt for p in prompts}) == 64
    assert not [p.id for p in prompts if p.id == str(p.index)]


def test_the_prompts_are_short_and_do_not_end_in_whitespace() -> None:
    tokenizer = Tokenizer.from_file(str(RECIPES / "demo" / "tokenizer.json"))
    prompts = read_prompts(BUILT_IN_CALIBRATION)
    assert not [p.id for p in prompts if not 15 <= len(tokenizer.encode(p.prompt).ids) <= 180]
    assert not [p.id for p in prompts if p.prompt != p.prompt.rstrip()]


@pytest.mark.parametrize("half", [0, 1])
def test_every_eight_prompts_of_a_half_are_of_varied_kinds(half: int) -> None:
    kinds = [p.id.split("-")[0] for p in read_prompts(BUILT_IN_CALIBRATION)][half::2]
    for start in range(0, 32, 8):
        eight = kinds[start : start + 8]
        assert "arithmetic" in eight
        assert len(set(eight)) >= 7, eight


def test_no_calibration_prompt_is_an_evaluation_prompt() -> None:
    """Neither held-out prompts nor those of the documented figures may tune a draft."""
    sources = [RECIPES / "demo" / "prompts.jsonl"]
    held_out = sorted((SHARED / "eval").glob("*.jsonl"))
    judged = [p.prompt for source in (*sources, *held_out) for p in read_prompts(source)]
    ours = read_prompts(BUILT_IN_CALIBRATION)
    assert not {p.prompt.strip() for p in ours} & {text.strip() for text in judged}
    shared_runs = {run for text in judged for run in runs(text, 7)}
    assert not [p.id for p in ours if runs(p.prompt, 7) & shared_runs]
    if not held_out:
        pytest.skip("the held-out prompts are not next to the repository (../shared/eval): only the demo's prompts were compared")
