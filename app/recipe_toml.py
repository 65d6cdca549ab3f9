"""Recipes as TOML: reads a file with its overrides, and writes one with every key and its meaning."""

from __future__ import annotations

import json
import os
import textwrap
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.errors import RecipeError
from app.features.base import Feature
from app.features.kinds import feature_class, kind_names, settings_of
from app.recipe import AttributeFile, EventSource, ModelSection, Recipe, Train
from app.recipe.keys import Key, keys_of, settings_keys, table_type
from app.recipe.mistakes import combined
from app.recipe.whole import parse_leniently

WIDTH = 110  # characters of a line with a comment
TRAIN = "train"
LEFT_OPEN = "A key in a comment has the value shown, or what suits the model better; without the # it is set."
STORE = "store:"  # in front of the folder of a feedback log, among the events
Source = TypeVar("Source", AttributeFile, EventSource, AttributeFile | None)


def load(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are "section.key=value" with TOML values.

    Relative input paths count from the recipe's folder; $NAME is taken from the environment.

    Raises:
        RecipeError: names each wrong key, its value and the remedy.
    """
    recipe, mistakes = load_leniently(path, overrides)
    if mistakes:
        raise combined(mistakes, str(path))
    return recipe


def load_leniently(path: Path | str, overrides: Iterable[str] = ()) -> tuple[Recipe, list[RecipeError]]:
    """The recipe of a file without its wrong keys, and all that is wrong with these.

    Raises:
        RecipeError: the file cannot be read at all, or an override is none.
    """
    path = Path(path)
    content = _read(path)
    recipe, mistakes = parse_leniently(content, dict(parse_override(text) for text in overrides))
    try:
        return _resolve(recipe, path.resolve().parent), mistakes
    except RecipeError as error:
        return recipe, [*mistakes, error]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), remedy="`rayrec init DIR` writes one") from None
    except IsADirectoryError:
        raise RecipeError(
            "is a folder, not a recipe", where=str(path), remedy="name the .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid TOML: {error}", where=str(path), remedy="mend that line") from None


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
            return f"{STORE}{os.path.normpath(folder / expanded.removeprefix(STORE))}"
        return expanded if "://" in expanded else os.path.normpath(folder / expanded)

    def resolved(source: Source) -> Source:
        return source and source.model_copy(update={"files": [absolute(f) for f in source.files]})

    data = recipe.data.model_copy(
        update={
            "events": [absolute(f) for f in recipe.data.events],
            "sources": [resolved(source) for source in recipe.data.sources],
            "items": resolved(recipe.data.items),
            "users": resolved(recipe.data.users),
        }
    )
    file = recipe.model.file and absolute(recipe.model.file)
    model = recipe.model.model_copy(update={"file": file})
    split = recipe.split.model_copy(update={"test_events": [absolute(f) for f in recipe.split.test_events]})
    return recipe.model_copy(update={"data": data, "model": model, "split": split})


def to_toml(
    recipe: Recipe,
    notes: Mapping[str, str] | None = None,
    model_keys: Iterable[Key] = (),
    settled: Recipe | None = None,
) -> str:
    """The recipe as TOML, each key with its meaning and the values that it takes.

    Tables that it does not have stand in comments, with their keys and defaults. So do keys of [train] that
    it does not set: the model settles them, and written out they would count as set.

    Args:
        recipe: to write.
        notes: further comments by dotted key, e.g. why a value was guessed.
        model_keys: the model's own keys, which stand below [model] with their defaults.
        settled: the recipe with what its model settles, to show; None: the general defaults.
    """
    keys = {key.name: key for key in [*keys_of(Recipe), *model_keys]}
    open_keys = {f"{TRAIN}.{own}" for own in Train.model_fields if own not in recipe.train.model_fields_set}
    notes = {TRAIN: LEFT_OPEN, **(notes or {})} if open_keys else notes or {}
    recipe = recipe if settled is None else recipe.model_copy(update={TRAIN: settled.train})
    writer = _Writer(keys, notes, open_keys)
    lines: list[str] = []
    for name in Recipe.model_fields:
        value = getattr(recipe, name)
        lines += writer.table(name, value) if isinstance(value, BaseModel) else writer.key(name, value)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Writer:
    """Writes tables and keys with the comments that belong to them."""

    keys: Mapping[str, Key]
    notes: Mapping[str, str]
    open_keys: Collection[str] = ()  # to be written in comments

    def table(self, name: str, section: BaseModel, header: str = "") -> Iterator[str]:
        """The lines of a table, and after them the tables within it."""
        yield from ("", header or f"[{name}]", *self._note(name))
        inner, absent = [], []
        for own, field in type(section).model_fields.items():
            value = getattr(section, own)
            if isinstance(value, BaseModel) or (table_type(field.annotation) and value):
                inner.append((own, value))
            elif table_type(field.annotation):
                absent.append((own, field))
            else:
                yield from self.key(f"{name}.{own}", value)
        yield from self._hyperparameters(name, section.__pydantic_extra__ or {})
        for own, value in inner:
            yield from self._inner(f"{name}.{own}", value)
        for own, field in absent:
            yield from self._absent(f"{name}.{own}", field)

    def _inner(self, name: str, value: Any) -> Iterator[str]:
        """A table within another, or each entry of a list of tables."""
        if isinstance(value, BaseModel):
            yield from self.table(name, value)
            return
        for number, entry in enumerate(value):
            if isinstance(entry, BaseModel):
                yield from self.table(name, entry, f"[[{name}]]")
            else:
                yield from ("", f"[[{name}]]", *self._note(f"{name}.{number}"))
                settings = settings_of(entry)
                yield from (line for key, v in settings.items() for line in self.key(f"{name}.{key}", v))

    def _hyperparameters(self, name: str, values: Mapping[str, Any]) -> Iterator[str]:
        """The keys of a model, those that the recipe sets and the others."""
        for own, value in values.items():
            yield from self.key(f"{name}.{own}", value)
        known = {*values, *ModelSection.model_fields}
        for key in self.keys.values():
            if name == "model" and key.table == "[model]" and key.own_name not in known:
                yield from self.key(key.name, key.default)

    def _absent(self, name: str, field: FieldInfo) -> Iterator[str]:
        """Comments that show a table, or an entry of a list of tables, that the recipe does not have."""
        table = table_type(field.annotation)
        header = f"[[{name}]]" if field.get_default(call_default_factory=True) == [] else f"[{name}]"
        if table is not None and issubclass(table, Feature):
            for kind in kind_names():
                summary = (feature_class(kind).__doc__ or "").splitlines()[0]
                yield from ("#", f"# {summary}", f"# {header}", f"# kind = {as_toml(kind)}")
                for key in settings_keys(kind, name, header):
                    yield from (f"# {line}" for line in self.key(key.name, key.default, key))
        elif table is not None:
            yield from ("#", f"# {' '.join((table.__doc__ or '').split())}", f"# {header}")
            for key in keys_of(table, name, header):
                yield from (f"# {line}" for line in self.key(key.name, key.default))

    def key(self, name: str, value: Any, key: Key | None = None) -> Iterator[str]:
        """A key with its value; its comment stands beside it, or above it where it is long."""
        key = key or self.keys.get(name)
        own = name.rpartition(".")[2]
        comment = key.comment if key else ""
        line = f"{own} = {as_toml(_empty(key) if value is None else value)}"
        if value is None and key and not key.required:
            line = f"# {own} ="  # TOML has no word for it
        elif name in self.open_keys:
            line = f"# {line}"
        yield from self._note(name)
        if len(line) + len(comment) + 4 <= WIDTH:
            yield f"{line}  # {comment}" if comment else line
        else:
            yield from textwrap.wrap(comment, WIDTH, initial_indent="# ", subsequent_indent="#   ")
            yield line

    def _note(self, name: str) -> list[str]:
        note = self.notes.get(name)
        return textwrap.wrap(note, WIDTH, initial_indent="# ", subsequent_indent="#   ") if note else []


def _empty(key: Key | None) -> Any:
    """What stands for a value that a user has to give."""
    return [] if key and key.takes.startswith("a list") else ""


def as_toml(value: Any) -> str:
    """A value as it stands in a recipe."""
    if isinstance(value, Feature):
        value = settings_of(value)
    if isinstance(value, BaseModel):
        value = {k: v for k, v in value.model_dump(mode="json").items() if v is not None}
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_toml(str(k))} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_toml(v) for v in value) + "]"
    return repr(value)
