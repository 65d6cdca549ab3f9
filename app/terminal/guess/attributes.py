"""Which tables describe items or users, by which column, and what of them is a feature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import polars as pl

from app.terminal.guess.facts import Column
from app.terminal.guess.names import PICTURES, TITLES, has_word, likeness
from app.terminal.guess.roles import UNIQUE, Roles
from app.terminal.guess.tables import Table

FEATURES = 8  # of items, and of users, at most
CATEGORIES, CATEGORY_SHARE = 2_000, 0.3  # distinct values of a category at most, in all and of the rows
GRADES = 25  # different whole numbers at most that are codes or grades rather than a quantity
LONGEST_TEXT = 300  # characters of a text that is a feature, on average
OVERLAP = 0.1  # least share of the log's ids that a file of attributes has
DEPENDS = {"text": 0.8, "number": 0.5}  # how far a column has to be known from the id
Kind = Literal["items", "users"]


@dataclass(frozen=True)
class Attributes:
    """A table of item or user attributes.

    Attributes:
        table: its files.
        kind: whether it describes items or users.
        id: the column of their ids.
        reason: why it is thought to be.
        keyed: whether it has one row for each of them, and no more.
    """

    table: Table
    kind: Kind
    id: str
    reason: str
    keyed: bool


def find_attributes(table: Table, log: Table, roles: Roles) -> Attributes | None:
    """What a table describes: that of which it has the most ids of the log, a row for each."""
    candidates = []
    for kind, role in (("items", roles.item), ("users", roles.user)):
        ids = log.columns[role].present.unique() if role in log.columns else pl.Series([], dtype=pl.String)
        for column in table.columns.values():
            if column.unique < 0.9 or column.filled < 0.9 or not column.identifies:
                continue
            share = ids.is_in(column.present.unique().implode()).mean() if len(ids) else 0
            overlap = float(share) if isinstance(share, float) else 0.0
            named = column.name == role
            like = likeness(column.name, kind[:-1]) + _file_likeness(table, kind)
            if overlap >= OVERLAP:
                candidates.append((named, like > 0, round(overlap, 2), like, kind, column.name))
    if not candidates:
        return None
    *_, overlap, _, kind, name = max(candidates)
    reason = f"guess: {name} has {overlap:.0%} of the {kind} of the log, a row for each"
    keyed = table.columns[name].unique >= UNIQUE
    return Attributes(table, "items" if kind == "items" else "users", name, reason, keyed)


def _file_likeness(table: Table, kind: str) -> int:
    return likeness(PurePosixPath(table.files[0]).name.split(".")[0], kind[:-1])


def features_of(columns: Iterable[Column]) -> list[dict[str, Any]]:
    """Entries of [[features.item]] or [[features.user]] for columns that say something."""
    entries = [entry for column in columns if (entry := feature_of(column))]
    return entries[:FEATURES]


def feature_of(column: Column) -> dict[str, Any] | None:
    """The entry of a column, None where it says nothing that a model could use."""
    if column.constant or column.address or column.filled < 0.05 or has_word(column.name, PICTURES):
        return None
    share = column.distinct / max(1, len(column.present))
    few = column.distinct <= max(20, min(CATEGORIES, CATEGORY_SHARE * len(column.present)))
    if column.numeric:
        coded = has_word(column.name, ("id", "category", "type", "code", "genre", "brand", "zip"))
        grades = column.distinct <= (5 if column.fractional else GRADES)
        if coded or column.code or grades:
            return {"column": column.name, "kind": "category"} if few else None
        if share == 1 and not column.fractional and column.name.lower().endswith(("id", "no", "code")):
            return None
        return {"column": column.name, "kind": "number", **_missing(column)}
    if few and column.length <= 40 and column.words < 4 and not column.several:
        return {"column": column.name, "kind": "category"}
    if (column.words >= 1.3 or column.several) and column.length <= LONGEST_TEXT:
        return {"column": column.name, "kind": "text"}
    return None


def _missing(column: Column) -> dict[str, str]:
    return {"missing": "category"} if column.filled < 0.999 else {}


def shown_columns(columns: Iterable[Column]) -> list[str]:
    """Columns that a person knows an item by: its title, and the address of a picture."""
    listed = list(columns)
    titles = [c.name for c in listed if has_word(c.name, TITLES) and not c.numeric and not c.address]
    titles = titles or [c.name for c in listed if c.words >= 1.3 and c.length <= 100 and not c.address]
    pictures = [c.name for c in listed if c.address and has_word(c.name, PICTURES)]
    return [*titles[:1], *pictures[-1:]]


def described_by(log: Table, roles: Roles) -> tuple[list[Column], list[Column]]:
    """Columns of the log without a role that say something of its items, and of its users."""
    items: list[Column] = []
    users: list[Column] = []
    known = log.columns[roles.item].present.unique()
    for column in log.columns.values():
        identity = max(likeness(column.name, role) for role in ("user", "session", "item")) >= 150
        if (
            column.name in roles.taken
            or column.constant
            or identity
            or log.by_row.get(column.name, column).unique > 0.9
            or column.spelling
            or _lists_items(column, known)
        ):
            continue
        bar = DEPENDS["number" if column.numeric else "text"]
        by_item, by_user = (_known_from(log.frame, key, column.name) for key in (roles.item, roles.user))
        if max(by_item, by_user) >= bar:
            (items if by_item >= by_user else users).append(column)
    return items, users


def _lists_items(column: Column, items: pl.Series) -> bool:
    """Whether values are lists of items, as those that a user met before."""
    if column.words < 2:
        return False
    ids = column.present.head(1_000).str.extract_all(r"[^\s,|]+").explode()
    return bool(ids.is_in(items.implode()).sum() > len(ids) / 2)


def _known_from(frame: pl.DataFrame, key: str, name: str) -> float:
    """How far the value of a column is known from a key: 1 wholly, 0 no better than without it."""
    if key not in frame.columns:
        return 0.0
    rows = frame.select(key, name).drop_nulls().filter(pl.len().over(key) > 1)
    if not len(rows):
        return 0.0
    counted = rows.group_by(key, name).len()
    right = int(counted.group_by(key).agg(pl.col("len").max())["len"].sum()) / len(rows)
    usual = int(rows[name].value_counts(sort=True)["count"][0]) / len(rows)
    return float((right - usual) / max(1e-9, 1 - usual))
