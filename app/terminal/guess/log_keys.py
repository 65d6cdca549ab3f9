"""The keys of [data] for files of events: how they are read, and what their columns are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from app.recipe import Recipe, parse
from app.terminal.guess.names import event_word
from app.terminal.guess.roles import Roles
from app.terminal.guess.tables import Table

GLOBBED = 4  # files of a folder that are written as a pattern, if it fits them alone
Content = dict[str, Any]
Log = tuple[Table, Roles]


@dataclass
class Draft:
    """A recipe in the making.

    Attributes:
        content: tables of the recipe.
        notes: by dotted key, why a value was guessed.
        unused: files that fit nowhere.
    """

    content: Content = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The recipe, checked."""
        return parse(self.content, "--from")


def log_keys(result: Draft, logs: list[Log], folder: Path) -> Content:
    """The keys of [data] for one table of events or several."""
    table, roles = logs[0]
    typed = _event_types(logs)
    data: Content = {}
    if len(logs) == 1 and not typed:
        data |= {"events": paths(table.files, folder), **form_keys(result.notes, table, "data")}
    else:
        data["sources"] = [
            {"files": paths(files, folder), **form_keys({}, other, ""), **_columns(other, own, roles)}
            | ({"event": event} if event else {})
            for files, other, own, event in typed or [(t.files, t, r, "") for t, r in logs]
        ]
        if typed:
            result.notes["data.sources"] = "guess: the type of an event is in the name of its file"
    _roles(result, data, table, roles, bool(typed))
    return data


def _event_types(logs: list[Log]) -> list[tuple[list[str], Table, Roles, str]]:
    """(files, table, roles, type) where names of files say the type of events; empty where they do not."""
    if any(roles.event for _, roles in logs):
        return []
    files = [(name, table, roles, event_word(name)) for table, roles in logs for name in table.files]
    types = {event for *_, event in files}
    if "" in types or len(types) < 2:
        return []
    grouped: dict[tuple[int, str], tuple[list[str], Table, Roles, str]] = {}
    for name, table, roles, event in files:
        grouped.setdefault((id(table), event), ([], table, roles, event))[0].append(name)
    return list(grouped.values())


def form_keys(notes: dict[str, str], table: Table, key: str) -> Content:
    """Keys that say how files are read, as far as reading would not find it by itself."""
    form = table.form
    keys: Content = {}
    if form.encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig"):
        keys["encoding"] = form.encoding
        notes[f"{key}.encoding"] = "guess: the bytes are no UTF-8"
    if form.layout != "events":
        keys["layout"] = form.layout
        notes[f"{key}.layout"] = f"guess: {form.items} lists items in each row"
    if form.format == "csv" and form.delimiter != ",":
        keys["delimiter"] = form.delimiter
    if not table.named:
        keys["columns"] = list(form.columns)
        notes[f"{key}.columns"] = "guess: the files have no header; names of ours, in their order"
    return keys


def _columns(table: Table, roles: Roles, main: Roles) -> Content:
    """Keys of a source for the columns that have other names than those of [data]."""
    pairs = {
        "user": (roles.user, main.user),
        "item": (roles.item, main.item),
        "value": (roles.value, main.value),
    }
    keys: Content = {key: own for key, (own, ours) in pairs.items() if own and ours and own != ours}
    if roles.times and main.times and roles.times != main.times:
        keys["timestamp"] = roles.times[0] if len(roles.times) == 1 else roles.times
    if roles.event and roles.event != main.event:
        keys["event_column"] = roles.event
    return keys


def _roles(result: Draft, data: Content, table: Table, roles: Roles, typed: bool) -> None:
    """The keys that name columns, with their notes."""
    event = roles.event
    if typed or table.form.layout == "impressions":
        event = next(name for name in ("event", "event_type", "type_of_event") if name not in table.columns)
    data |= {"user": roles.user, "item": roles.item, "event": event, "value": roles.value}
    data["timestamp"] = roles.times[0] if len(roles.times) == 1 else roles.times or ""
    if roles.time_format:
        data["time_format"] = roles.time_format
    result.notes |= {f"data.{role}": reason for role, reason in roles.reasons.items()}
    if not roles.times:
        result.notes["data.timestamp"] = "guess: no column holds times, so events have no order"
    if event and not roles.event:
        result.notes["data.event"] = (
            "guess: each row says its type" if not typed else "a name of ours, see the sources"
        )
    if table.form.layout == "impressions":
        data["positive"] = ["click"]
        result.notes["data.positive"] = "guess: what was shown is to be told from what was clicked"
    elif event:
        result.notes["data.positive"] = "all types count as success; name those that do, e.g. the purchases"
    _values(result, table, roles)
    if (empty := 1 - table.columns[roles.user].filled if roles.user in table.columns else 0) > 0.005:
        result.notes["data.user"] += f"; {empty:.0%} of the sample's rows have none, which rejects them"


def _values(result: Draft, table: Table, roles: Roles) -> None:
    if not roles.value:
        return
    numbers = table.columns[roles.value].numbers.drop_nulls()
    quoted = roles.value if roles.value.isidentifier() else f"`{roles.value}`"
    low, high = table.columns[roles.value].bounds
    if below := (numbers < 0).sum() / max(1, len(numbers)):
        text = f'{below:.1%} of the values are below 0; to leave such rows out write "{quoted} > 0"'
        result.notes["data.where"] = text
    elif 2 < high <= 10 and numbers.n_unique() <= 20:
        result.notes["data.positive_above"] = (
            f"all values from {low:g} to {high:g} count as success; to predict the better half alone, write"
            f" {round((low + high) / 2 * 2) / 2:g}"
        )


def named(table: Table, roles: Roles, ending: str = "") -> Log:
    """The same table, of files without a header with names that say what its columns are.

    The names of columns without a role get an `ending`, as those of another table may mean something else.
    """
    if table.named:
        return table, roles
    names = {name: f"{name}{ending}" for name in table.form.columns}
    names |= {roles.user: "user", roles.item: "item", roles.event: "event", roles.value: "value"}
    names |= {time: "timestamp" if not n else f"timestamp{n + 1}" for n, time in enumerate(roles.times)}
    columns = {names.get(n, n): replace(c, name=names.get(n, n)) for n, c in table.columns.items()}
    form = replace(table.form, columns=tuple(names.get(n, n) for n in table.form.columns))
    times = [names[time] for time in roles.times]
    taken = {r: r for r in ("user", "item", "event", "value") if getattr(roles, r)}
    renamed = Roles(**taken, times=times, time_format=roles.time_format, reasons=roles.reasons)
    return replace(table, form=form, columns=columns), renamed


def paths(files: Sequence[str], folder: Path) -> list[str]:
    """Files as the recipe names them: from its folder where they are near, and as a pattern where many."""
    parents = {str(PurePosixPath(name).parent) for name in files}
    if len(files) >= GLOBBED and len(parents) == 1 and "://" not in files[0]:
        parent, suffixes = Path(parents.pop()), "".join(PurePosixPath(files[0]).suffixes[-2:])
        if sorted(map(str, parent.glob(f"*{suffixes}"))) == sorted(files):
            files = [f"{parent}/*{suffixes}"]
    return [_path(name, folder) for name in files]


def _path(name: str, folder: Path) -> str:
    if "://" in name:
        return name
    absolute = Path(name).absolute()
    relative = os.path.relpath(absolute, folder.absolute())
    return str(absolute) if relative.startswith("../..") else relative
