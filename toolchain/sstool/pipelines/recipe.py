"""Recipes: settings of an export and its search as YAML, read strictly, with paths relative to the recipe."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ssruntime.errors import ConfigError, RecipeError
from ssruntime.strict_reader import read_record
from sstool.search.settings import SearchSettings
from sstool.skip_set import SkipSpec, check_skip_spec


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The content of a recipe; a value that is None is left to flags and defaults.

    Attributes:
        model: checkpoint folder or hub id. A folder relative to the recipe is made absolute.
        revision: branch, tag or commit of a hub id.
        dtype: data type of the weights and of the computation.
        target: execution target that the graphs are lowered for.
        max_kl: largest mean KL divergence of a quantized model from fp32, in nats.
        cpu: processors that a quantized artifact is for: `any` or `vnni`.
        block_size: rows of a block of weights in int4: 32, 64 or 128.
        draft_memory: most memory of a draft's own weights, such as `5%` or `200MB`.
        max_context: length of the longest sequence in tokens.
        num_layers: number of decoder layers of the model that the recipe is for; a model of another depth is
            refused.
        skip_set: skip set and stopping rule of the draft. An export uses them as they are. With a search
            flag it searches instead, and tries this skip set first.
        warm_start: skip set that a search tries early, but that is not final: a set found elsewhere, or
            for other weights.
        search: settings of the search. The path of the calibration file is made absolute, relative to the
            recipe.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    target: str | None = None
    max_kl: float | None = None
    cpu: str | None = None
    block_size: int | None = None
    draft_memory: str | None = None
    max_context: int | None = None
    num_layers: int | None = None
    skip_set: SkipSpec | None = None
    warm_start: SkipSpec | None = None
    search: SearchSettings | None = None


def read_recipe(path: Path) -> Recipe:
    """Returns the content of a recipe file. If it has `num_layers`, its skip sets are checked against that.

    Raises:
        RecipeError: if the file is missing or not YAML, or holds an unknown key (the message names the
            closest known one), a key twice, a value of the wrong type or out of its range, or a skip set that
            does not fit its own `num_layers`.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as err:
        raise RecipeError(f"recipe {path} cannot be read: {err.strerror}", "check the path") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # an impossible date, or text that is not UTF-8, is a ValueError
        raise RecipeError(f"recipe {path} is not YAML: {err}", "see recipes/demo.yaml for an example") from err
    try:
        recipe = read_record(Recipe, {} if data is None else _with_texts(data), where=str(path), error=RecipeError)
    except ConfigError as err:  # only the search section checks its values during construction
        raise RecipeError(f"{path}: search: {err.message}", err.hint) from err
    if recipe.num_layers is not None:
        if recipe.num_layers < 1:
            raise RecipeError(f"{path}: num_layers is out of range: {recipe.num_layers}", "give 1 or more")
        check_recipe_depth(recipe, recipe.num_layers, where=str(path))
    return _with_absolute_paths(recipe, path.parent)


def check_recipe_depth(recipe: Recipe, num_layers: int, *, where: str = "recipe") -> None:
    """Checks that a recipe, and each skip set in it, fits a model of `num_layers` decoder layers.

    Args:
        recipe: the recipe to check.
        num_layers: number of decoder layers of the model.
        where: name of the recipe in messages.

    Raises:
        RecipeError: if the recipe is for a model of another depth, or one of its skip sets does not fit this
            one.
    """
    if recipe.num_layers is not None and recipe.num_layers != num_layers:
        raise RecipeError(
            f"{where}: the recipe is for a model of {recipe.num_layers} layers, and this one has {num_layers}",
            "use a recipe for this model, or no recipe",
        )
    for name, spec in (("skip_set", recipe.skip_set), ("warm_start", recipe.warm_start)):
        if spec is not None:
            check_skip_spec(spec, num_layers, where=f"{where}: {name}")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML's own loader silently keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _with_texts(data: object) -> object:
    """Returns the recipe with a budget or a memory, which YAML reads as a number, turned into text."""
    if isinstance(data, dict) and isinstance(memory := data.get("draft_memory"), int | float) and not isinstance(memory, bool):
        data = {**data, "draft_memory": str(memory)}
    search = data.get("search") if isinstance(data, dict) else None
    budget = search.get("budget") if isinstance(search, dict) else None
    if not isinstance(data, dict) or not isinstance(search, dict) or isinstance(budget, bool) or not isinstance(budget, int | float):
        return data
    text = str(budget) if isinstance(budget, int) else f"{budget:f}"  # a budget must not have an exponent
    return {**data, "search": {**search, "budget": text}}


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    if recipe.model is not None and (folder / recipe.model).is_dir():
        recipe = replace(recipe, model=str((folder / recipe.model).resolve()))
    search = recipe.search
    if search is None or search.calibration is None:
        return recipe
    return replace(recipe, search=replace(search, calibration=str((folder / search.calibration).resolve())))
