"""Writes a recipe as TOML with every key and its meaning, for `rayrec init` and the result of a search."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.features.base import Feature
from app.features.kinds import feature_class, kind_names, settings_of
from app.recipe import Features, Recipe, Section


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
