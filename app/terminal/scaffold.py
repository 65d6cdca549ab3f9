"""`rayrec init`: writes a recipe that explains every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.errors import UserError, disk_errors
from app.recipe import Data, Recipe
from app.recipe_toml import to_toml


def init(folder: Path) -> dict[str, Any]:
    """Write `folder/recipe.toml`; an existing one is never overwritten.

    Raises:
        UserError: there is one already.
    """
    target = folder / "recipe.toml"
    if target.exists():
        raise UserError("there is a recipe already", where=str(target), remedy="choose another folder")
    recipe = Recipe(data=Data(events=["events.csv"], event="event"))
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(
            "# Point [data] at your event log, then: rayrec check recipe.toml; rayrec run recipe.toml\n"
            + to_toml(recipe)
        )
    return {"recipe": str(target), "next": f"rayrec check {target}"}
