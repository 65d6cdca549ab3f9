"""Rules about models: whether they exist, their own keys, and which are fitted in closed form."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import app.models as models
from app.errors import RecipeError
from app.recipe import ModelSection, Recipe
from app.recipe.keys import keys_of
from app.recipe_check.unknown import unknown

AUTO = "auto"  # the model that is chosen by comparison
_CLASS = re.compile(r"^class (\w+)\((\w+)[^)]*\):", re.MULTILINE)  # its name and its first base
_CLOSED_FORM = re.compile(r"^    learns\b[^=\n]*= False", re.MULTILINE)


def mistakes_of(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in [model], and in the models that other keys name."""
    yield from _model(recipe.model)
    yield from _searched(recipe)
    yield from _baselines(recipe)


def model_sources() -> dict[str, str]:
    """The source text of each model in app/models by its name, read without importing any."""
    found = {
        m.name: Path(folder) / f"{m.name}.py" for folder in models.__path__ for m in iter_modules([folder])
    }
    texts = {name: path.read_text() for name, path in sorted(found.items()) if path.exists()}
    classes = {name: _CLASS.findall(text) for name, text in texts.items() if name != "base"}
    known = {"Model"}
    while more := {c for pairs in classes.values() for c, base in pairs if base in known} - known:
        known |= more  # a model may extend another one
    return {
        name: texts[name]
        for name, pairs in classes.items()
        if any(c in known and not c.startswith("_") for c, _ in pairs)
    }


def closed_forms() -> list[str]:
    """Names of the models that are fitted instead of trained, which can be baselines."""
    return [name for name, text in model_sources().items() if _CLOSED_FORM.search(text)]


def _model(section: ModelSection) -> Iterator[RecipeError]:
    own = section.hyperparameters
    if not section.file and section.name == AUTO:
        for key, value in own.items():
            remedy = _owner(key) or "choose a model by model.name to set keys of its own, or remove it"
            yield RecipeError(f"model.{key} = {value!r}, and auto has no keys of its own", remedy=remedy)
        return
    if not section.file and section.name not in (names := list(model_sources())):
        yield unknown(
            "model", section.name, "model.name", [AUTO, *names], ", or name a file of your own in model.file"
        )
        return
    if own or section.file:
        yield from _hyperparameters(section)


def _hyperparameters(section: ModelSection) -> Iterator[RecipeError]:
    """Mistakes in the model's own keys, which its Config checks: imports torch."""
    from app.models.discovery import model_class, model_config
    from app.recipe.mistakes import validated

    try:
        kind = model_class(section.source).Config
        good, mistakes = validated(kind, section.hyperparameters)
        for mistake in mistakes:
            unknown = mistake.what.startswith("unknown key")
            key = mistake.what.split("'")[1] if unknown else ""
            known = f"{section.name} has {', '.join(kind.model_fields)}"
            close = difflib.get_close_matches(key, list(kind.model_fields), n=1)
            remedy = _owner(key) or (f"did you mean {close[0]!r}?" if close else known)
            yield RecipeError(f"[model] {mistake.what}", remedy=remedy if unknown else known)
        model_config(section.source, good.model_dump(exclude_unset=True))
    except RecipeError as error:
        yield error


def _owner(key: str) -> str:
    """The remedy for a key that belongs to another table than [model]; "" where there is none."""
    tables = [k.table for k in keys_of(Recipe) if k.own_name == key and k.table != "[model]"]
    return f"{key} belongs to {' or '.join(t or 'the top of the recipe' for t in tables)}" if tables else ""


def _searched(recipe: Recipe) -> Iterator[RecipeError]:
    """Models to search over that there are not."""
    known = [*model_sources(), *([recipe.model.name] if recipe.model.file else [])]
    for name in recipe.tune.models:
        if name not in known:
            yield unknown("model", name, "tune.models", known)


def _baselines(recipe: Recipe) -> Iterator[RecipeError]:
    known, closed = model_sources(), closed_forms()
    for name in recipe.evaluate.baselines:
        if name in known and name not in closed:
            yield RecipeError(
                f"{name!r} is trained, and a baseline is fitted in closed form",
                where="evaluate.baselines",
                remedy=f"choose among {', '.join(closed)}",
            )
        elif name not in known:
            yield unknown("model", name, "evaluate.baselines", closed)
