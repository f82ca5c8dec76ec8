"""Recipes: an export written down in YAML, read strictly, with paths relative to the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ssruntime.errors import RecipeError
from ssruntime.records import read_record
from sstool.skip_set import SkipSpec


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe may say; what is None is left to flags and defaults.

    Attributes:
        model: folder or hub id. One that names a folder relative to the recipe is made absolute.
        revision: hub branch, tag or commit.
        dtype: of the weights and the computation.
        target: what the graphs are lowered for.
        max_context: longest sequence of the artifact.
        skip_set: the draft's skip set and its tuned exit.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    target: str | None = None
    max_context: int | None = None
    skip_set: SkipSpec | None = None


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        RecipeError: if the file is missing, is not YAML, or holds an unknown key (the closest is named) or a value of another type.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise RecipeError(f"recipe {path} cannot be read: {err.strerror}", "check the path") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise RecipeError(f"recipe {path} is not YAML: {err}", "see recipes/demo.yaml for an example") from err
    recipe = read_record(Recipe, {} if data is None else data, where=str(path), error=RecipeError)
    if recipe.model is None:
        return recipe
    beside = path.parent / recipe.model
    return replace(recipe, model=str(beside.resolve())) if beside.is_dir() else recipe
