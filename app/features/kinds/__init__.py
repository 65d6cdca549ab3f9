"""The kinds of features, one file each; a new file is a new kind, and nothing else needs a change.

A file NAME.py defines one subclass of `Feature`, which a recipe entry chooses by `kind = "NAME"`. Only the
kinds that are used are imported, so that the serving image needs what they need and no more.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import asdict
from typing import Any

from app.errors import RecipeError
from app.features.base import Feature

DEFAULT = "number"  # of an entry that names no kind


def kind_names() -> list[str]:
    """Names of the kinds in this folder, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def feature_class(kind: str) -> type[Feature]:
    """The feature in the file `app/features/kinds/KIND.py`.

    Raises:
        RecipeError: there is no such kind; the error lists those that there are.
    """
    if kind not in kind_names():
        known = ", ".join(kind_names())
        raise RecipeError(
            f"unknown kind of feature {kind!r}", where="features", remedy=f"choose one of {known}"
        )
    module = importlib.import_module(f"{__name__}.{kind}")
    classes: list[type[Feature]] = [
        value for value in vars(module).values() if _is_defined_in(module.__name__, value)
    ]
    return classes[0]


def kind_of(feature: Feature) -> str:
    """The kind of a feature: the name of the file that defines its class."""
    return type(feature).__module__.rpartition(".")[2]


def settings_of(feature: Feature) -> dict[str, Any]:
    """The recipe entry of a feature, with every key."""
    return {"kind": kind_of(feature), **asdict(feature)}


def from_settings(settings: dict[str, Any]) -> Feature:
    """The feature of an entry that `settings_of` gave; a recipe validates first, this does not.

    Raises:
        RecipeError: an unknown kind.
        TypeError, KeyError: settings of another version.
    """
    rest = {key: value for key, value in settings.items() if key != "kind"}
    return feature_class(settings["kind"])(**rest)


def _is_defined_in(module: str, value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Feature) and value.__module__ == module
