"""`rayrec init`: writes a recipe that explains every key, with the columns of your files filled in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app.errors import UserError, disk_errors
from app.recipe import Data, Recipe
from app.recipe.keys import Key, keys_of
from app.recipe_check import AUTO
from app.recipe_toml import parse_override, to_toml
from app.terminal.guess.draft import draft

HEADING = "# {advice}, then: rayrec check {name}; rayrec run {name}\n"
ROLES = ("user", "item", "event", "value")
GUESSED = ("events", "sources", *ROLES, "timestamp", "items", "users")


def init(folder: Path, files: Sequence[str] = (), changes: Iterable[str] = ()) -> dict[str, Any]:
    """Write `folder/recipe.toml`; an existing one is never overwritten.

    Args:
        folder: of the recipe.
        files: files, folders, globs or URIs to look at, whose columns the recipe names; none: a template.
        changes: overrides "section.key=value"; those of the columns' roles count as known when guessing.

    Returns:
        The path of the recipe, what was guessed and why, the files that fit nowhere, and the next command.

    Raises:
        UserError: there is a recipe already, or the files do not show who the users or items are.
    """
    target = folder / "recipe.toml"
    if target.exists():
        raise UserError("there is a recipe already", where=str(target), remedy="choose another folder")
    overrides = dict(parse_override(text) for text in changes)
    result: dict[str, Any] = {"recipe": str(target)}
    notes: dict[str, str] = {}
    if files:
        known = {role: str(overrides[f"data.{role}"]) for role in ROLES if f"data.{role}" in overrides}
        drafted = draft(files, folder, known)
        recipe, notes = drafted.recipe, drafted.notes
        result |= _guesses(recipe, notes)
        result |= {"left out": ", ".join(drafted.unused)} if drafted.unused else {}
    else:
        recipe = Recipe(data=Data(events=["events.csv"], event="event"))
    recipe = recipe.override(overrides)
    advice = "Look at the guesses" if files else "Point [data] at your event log"
    text = to_toml(recipe, notes, _model_keys(recipe), _settled(recipe))
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(HEADING.format(advice=advice, name=target.name) + text)
    return {**result, "next": f"rayrec check {target}"}


def _model_keys(recipe: Recipe) -> list[Key]:
    """The keys of the chosen model; none where it is chosen by comparison."""
    if recipe.model.source == AUTO:
        return []
    from app.models.discovery import model_class

    return list(keys_of(model_class(recipe.model.source).Config, "model", "[model]"))


def _settled(recipe: Recipe) -> Recipe:
    """The recipe with the settings of [train] that suit its model."""
    if recipe.model.source == AUTO:
        return recipe
    from app.training.defaults import settled

    return settled(recipe)


def _guesses(recipe: Recipe, notes: dict[str, str]) -> dict[str, str]:
    """What was found for each role, with its reason."""
    shown = {}
    for key in GUESSED:
        value = getattr(recipe.data, key)
        if key == "sources":
            value = [f"{', '.join(s.files)} ({s.event})" if s.event else ", ".join(s.files) for s in value]
        elif key in ("items", "users"):
            value = value and f"{', '.join(value.files)}, id {value.id}"
        if isinstance(value, list):
            value = ", ".join(value)
        reason = notes.get(f"data.{key}") or notes.get(f"data.{key}.id", "")
        if value:
            shown[key] = f"{value} ({reason.removeprefix('guess: ')})" if reason else str(value)
        elif key in ("user", "item", "timestamp") or reason:
            shown[key] = f"none ({reason.removeprefix('guess: ')})" if reason else "none"
    return shown
