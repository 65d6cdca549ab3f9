"""What is wrong with a recipe by itself: all mistakes at once, before any data are read or Ray starts.

A rule is a function here that yields a RecipeError for each mistake it sees. What takes long to import
(the models, with torch) is imported only where a recipe names hyperparameters or a file of its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from pkgutil import iter_modules

import app.models as models
from app.data.values.time_format import contradiction, refused
from app.errors import MachineError, RecipeError
from app.events import microseconds
from app.features import expression
from app.recipe import ModelSection, Recipe
from app.recipe.keys import keys_of
from app.recipe.mistakes import combined
from app.recipe_toml import load_leniently

AUTO = "auto"  # the model that is chosen by comparison
FIGURES = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")  # each with @k
LABEL_FIGURES = ("auc", "gauc", "information_gain")  # of logged labels, more is better
LABELLED_SPLITS = ("random", "kfold", "time")
_CLASS = re.compile(r"^class (\w+)\((\w+)[^)]*\):", re.MULTILINE)  # its name and its first base
_CLOSED_FORM = re.compile(r"^    learns\b[^=\n]*= False", re.MULTILINE)


def load_checked(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and check it.

    Raises:
        RecipeError: lists every mistake: unknown keys, wrong values, and what `check_recipe` finds.
    """
    recipe, mistakes = load_leniently(path, overrides)
    if mistakes := [*mistakes, *_mistakes(recipe)]:
        raise combined(mistakes, str(path))
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Check what can be seen in the recipe alone.

    Raises:
        RecipeError: lists every mistake, each with key, value and remedy.
    """
    if mistakes := list(_mistakes(recipe)):
        raise combined(mistakes)


def _mistakes(recipe: Recipe) -> Iterator[RecipeError]:
    yield from _model(recipe.model)
    yield from _searched(recipe)
    yield from _baselines(recipe)
    yield from _metric(recipe)
    yield from _listed(recipe)
    yield from _logged(recipe)
    yield from _item_columns(recipe)
    yield from _event_types(recipe)
    yield from _order(recipe)
    yield from _session(recipe)
    yield from _values(recipe)
    yield from _languages(recipe)
    yield from _packages(recipe)


def model_sources() -> dict[str, str]:
    """The source text of each model in app/models by its name, read without importing any."""
    found = {
        m.name: Path(folder) / f"{m.name}.py" for folder in models.__path__ for m in iter_modules([folder])
    }
    texts = {name: path.read_text() for name, path in sorted(found.items()) if path.exists()}
    classes = {name: _CLASS.findall(text) for name, text in texts.items() if name != "base"}
    known = {"Model"}
    while more := {c for pairs in classes.values() for c, base in pairs if base in known} - known:
        known |= more  # a model may extend another one
    return {
        name: texts[name]
        for name, pairs in classes.items()
        if any(c in known and not c.startswith("_") for c, _ in pairs)
    }


def closed_forms() -> list[str]:
    """Names of the models that are fitted instead of trained, which can be baselines."""
    return [name for name, text in model_sources().items() if _CLOSED_FORM.search(text)]


def _model(section: ModelSection) -> Iterator[RecipeError]:
    own = section.hyperparameters
    if not section.file and section.name == AUTO:
        for key, value in own.items():
            remedy = _owner(key) or "choose a model by model.name to set keys of its own, or remove it"
            yield RecipeError(f"model.{key} = {value!r}, and auto has no keys of its own", remedy=remedy)
        return
    if not section.file and section.name not in (names := list(model_sources())):
        yield _unknown(
            "model", section.name, "model.name", [AUTO, *names], ", or name a file of your own in model.file"
        )
        return
    if own or section.file:
        yield from _hyperparameters(section)


def _hyperparameters(section: ModelSection) -> Iterator[RecipeError]:
    """Mistakes in the model's own keys, which its Config checks: imports torch."""
    from app.models.discovery import model_class, model_config
    from app.recipe.mistakes import validated

    try:
        kind = model_class(section.source).Config
        good, mistakes = validated(kind, section.hyperparameters)
        for mistake in mistakes:
            unknown = mistake.what.startswith("unknown key")
            key = mistake.what.split("'")[1] if unknown else ""
            known = f"{section.name} has {', '.join(kind.model_fields)}"
            close = difflib.get_close_matches(key, list(kind.model_fields), n=1)
            remedy = _owner(key) or (f"did you mean {close[0]!r}?" if close else known)
            yield RecipeError(f"[model] {mistake.what}", remedy=remedy if unknown else known)
        model_config(section.source, good.model_dump(exclude_unset=True))
    except RecipeError as error:
        yield error


def _owner(key: str) -> str:
    """The remedy for a key that belongs to another table than [model]; "" where there is none."""
    tables = [k.table for k in keys_of(Recipe) if k.own_name == key and k.table != "[model]"]
    return f"{key} belongs to {' or '.join(t or 'the top of the recipe' for t in tables)}" if tables else ""


def _searched(recipe: Recipe) -> Iterator[RecipeError]:
    """Models to search over that there are not."""
    known = [*model_sources(), *([recipe.model.name] if recipe.model.file else [])]
    for name in recipe.tune.models:
        if name not in known:
            yield _unknown("model", name, "tune.models", known)


def _baselines(recipe: Recipe) -> Iterator[RecipeError]:
    known, closed = model_sources(), closed_forms()
    for name in recipe.evaluate.baselines:
        if name in known and name not in closed:
            yield RecipeError(
                f"{name!r} is trained, and a baseline is fitted in closed form",
                where="evaluate.baselines",
                remedy=f"choose among {', '.join(closed)}",
            )
        elif name not in known:
            yield _unknown("model", name, "evaluate.baselines", closed)


def _metric(recipe: Recipe) -> Iterator[RecipeError]:
    if recipe.evaluate.candidates == "logged":
        if recipe.train.metric not in LABEL_FIGURES:
            by_loss = "; information_gain orders models as the log loss does, and more is better"
            yield _unknown("figure", recipe.train.metric, "train.metric", list(LABEL_FIGURES), by_loss)
        return
    name, _, k = recipe.train.metric.partition("@")
    if recipe.train.metric == "auc" or (name in FIGURES and k.isdecimal() and int(k) > 0):
        return
    known = [*(f"{figure}@{k}" for figure in FIGURES for k in recipe.evaluate.k), "auc"]
    yield _unknown("figure", recipe.train.metric, "train.metric", known, ", with any k")


def _listed(recipe: Recipe) -> Iterator[RecipeError]:
    if recipe.evaluate.candidates == "listed" and not (
        recipe.split.method == "given" and recipe.split.negatives
    ):
        yield RecipeError(
            'candidates = "listed", and no test file lists any',
            where="evaluate.candidates",
            remedy='set it to "all", or split.method to "given" and split.negatives to the column of lists',
        )


def _logged(recipe: Recipe) -> Iterator[RecipeError]:
    """What has no labels of both kinds to evaluate by."""
    if recipe.evaluate.candidates != "logged":
        return
    data, split = recipe.data, recipe.split
    if not data.positive and data.positive_above is None:
        yield RecipeError(
            '"logged", and every event is to be predicted, so that all labels are 1',
            where="evaluate.candidates",
            remedy="set data.positive to the event types that count as 1, or data.positive_above to a value",
        )
    method = split.settled(data.ordered).method
    if method not in LABELLED_SPLITS and not (method == "given" and not split.valid):
        yield RecipeError(
            f'"logged", and split.method = {method!r} holds out events by their label',
            where="evaluate.candidates",
            remedy=f"choose split.method among {', '.join(LABELLED_SPLITS)}, or given with split.valid = 0",
        )


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
                yield _unknown("column of items", name, key, list(dict.fromkeys(columns)))


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
            yield _unknown("type of events", name, "data.positive", data.event_types)


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


def _unknown(what: str, value: str, where: str, known: list[str], beside: str = "") -> RecipeError:
    """An unknown name, with the one that was meant or all that there are."""
    close = difflib.get_close_matches(value, known, n=1)
    choices = ", ".join(known) or "there are none"
    remedy = f"did you mean {close[0]!r}?" if close else f"choose among {choices}{beside}"
    return RecipeError(f"no {what} {value!r}", where=where, remedy=remedy)
