"""The recipe applied to the files that there are: roles, policies and limits, checked once."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from app.data.input.source import Source, Split, missing_header
from app.data.values.row_filter import Where, parse
from app.data.values.time_format import check_format
from app.errors import DataError, RecipeError
from app.events import microseconds
from app.recipe import Data, Recipe
from app.recipe import Split as SplitSection

ROWS_PER_BUCKET = 500_000
MAX_BUCKETS = 4096
LATE = ("duplicate", "outlier", "core")  # reasons that need more than the row itself


@dataclass(frozen=True)
class Plan:
    """Travels to every task. `scratch` is a folder that all workers see."""

    data: Data
    split: SplitSection
    seed: int
    scratch: str
    buckets: int
    item_columns: tuple[str, ...]  # attributes in the event files
    user_columns: tuple[str, ...]
    latest: int  # microseconds
    earliest: int
    item_features: tuple[str, ...] = ()  # columns of the features of items
    user_features: tuple[str, ...] = ()
    item_numbers: tuple[str, ...] = ()  # those of them that are read as numbers
    user_numbers: tuple[str, ...] = ()

    @cached_property
    def reasons(self) -> list[str]:
        """Names of the reasons by code; 0 is kept. A row goes under the first that holds."""
        roles = [
            self.data.timed and "timestamp",
            self.data.event and "event",
            self.data.value and "value",
        ]
        missing = ["user", "item", *filter(None, roles), *self.dropped]
        names = [f"missing_{name}" for name in missing]
        return ["", "unreadable", *names, "filtered", "unknown_event", "bad_time", *LATE]

    @cached_property
    def dropped(self) -> list[str]:
        """Columns beside the mapped ones whose missing values drop the row."""
        return [c for c, policy in self.data.missing.items() if policy == "drop" and c not in self.mapped]

    @property
    def mapped(self) -> set[str]:
        """Columns that the recipe gives a role."""
        d = self.data
        return {c for c in (d.user, d.item, *d.time_columns, d.event, d.value) if c}

    @cached_property
    def where(self) -> Where | None:
        """The recipe's row filter, parsed; None where there is none."""
        d = self.data
        return parse(d.where, None, d.decimal, d.missing_words) if d.where else None

    @cached_property
    def number_columns(self) -> list[str]:
        """Columns of which rows carry or compare numbers, each once: value, outlier rules, row filter."""
        compared = self.where.numbers if self.where else []
        return list(dict.fromkeys([*filter(None, [self.data.value]), *self.outlier_columns, *compared]))

    @property
    def outlier_columns(self) -> list[str]:
        """Numeric columns that rows carry for outlier rules, each once."""
        return list(dict.fromkeys(o.column for o in self.data.outliers))

    @property
    def key_columns(self) -> list[str]:
        """Original columns that a duplicate must share besides its user; empty: all of them."""
        return self.data.duplicate_key if self.data.duplicates == "key" else []

    def code(self, reason: str) -> int:
        """The number that stands for a reason in arrays."""
        return self.reasons.index(reason)


def make_plan(recipe: Recipe, sources: Sequence[Source], splits: Sequence[Split], scratch: str) -> Plan:
    """Check the recipe against the columns that are there.

    Raises:
        RecipeError: a policy or filter that cannot be.
        DataError: a column that is not in a file.
    """
    data = recipe.data
    train = [s for s in sources if not s.test]
    _check_policies(data)
    if data.time_format:
        check_format(data.time_format)
    rows = sum(split.rows for split in splits)
    plan = Plan(
        data,
        recipe.split.settled(data.ordered),
        recipe.seed,
        scratch,
        data.buckets or max(1, min(MAX_BUCKETS, -(-rows // ROWS_PER_BUCKET))),
        _attributes(data.item_columns, [f.column for f in recipe.features.item], data.items, train),
        _attributes(data.user_columns, [f.column for f in recipe.features.user], data.users, train),
        _moment(data.latest, "data.latest") if data.latest else int(time.time() * 1e6),
        _moment(data.earliest, "data.earliest") if data.earliest else -(1 << 62),
        tuple(f.column for f in recipe.features.item),
        tuple(f.column for f in recipe.features.user),
        tuple(f.column for f in recipe.features.item if f.cells == "number"),
        tuple(f.column for f in recipe.features.user if f.cells == "number"),
    )
    columns = tuple(dict.fromkeys(c for s in train for c in s.columns))
    if data.where:
        parse(data.where, columns)
    for source in sources:
        for column, key in _needed(plan, source):
            _require(source, column, key, train)
    for column, key in _optional(plan) if train and all(s.own for s in train) else ():
        if column not in columns:
            _require(train[0], column, key, train)
    return plan


def _moment(text: str, key: str) -> int:
    try:
        return microseconds(text)
    except ValueError:
        remedy = "write e.g. 2011-12-09 or 2011-12-09T12:00:00Z"
        raise RecipeError(f"{text!r} is not an ISO 8601 time", where=key, remedy=remedy) from None


def _attributes(
    named: Sequence[str], features: Sequence[str], file: object, train: Sequence[Source]
) -> tuple[str, ...]:
    """Columns named, and those that features name and no attribute file can hold."""
    known = {c for s in train for c in s.columns}
    implied = [c for c in features if c in known] if file is None else []
    return tuple(dict.fromkeys([*named, *implied]))


def _check_policies(data: Data) -> None:
    ids = (data.user, data.item, *data.time_columns)
    for column, policy in data.missing.items():
        allowed = ["drop", *(["constant:X"] if column not in ids else [])]
        if column == data.value:
            allowed += ["median"]
        elif column == data.event:
            allowed += ["category"]
        elif column not in ids:
            allowed += ["median", "category"]
        if policy.split(":", 1)[0] not in {a.split(":")[0] for a in allowed}:
            remedy = f"choose one of {', '.join(allowed)}"
            raise RecipeError(f"{policy!r} cannot be", where=f"data.missing.{column}", remedy=remedy)
    if data.value and data.missing.get(data.value, "").startswith("constant:"):
        text = data.missing[data.value].removeprefix("constant:")
        try:
            float(text)
        except ValueError:
            remedy = "write e.g. constant:1"
            raise RecipeError(
                f"{text!r} is no number", where=f"data.missing.{data.value}", remedy=remedy
            ) from None
    stray = sorted(set(data.positive) - set(data.event_types)) if data.event_types else []
    if stray or (data.positive and not data.event):
        what = f"{stray[0]!r} is not in data.event_types" if stray else "there is no data.event column"
        raise RecipeError(what, where="data.positive", remedy="name event types that the log has")


def _needed(plan: Plan, source: Source) -> Iterator[tuple[str, str]]:
    """Columns that a file must have, with the key that names them."""
    data = plan.data
    yield data.user, "data.user"
    yield data.item, "data.item"
    for column in data.time_columns[: 1 if source.partial else None]:
        yield column, "data.timestamp"
    if source.test and plan.split.negatives:
        yield plan.split.negatives, "split.negatives"
    if data.event and (source.own or not source.partial):
        yield data.event, "data.event"
    if not source.partial:  # else the rest is optional: a list of pairs is a test file too
        yield from _optional(plan)


def _optional(plan: Plan) -> Iterator[tuple[str, str]]:
    """Columns that some file must have, with the key that names them."""
    data = plan.data
    if data.value:
        yield data.value, "data.value"
    for key in ("item_columns", "user_columns", "duplicate_key", "missing"):
        for column in getattr(data, key):
            yield column, f"data.{key}"
    for outlier in data.outliers:
        yield outlier.column, "data.outliers"
    for column in sorted(plan.where.columns if plan.where else ()):
        yield column, "data.where"


def _require(source: Source, column: str, key: str, train: Sequence[Source]) -> None:
    if column in source.columns:
        return
    close = difflib.get_close_matches(column, source.columns, 1, 0.5)
    columns = ", ".join(source.columns)
    hint = f"did you mean {close[0]!r}? " if close else ""
    only = source.columns[0] if len(source.columns) == 1 else ""
    other = next((d for d in (";", "\t", "|", ",") if d in only), "")
    hint = f"set data.delimiter = {other!r}; " if other else hint
    remedy = missing_header(source, train) or f"{hint}the file has {columns}"
    raise DataError(f"no column {column!r} ({key})", where=source.name, remedy=remedy)
