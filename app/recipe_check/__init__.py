"""What is wrong with a recipe by itself: all mistakes at once, before any data are read or Ray starts.

A rule is a function of a file here that yields a RecipeError for each mistake it sees. What takes long to
import (the models, with torch) is imported only where a recipe names hyperparameters or a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from app.errors import RecipeError
from app.recipe import Recipe
from app.recipe.mistakes import combined
from app.recipe_check import compression, data, evaluation, model, search
from app.recipe_check.model import AUTO, closed_forms, model_sources
from app.recipe_toml import load_leniently

__all__ = ["AUTO", "check_recipe", "closed_forms", "load_checked", "model_sources"]


def load_checked(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and check it.

    Raises:
        RecipeError: lists every mistake: unknown keys, wrong values, and what `check_recipe` finds.
    """
    recipe, mistakes = load_leniently(path, overrides)
    if mistakes := [*mistakes, *_mistakes(recipe)]:
        raise combined(mistakes, str(path))
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Check what can be seen in the recipe alone.

    Raises:
        RecipeError: lists every mistake, each with key, value and remedy.
    """
    if mistakes := list(_mistakes(recipe)):
        raise combined(mistakes)


def _mistakes(recipe: Recipe) -> Iterator[RecipeError]:
    for rules in (model, evaluation, data, compression, search):
        yield from rules.mistakes_of(recipe)
