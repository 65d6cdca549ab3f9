"""Every mistake of a recipe's content at once, and the rest of the recipe without them."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.errors import RecipeError
from app.recipe.keys import Key, keys_of

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's types of error
LONGEST = 80  # characters of a value that a message repeats
Location = tuple[int | str, ...]
Table = TypeVar("Table", bound=BaseModel)


def combined(mistakes: Sequence[RecipeError], where: str = "") -> RecipeError:
    """One error that lists all mistakes, a line each; the only one stays as it is, with its file in front."""
    if len(mistakes) > 1:
        return RecipeError(f"{len(mistakes)} mistakes" + "".join(f"\n  {m}" for m in mistakes), where=where)
    only = mistakes[0]
    return RecipeError(only.what, where=": ".join(filter(None, (where, only.where))), remedy=only.remedy)


def validated(kind: type[Table], content: Mapping[str, Any]) -> tuple[Table, list[RecipeError]]:
    """The content as `kind` without the keys that are wrong, and what is wrong with these.

    What remains is checked again, since rules about several keys are not tried while one of them is wrong.
    """
    rest, first = copy.deepcopy(dict(content)), True
    mistakes: list[RecipeError] = []
    while True:
        try:
            return kind.model_validate(rest), mistakes
        except ValidationError as error:
            problems = _problems(error, rest)
        # A key that misses afterwards was there, and is named already.
        mistakes += [_mistake(kind, p) for p in problems if first or p["type"] != "missing"]
        # From the end, so that the numbers of the entries before stay right.
        for problem in sorted(problems, key=lambda p: [f"{part:>9}" for part in p["loc"]], reverse=True):
            _remove(rest, problem["loc"])
        first = False


def _problems(error: ValidationError, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What pydantic found: one for each key, without a key that misses because it is misspelt."""
    by_location: dict[Location, dict[str, Any]] = {}
    for found in error.errors():
        location = _in_content(found["loc"], content, found["type"])
        by_location.setdefault(location, {**found, "loc": location})
    misspelt = {loc[:-1] for loc, p in by_location.items() if p["type"] in UNKNOWN_KEY}
    return [p for loc, p in by_location.items() if p["type"] != "missing" or loc[:-1] not in misspelt]


def _in_content(location: Location, content: Any, kind: str) -> Location:
    """The location without the names that pydantic gives to the types of a union."""
    for depth, part in enumerate(location):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return location[: depth + 1] if kind == "missing" else location[:depth]
    return location


def _remove(content: Any, location: Location) -> None:
    """Remove the value there; of one that misses, the table that should have it."""
    *path, last = location
    parent = content
    for part in path:
        if part not in _positions(parent):
            return
        parent = parent[part]
    if last in _positions(parent):
        del parent[last]
    elif path:
        _remove(content, tuple(path))


def _positions(value: Any) -> Collection[Any]:
    if isinstance(value, list):
        return range(len(value))
    return value if isinstance(value, dict) else ()


def _mistake(kind: type[BaseModel], problem: Mapping[str, Any]) -> RecipeError:
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] in UNKNOWN_KEY:
        return RecipeError(f"unknown key {key!r}", remedy=_right_key(kind, location))
    value = "" if problem["type"] == "missing" else f" = {_shortened(problem['input'])}"
    explained = ".".join(str(part) for part in location if not isinstance(part, int))
    return RecipeError(
        f"{key}{value}: {problem['msg']}", remedy=f"`rayrec explain {explained}` says what it takes"
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < LONGEST else f"{text[: LONGEST - 3]}..."


def _right_key(kind: type[BaseModel], location: Location) -> str:
    """The remedy for an unknown key: the table that it belongs to, or the key that was meant."""
    name = str(location[-1])
    path = [str(part) for part in location[:-1] if not isinstance(part, int)]
    own: list[Key] = []
    others: list[Key] = []
    for key in keys_of(kind):
        (own if key.name.split(".")[:-1] == path else others).append(key)
    tables = [str(part) for part in kind.model_fields] if not path else []
    if owners := [key.table or "the top of the recipe" for key in others if key.own_name == name]:
        return f"{name} belongs to {' or '.join(owners)}"
    if close := difflib.get_close_matches(name, [*tables, *(key.own_name for key in own)], n=1):
        return f"did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(name, [key.own_name for key in others], n=1, cutoff=0.8):
        owners = [key.table for key in others if key.own_name == close[0]]
        return f"did you mean {close[0]!r} of {' or '.join(owners)}?"
    return "remove it; `rayrec init` lists all keys"
