"""A recipe for files: which of them is the log, which describe items and users, and a note on each guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from app.terminal.guess.attributes import (
    OVERLAP,
    Attributes,
    described_by,
    features_of,
    find_attributes,
    shown_columns,
)
from app.terminal.guess.facts import Column
from app.terminal.guess.log_keys import Content, Draft, Log, form_keys, log_keys, named, paths
from app.terminal.guess.roles import Roles, find_roles, require
from app.terminal.guess.tables import Table, find_tables


def draft(entries: Sequence[str], folder: Path, known: Mapping[str, str]) -> Draft:
    """Look at files and write down what they are.

    Args:
        entries: files, folders, globs or URIs of events, item and user attributes.
        folder: where the recipe will be; its paths count from there.
        known: roles of columns that the user has given: user, item, event, value.

    Raises:
        DataError: a file is absent or cannot be read.
        UserError: which column is the user or the item cannot be told.
    """
    tables = find_tables(entries)
    chosen, roles = _choose_log(tables, known)
    require(roles, chosen)
    others = [table for table in tables if table is not chosen]
    log, roles = named(chosen, roles)
    result = Draft()
    described: list[Attributes] = []
    logs = [(log, roles)]
    for table in others:
        other, attributes = find_roles(table), find_attributes(table, log, roles)
        if _is_log(table, other, log, roles, keyed=attributes is not None and attributes.keyed):
            logs.append(named(table, other, f"_{len(logs) + 1}"))
        elif attributes is not None:
            described.append(attributes)
        else:
            result.unused += table.files
    result.content["data"] = data = log_keys(result, logs, folder)
    if result.unused:
        result.notes["data"] = f"not understood, and left out: {', '.join(map(_short, result.unused))}"
    _describe(result, data, log, roles, described, folder)
    return result


def _choose_log(tables: Sequence[Table], known: Mapping[str, str]) -> Log:
    """The table of events: it has users and items, best by name, and no row of its own for each id."""

    def preference(entry: Log) -> tuple[bool, bool, int, bool, int]:
        table, roles = entry
        named = sum("name" in roles.reasons.get(role, "") for role in ("user", "item"))
        listed = any(c.unique > 0.98 and c.identifies and not c.spelling for c in table.columns.values())
        return roles.complete, table.form.layout != "events", named, not listed, table.rows

    return max(((table, find_roles(table, known)) for table in tables), key=preference)


def _is_log(table: Table, roles: Roles, log: Table, known: Roles, *, keyed: bool) -> bool:
    """Whether a table is a log of the same users and items, and not one that has a row for each (`keyed`)."""
    if not roles.complete or keyed or (known.times and not roles.times):
        return False
    pairs = [
        (table.columns[a], log.columns[b]) for a, b in ((roles.user, known.user), (roles.item, known.item))
    ]
    return all(_overlap(a, b) >= OVERLAP for a, b in pairs)


def _overlap(a: Column, b: Column) -> float:
    first, second = a.present.unique(), b.present.unique()
    common = int(first.is_in(second.implode()).sum())
    return common / max(1, min(len(first), len(second)))


def _describe(
    result: Draft, data: Content, log: Table, roles: Roles, described: list[Attributes], folder: Path
) -> None:
    """Files of attributes, columns of the log that describe, and features of both."""
    inner = dict(zip(("items", "users"), described_by(log, roles), strict=True))
    features: Content = {}
    for kind, own in (("items", "item_columns"), ("users", "user_columns")):
        tables = [a for a in described if a.kind == kind]
        chosen = max(tables, key=lambda a: a.table.rows, default=None)
        result.unused += [name for a in tables if a is not chosen for name in a.table.files]
        columns = inner[kind]
        if chosen is not None:
            columns = [c for c in chosen.table.columns.values() if c.name != chosen.id]
        entries = features_of(columns)
        shown = shown_columns(columns) if kind == "items" else []
        wanted = list(dict.fromkeys([*(entry["column"] for entry in entries), *shown]))
        if chosen is not None:
            data[kind] = _attribute_file(result, chosen, wanted, folder)
        elif wanted:
            data[own] = wanted
            result.notes[f"data.{own}"] = f"guess: their values go with the {kind[:-1]}, mostly"
        if entries:
            features[kind[:-1]] = entries
        if shown and wanted:
            result.content["serve"] = {"columns": shown}
            result.notes["serve.columns"] = "guess: what a person knows an item by"
    if features:
        result.content["features"] = features


def _attribute_file(result: Draft, chosen: Attributes, columns: list[str], folder: Path) -> Content:
    table, form = chosen.table, chosen.table.form
    own = chosen.id if table.named else chosen.kind[:-1]
    keys: Content = {"files": paths(table.files, folder), "id": own, "columns": columns}
    result.notes[f"data.{chosen.kind}.id"] = chosen.reason
    keys |= {k: v for k, v in form_keys({}, table, "").items() if k in ("encoding", "delimiter")}
    if not table.named:
        keys["header"] = [own if name == chosen.id else name for name in form.columns]
        result.notes[f"data.{chosen.kind}.header"] = "guess: the files have no header; names of ours"
    return keys


def _short(name: str) -> str:
    return PurePosixPath(name).name
