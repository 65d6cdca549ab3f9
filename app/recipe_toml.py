"""Recipes as TOML: reads a file with its overrides, and writes one with every key and its meaning."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.errors import RecipeError
from app.features.base import Feature
from app.features.kinds import feature_class, kind_names, settings_of
from app.recipe import AttributeFile, Features, Recipe, Section, parse

STORE = "store:"  # in front of the folder of a feedback log, among the events


def load(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are "section.key=value" with TOML values.

    Relative input paths count from the recipe's folder; $NAME is taken from the environment.

    Raises:
        RecipeError: names the key, the value and the remedy.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), remedy="`rayrec init DIR` writes one") from None
    except IsADirectoryError:
        raise RecipeError(
            "is a folder, not a recipe", where=str(path), remedy="name the .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid TOML: {error}", where=str(path), remedy="mend that line") from None
    changes = dict(parse_override(text) for text in overrides)
    recipe = parse(content, str(path), changes)
    return _resolve(recipe, path.resolve().parent)


def parse_override(text: str) -> tuple[str, Any]:
    """Split "train.epochs=3" into key and typed value; a bare word counts as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r} is no override", where="--set", remedy="write section.key=value")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _resolve(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(name: str) -> str:
        expanded = os.path.expandvars(name)
        if "$" in expanded:
            raise RecipeError(
                f"{name!r} names an environment variable that is not set", where="data", remedy="export it"
            )
        if expanded.startswith(STORE):
            return f"{STORE}{folder / expanded.removeprefix(STORE)}"
        prefix = "store:" if expanded.startswith("store:") else ""
        return expanded if "://" in expanded else f"{prefix}{folder / expanded.removeprefix(prefix)}"

    def attributes(source: AttributeFile | None) -> AttributeFile | None:
        return source and source.model_copy(update={"files": [absolute(f) for f in source.files]})

    data = recipe.data.model_copy(
        update={
            "events": [absolute(f) for f in recipe.data.events],
            "items": attributes(recipe.data.items),
            "users": attributes(recipe.data.users),
        }
    )
    file = recipe.model.file and absolute(recipe.model.file)
    model = recipe.model.model_copy(update={"file": file})
    split = recipe.split.model_copy(update={"test_events": [absolute(f) for f in recipe.split.test_events]})
    return recipe.model_copy(update={"data": data, "model": model, "split": split})


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML. Tables that it does not have stand in comments, with their keys and defaults."""
    lines: list[str] = []
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        lines += _table(name, value) if isinstance(value, BaseModel) else [_key(name, value, field)]
    return "\n".join(lines) + "\n"


def _table(name: str, section: BaseModel) -> Iterator[str]:
    """The lines of a table, and after them the tables within it."""
    yield from ("", f"[{name}]")
    absent, inner = [], []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            inner.append((key, value))
        elif not value and _table_type(field.annotation):
            # An empty value beside the tables that a user adds would define the key twice.
            yield f"# {key} ={_note(field)}"
            absent.append((key, field))
        else:
            yield _key(key, value, field)
    yield from (f"{key} = {_toml(value)}" for key, value in (section.__pydantic_extra__ or {}).items())
    for key, field in absent:
        yield from _absent_tables(f"{name}.{key}", field)
    if isinstance(section, Features):
        yield from _feature_kinds()
    for key, value in inner:
        yield from _table(f"{name}.{key}", value)


def _absent_tables(name: str, field: FieldInfo) -> Iterator[str]:
    """Comments that show a table, or an entry of a list of tables, that the recipe does not have."""
    section = _table_type(field.annotation)
    if section is not None and issubclass(section, Section):
        header = f"[[{name}]]" if field.get_default() == [] else f"[{name}]"
        yield from ("#", f"# {section.__doc__}", f"# {header}")
        yield from (
            f"# {_key(key, inner.get_default(), inner)}" for key, inner in section.model_fields.items()
        )


def _feature_kinds() -> Iterator[str]:
    """Comments that show an entry of each kind of feature."""
    for kind in kind_names():
        feature = feature_class(kind)
        summary = (feature.__doc__ or "").splitlines()[0]
        yield from ("#", f"# {summary}", "# [[features.item]]", f"# kind = {_toml(kind)}")
        for field in fields(feature):
            default = "" if field.default is MISSING else field.default
            yield f"# {field.name} = {_toml(default)}  # {field.metadata.get('description', '')}"


def _table_type(annotation: Any) -> type[Section | Feature] | None:
    """The section or feature that a key, or each entry of its list, holds; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section | Feature):
        table: type[Section | Feature] = annotation
        return table
    return next((table for table in map(_table_type, get_args(annotation)) if table), None)


def _key(name: str, value: Any, field: FieldInfo) -> str:
    empty = [] if "list" in str(field.annotation) else ""
    return f"{name} = {_toml(empty if value is PydanticUndefined else value)}{_note(field)}"


def _note(field: FieldInfo) -> str:
    return f"  # {field.description}" if field.description else ""


def _toml(value: Any) -> str:
    if isinstance(value, Feature):
        value = settings_of(value)
    if isinstance(value, BaseModel):
        value = {k: v for k, v in value.model_dump(mode="json").items() if v is not None}
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
