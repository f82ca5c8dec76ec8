"""Skip sets and recipes are read strictly: invalid values are refused, unknown keys with the closest one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssruntime.artifact import SkipSet
from ssruntime.errors import RecipeError
from ssruntime.stopping import ConfidenceRule
from sstool.pipelines.recipe import Recipe, read_recipe
from sstool.skip_set import SkipSpec, check_skip_spec, default_skip_set, parse_layers, read_skip_file

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_flag_holds_a_comma_separated_list_of_layers() -> None:
    assert parse_layers("3, 5,7", flag="--skip-mlp") == (3, 5, 7)
    assert parse_layers("", flag="--skip-mlp") == ()


@pytest.mark.parametrize("text", ["3,x", "1.5", "3,,4", "two"])
def test_an_entry_that_is_not_a_number_is_refused_with_its_flag(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--skip-mlp.*is not a layer number"):
        parse_layers(text, flag="--skip-mlp")


def test_a_file_holds_a_skip_set_and_its_stopping_rule(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"attention": [5, 3], "mlp": [4], "exit": "confidence", "exit_threshold": 0.7, "max_draft": 6}))
    spec = read_skip_file(path)
    assert spec.skip() == SkipSet(attention=(3, 5), mlp=(4,))
    assert spec.draft_entry("fp32").stopping == ConfidenceRule(exit_threshold=0.7, max_draft=6)
    assert SkipSpec.read(spec.to_json(), where="here", error=RecipeError) == spec


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('{"atention": [1]}', "unknown key 'atention'", "'attention'"),
        ('{"attention": ["one"]}', r"attention\[0\]: expected int", ""),
        ('{"attention": 3}', "expected a list", ""),
        ('{"mlp": [true]}', "expected int", ""),
        ('{"max_draft": 2.5}', "max_draft: expected int", ""),
        ('{"mlp": [1], "exit": "sometimes"}', "exit must be one of", ""),
        ('{"mlp": [1], "exit": "confidence", "exit_threshold": 1.5}', "exit_threshold is out of range", ""),
        ('{"mlp": [1], "exit": "adaptive", "exit_threshold": NaN}', "exit_threshold is out of range", ""),
        ('{"mlp": [1], "max_draft": 16}', "max_draft is out of range", ""),
        ('{"mlp": [1], "exit": "fixed", "exit_threshold": 0.5}', "no meaning", "leave exit_threshold out"),
        ('{"mlp": [1], "exit_threshold": 0.5}', "no meaning with exit 'optimal'", "or set exit to 'confidence' or 'adaptive'"),
        ("[1, 2]", "expected an object", ""),
        ("{", "is not JSON", ""),
        ("", "is not JSON", ""),
        ("[" * 200_000, "is not JSON", ""),
    ],
)
def test_an_invalid_file_is_refused(text: str, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_skip_file(path)
    assert hint in caught.value.hint


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_skip_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SkipSpec(attention=(4,)), "attention layer 4 does not exist"),
        (SkipSpec(mlp=(-1,)), "mlp layer -1 does not exist"),
        (SkipSpec(mlp=(1, 1)), "named twice"),
        (SkipSpec(), "no sublayer is skipped"),
        (SkipSpec(attention=(0, 1, 2, 3), mlp=(0, 1, 2, 3)), "all 8 sublayers are skipped"),
        (SkipSpec(mlp=(1,), max_alternatives=4), "max_alternatives is out of range"),
        (SkipSpec(mlp=(1,), mode="fast"), "mode must be one of"),
    ],
)
def test_a_skip_set_that_does_not_fit_is_refused(spec: SkipSpec, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        check_skip_spec(spec, 4, where="set.json")
    assert caught.value.message.startswith("set.json")
    assert caught.value.hint


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 8, 16, 24, 80])
def test_the_default_skip_set_fits_every_model_and_keeps_the_first_and_last_layer(num_layers: int) -> None:
    skip = default_skip_set(num_layers)
    check_skip_spec(SkipSpec(attention=skip.attention, mlp=skip.mlp), num_layers)
    if num_layers > 2:
        assert not {0, num_layers - 1} & {*skip.attention, *skip.mlp}


def test_the_default_skip_set_of_eight_layers_follows_its_rule() -> None:
    assert default_skip_set(8) == SkipSet(attention=(1, 4), mlp=(1, 2, 4, 5))


def test_the_demo_recipe_is_valid() -> None:
    recipe = read_recipe(REPOSITORY / "recipes" / "demo.yaml")
    assert recipe.model == str(REPOSITORY / "recipes" / "demo")
    assert recipe.skip_set is not None
    check_skip_spec(recipe.skip_set, 16)
    assert recipe.skip_set.stopping is None


def test_a_hub_id_in_a_recipe_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: org/name\nrevision: main\n")
    assert read_recipe(path) == Recipe(model="org/name", revision="main")


def test_an_empty_recipe_has_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("# nothing yet\n")
    assert read_recipe(path) == Recipe()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("modle: x", "unknown key 'modle'", "'model'"),
        ("skip_set: {atention: [1]}", "skip_set: unknown key 'atention'", "'attention'"),
        ("max_context: many", "max_context: expected int", ""),
        ("- a list", "expected an object", ""),
        ("model: [", "is not YAML", ""),
        ("model: !!python/object/apply:os.getcwd []", "is not YAML", ""),
    ],
)
def test_an_invalid_recipe_is_refused(text: str, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert hint in caught.value.hint


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
