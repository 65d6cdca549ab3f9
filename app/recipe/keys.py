"""Every key of a recipe with its meaning and the values that it takes, as the models of the tables say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.features.base import Feature
from app.features.kinds import feature_class, kind_names
from app.recipe.section import Section

NUMBERS = {"integer": "a whole number", "number": "a number"}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: dotted, e.g. "train.epochs"; an entry of a list of tables has no number.
        table: the header under which it stands, e.g. "[train]" or "[[data.sources]]"; "" at the top.
        meaning: what it does.
        takes: the permitted values, in words.
        default: its value where the recipe does not name it; None where it has to be named or is absent.
        required: whether it has no default.
    """

    name: str
    table: str
    meaning: str
    takes: str
    default: Any
    required: bool = False

    @property
    def comment(self) -> str:
        """The meaning, and the permitted values where neither it nor the type of the default shows them."""
        plain = self.takes in ("text", "a list of texts", "true or false", "a table")
        options = re.findall(r'"([^"]+)"', self.takes)
        named = options and all(option in self.meaning for option in options)
        return self.meaning if plain or named else f"{self.meaning} ({self.takes})"

    @property
    def own_name(self) -> str:
        """The last part of the name, as it stands in the table."""
        return self.name.rpartition(".")[2]


def keys_of(section: type[BaseModel], name: str = "", header: str = "") -> Iterator[Key]:
    """All keys of a table, and of the tables within it, in their order.

    Args:
        section: the model of the table.
        name: dotted name of the table; "" for the recipe itself.
        header: its header, e.g. "[train]".
    """
    for own, field in section.model_fields.items():
        full = f"{name}.{own}" if name else own
        inner = table_type(field.annotation)
        inner_header = f"[[{full}]]" if field.get_default(call_default_factory=True) == [] else f"[{full}]"
        if inner is None:
            yield key_of(full, header, field)
        elif issubclass(inner, BaseModel):
            yield from keys_of(inner, full, inner_header)
        else:
            yield from feature_keys(full, inner_header)


def feature_keys(name: str, header: str) -> Iterator[Key]:
    """The keys of an entry of [[features.item]] or [[features.user]]: `kind`, and those of all kinds."""
    kinds = kind_names()
    listed = one_of(kinds)
    yield Key(
        f"{name}.kind", header, "kind of the feature, which says what other keys it has", listed, "number"
    )
    seen: set[str] = set()
    for kind in kinds:
        for key in settings_keys(kind, name, header):
            if key.name not in seen:
                yield key
            seen.add(key.name)


def settings_keys(kind: str, name: str, header: str) -> Iterator[Key]:
    """The keys of one kind of feature."""
    feature = feature_class(kind)
    hints = get_type_hints(feature)
    for field in fields(feature):
        meaning = field.metadata.get("description", "")
        limits = Field(**{k: v for k, v in field.metadata.items() if k != "description"})
        takes = _takes(hints[field.name], limits)
        default = None if field.default is MISSING else field.default
        yield Key(f"{name}.{field.name}", header, meaning, takes, default, field.default is MISSING)


def key_of(name: str, header: str, field: FieldInfo) -> Key:
    """The key that a field of a table's model is."""
    takes = _takes(field.annotation, field)
    default = field.get_default(call_default_factory=True)
    required = default is PydanticUndefined
    return Key(name, header, field.description or "", takes, None if required else default, required)


def _takes(annotation: Any, limits: FieldInfo) -> str:
    return in_words(TypeAdapter(Annotated[annotation, limits]).json_schema())


def in_words(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema permits, e.g. "a whole number, at least 1"."""
    if "anyOf" in schema:
        return " or ".join(in_words(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return one_of(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        each = in_words(schema.get("items", {}))
        return "a list of texts" if each == "text" else f"a list, each {each}"
    if kind in NUMBERS:
        bounds = [f"{words} {schema[bound]:g}" for bound, words in BOUNDS.items() if bound in schema]
        return ", ".join([NUMBERS[kind], " and ".join(bounds)] if bounds else [NUMBERS[kind]])
    words = {"boolean": "true or false", "string": "text", "object": "a table", "null": "absent"}
    return words.get(str(kind), "any value")


def one_of(values: Iterable[Any]) -> str:
    """Values as a user writes them, e.g. '"a", "b" or "c"'."""
    *most, last = [json.dumps(value) for value in values]
    return f"{', '.join(most)} or {last}" if most else last


def table_type(annotation: Any) -> type[Section | Feature] | None:
    """The table or feature that a key, or each entry of its list, holds; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section | Feature):
        table: type[Section | Feature] = annotation
        return table
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation  # type: ignore[return-value]  # [model], whose table takes further keys
    return next((table for table in map(table_type, get_args(annotation)) if table), None)
