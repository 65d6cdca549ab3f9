"""Rules about the data: columns, types of events, order, sessions, values, and the languages of keys."""

from __future__ import annotations

from collections.abc import Iterator

from app.data.values.time_format import contradiction, refused
from app.errors import MachineError, RecipeError
from app.events import microseconds
from app.features import expression
from app.recipe import Recipe
from app.recipe_check.unknown import unknown


def mistakes_of(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in [data], [split] and [features], and in the columns that other keys name."""
    yield from _item_columns(recipe)
    yield from _event_types(recipe)
    yield from _order(recipe)
    yield from _session(recipe)
    yield from _values(recipe)
    yield from _languages(recipe)
    yield from _packages(recipe)


def _item_columns(recipe: Recipe) -> Iterator[RecipeError]:
    """Columns of items that are to be exported or shown, where it is known which ones there are."""
    data = recipe.data
    columns = [*data.item_columns, *(feature.column for feature in recipe.features.item)]
    if data.items is not None:
        listed = data.items.columns or [name for name in data.items.header if name != data.items.id]
        if not listed:
            return  # which columns the files have is seen with the data
        columns += listed
    shown = {"export.columns": recipe.export.columns, "serve.columns": getattr(recipe.serve, "columns", [])}
    for key, names in shown.items():
        for name in names:
            if name not in columns:
                yield unknown("column of items", name, key, list(dict.fromkeys(columns)))


def _event_types(recipe: Recipe) -> Iterator[RecipeError]:
    data = recipe.data
    named = (
        data.event
        or any(s.event or s.event_column for s in data.sources)
        or "impressions"
        in (
            data.layout,
            *(source.layout for source in data.sources),
        )
    )
    for key, types in (("event_types", data.event_types), ("positive", data.positive)):
        if types and not named:
            yield RecipeError(
                f"{types[0]!r} is a type of events, and no column or file says of what type events are",
                where=f"data.{key}",
                remedy="name the column in data.event, or event of the files in [[data.sources]]",
            )
    for name in data.positive if data.event_types else ():
        if name not in data.event_types:
            yield unknown("type of events", name, "data.positive", data.event_types)


def _order(recipe: Recipe) -> Iterator[RecipeError]:
    data, method = recipe.data, recipe.split.method
    if method == "time" and not data.timed:
        remedy = "name the column of times in data.timestamp, or choose another split.method"
        yield RecipeError("'time', and the events have no times", where="split.method", remedy=remedy)
    if data.timed and data.row_order:
        yield RecipeError(
            f"true, and events are ordered by data.timestamp = {data.timestamp!r}",
            where="data.row_order",
            remedy='set data.timestamp = "" if things happened in the order of rows, or drop data.row_order',
        )
    if method == "leave_last" and not data.ordered:
        yield RecipeError(
            "'leave_last', and nothing says in which order events happened",
            where="split.method",
            remedy='set it to "leave_random", or name data.timestamp, or set data.row_order = true where rows'
            " stand in the order in which things happened",
        )


def _session(recipe: Recipe) -> Iterator[RecipeError]:
    if "session" in recipe.features.context and not recipe.data.session_gap:
        yield RecipeError(
            '"session" counts events since the last pause, and nothing says how long a pause is',
            where="features.context",
            remedy='set data.session_gap, e.g. "30m", or leave "session" out',
        )
    if recipe.data.session_gap and not recipe.data.timed:
        yield RecipeError(
            f"{recipe.data.session_gap!r}, and events have no times between which a pause could be",
            where="data.session_gap",
            remedy="name the column of times in data.timestamp, or remove it",
        )


def _values(recipe: Recipe) -> Iterator[RecipeError]:
    data = recipe.data
    if data.positive_above is not None and not (data.value or any(s.value for s in data.sources)):
        remedy = "name the column of the values in data.value"
        yield RecipeError(
            f"{data.positive_above:g}, and events have no value", where="data.positive_above", remedy=remedy
        )
    if data.positive_above is not None and data.missing.get(data.value) == "median":
        yield RecipeError(
            "'median', and a missing value is above data.positive_above or not",
            where=f"data.missing.{data.value}",
            remedy="choose drop or constant:X",
        )
    if data.duplicate_key and data.duplicates != "key":
        remedy = 'set data.duplicates = "key", or remove it'
        yield RecipeError(
            f"has no effect with duplicates = {data.duplicates!r}", where="data.duplicate_key", remedy=remedy
        )


def _languages(recipe: Recipe) -> Iterator[RecipeError]:
    """Mistakes in the pattern of times, in the row filter and in moments."""
    data = recipe.data
    if data.time_format and (reason := contradiction(data.time_format)):
        yield refused(data.time_format, reason)
    if data.where:
        try:
            expression.parse(data.where)
        except expression.ParseError:
            from app.data.values.row_filter import parse  # imports polars

            try:
                parse(data.where)
            except RecipeError as error:
                yield error
    for key in ("earliest", "latest"):
        try:
            microseconds(getattr(data, key) or "1970-01-01")
        except ValueError:
            what, remedy = (
                f"{getattr(data, key)!r} is not an ISO 8601 time",
                "write e.g. 2011-12-09T12:00:00Z",
            )
            yield RecipeError(what, where=f"data.{key}", remedy=remedy)


def _packages(recipe: Recipe) -> Iterator[RecipeError]:
    """Kinds of features that are made with a package which is not installed."""
    for side in ("item", "user"):
        for feature in getattr(recipe.features, side):
            try:
                feature.need()
            except MachineError as error:
                yield RecipeError(error.what, where=f"features.{side}.{feature.column}", remedy=error.remedy)
