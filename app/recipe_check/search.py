"""Rules about [tune]: what [tune.space] may name, and what may be tried there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.errors import RecipeError
from app.recipe import Recipe
from app.recipe.tune import RANGE, leaves_of_space
from app.recipe_check.model import AUTO

SEARCHED = ("model", "train", "compress")
LIST_OR_RANGE = "write a list of values, or { low = 0.1, high = 0.5 }, with log = true on a logarithmic scale"


def mistakes_of(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in the space of a search, which would show once trials fail."""
    for key, tried in leaves_of_space(recipe.tune.space):
        where = f"tune.space.{key}"
        section, _, name = key.partition(".")
        if section not in SEARCHED or not name:
            remedy = f"name keys of {', '.join(f'[{part}]' for part in SEARCHED)}"
            yield RecipeError(f"{key!r} is nothing that a search varies", where=where, remedy=remedy)
        elif what := _malformed(tried):
            yield RecipeError(what, where=where, remedy=LIST_OR_RANGE)
        else:
            values = tried if isinstance(tried, list) else [tried["low"], tried["high"]]
            yield from _values(recipe, key, values, where)


def _malformed(tried: Any) -> str:
    """What is wrong with a list of values or a range; "" where nothing is."""
    if isinstance(tried, list):
        return "" if tried else "there is no value to try"
    if not isinstance(tried, dict):
        return f"{tried!r} is neither a list nor a range"
    if unknown := set(tried) - RANGE:
        return f"a range has no {sorted(unknown)[0]!r}"
    ends = [tried.get(name) for name in ("low", "high")]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        return "a range needs the numbers low and high"
    low, high = (float(end) for end in ends if end is not None)
    if low > high:
        return f"the range is inverted: low {low:g} exceeds high {high:g}"
    if tried.get("log") and low <= 0:
        return f"a logarithmic scale holds no {low:g}"
    return ""


def _values(recipe: Recipe, key: str, values: list[Any], where: str) -> Iterator[RecipeError]:
    """Values that the key cannot take, or a key that there is not."""
    for value in values:
        try:
            changed = recipe.override({key: value})
            if key.startswith("model."):
                _check_hyperparameter(changed)
        except RecipeError as error:
            yield RecipeError(error.what, where=where, remedy=error.remedy)
            return


def _check_hyperparameter(recipe: Recipe) -> None:
    """Refuse a hyperparameter that no searched model has: imports torch."""
    from app.models.discovery import model_config

    own = [] if recipe.model.name == AUTO and not recipe.model.file else [recipe.model.source]
    errors = []
    for source in recipe.tune.models or own:
        try:
            model_config(source, recipe.model.hyperparameters)
            return
        except RecipeError as error:
            errors.append(error)
    if errors:
        raise errors[0]
