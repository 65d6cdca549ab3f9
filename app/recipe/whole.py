"""The whole recipe, and how plain data becomes one; a mistake is told with its key, value and remedy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from app.errors import RecipeError
from app.recipe.compress import Compress
from app.recipe.data import Data, Split
from app.recipe.evaluate import Evaluate, Export
from app.recipe.features import Features
from app.recipe.mistakes import combined, validated
from app.recipe.section import Section
from app.recipe.serve import Serve
from app.recipe.train import ModelSection, Train
from app.recipe.tune import Tune

LOGGED_TRAINING = {"negatives": 0, "metric": "auc"}  # defaults of [train] by logged labels


class Recipe(Section):
    """A recipe, with the settings of every stage."""

    name: str = Field("model", description="name of the model")
    seed: int = Field(42, description="seed of everything that is random")
    data: Data = Data()
    split: Split = Split()
    features: Features = Features()
    model: ModelSection = ModelSection()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compress: Compress = Compress()
    export: Export = Export()
    serve: Serve = Serve()
    tune: Tune = Tune()

    @model_validator(mode="before")
    @classmethod
    def _logged_labels(cls, content: Any) -> Any:
        """Where logged labels are evaluated, they are what is learned and chosen by, too, by default."""
        evaluated = content.get("evaluate") if isinstance(content, Mapping) else None
        if not isinstance(evaluated, Mapping) or evaluated.get("candidates") != "logged":
            return content
        train = content.get("train") or {}
        return {**content, "train": {**LOGGED_TRAINING, **train}} if isinstance(train, Mapping) else content

    def part(self, *sections: str) -> dict[str, Any]:
        """The named sections as plain data, for a manifest and its cache key.

        In place of the path of a model's file stands the SHA-256 of its content; of the address of a
        Redis, user and password are left out.

        Raises:
            RecipeError: the file of the model cannot be read.
        """
        plain = {"seed": self.seed, **{s: getattr(self, s).model_dump(mode="json") for s in sections}}
        if "data" in plain:
            plain["data"]["events"] = [_without_password(entry) for entry in plain["data"]["events"]]
        if "model" in plain and (file := plain["model"].pop("file")):
            plain["model"]["file"] = _sha256(Path(file))
        return plain

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys changed, e.g. {"train.epochs": 3}."""
        return parse(self.model_dump(mode="json", exclude_unset=True), "override", changes)


def parse(content: Mapping[str, Any], where: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Validate plain data as a recipe.

    Args:
        content: tables by name.
        where: the source of the content, for errors.
        changes: dotted keys that override the content, e.g. {"train.epochs": 3}.

    Raises:
        RecipeError: names each wrong key, its value and the remedy.
    """
    recipe, mistakes = parse_leniently(content, changes)
    if mistakes:
        raise combined(mistakes, where)
    return recipe


def parse_leniently(
    content: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> tuple[Recipe, list[RecipeError]]:
    """The recipe without its wrong keys, and all that is wrong with these.

    Raises:
        RecipeError: a changed key lies below a value that is no table.
    """
    return validated(Recipe, _merge(content, changes or {}))


def _without_password(entry: str) -> str:
    scheme, mark, address = entry.partition("://")
    return f"{scheme}{mark}{address.rpartition('@')[2]}" if scheme in ("redis", "rediss") else entry


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RecipeError(
            f"the file cannot be read ({error.strerror})", where=str(path), remedy="correct model.file"
        ) from None


def _merge(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if not rest:
            merged[head] = value
            continue
        inner = merged.get(head, {})
        if not isinstance(inner, Mapping):
            raise RecipeError(
                f"{head!r} is not a section", where=key, remedy="see `rayrec init` for the keys"
            )
        merged[head] = _merge(inner, {rest: value})
    return merged
