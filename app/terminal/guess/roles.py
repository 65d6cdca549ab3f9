"""Which columns of a log are the user, the item, the time, the type of event and the value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from app.errors import UserError
from app.terminal.guess.facts import Column
from app.terminal.guess.names import EVENT_WORDS, has_word, likeness
from app.terminal.guess.tables import Table

FEW, MOST_TYPES = 20, 30  # values of a rating without a name, and types of events
UNIQUE = 0.98  # different values, as a share of the rows, of a column that has a row for each
STRONG = ("event", "action", "behavior", "behaviour", "interaction", "activity", "feedback")


@dataclass
class Roles:
    """The columns of a log by what they mean; empty where there is none.

    `reasons` says by role why a column was taken.
    """

    user: str = ""
    item: str = ""
    times: list[str] = field(default_factory=list)
    time_format: str = ""
    event: str = ""
    value: str = ""
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def taken(self) -> list[str]:
        """The columns that have a role."""
        return [name for name in (self.user, self.item, *self.times, self.event, self.value) if name]

    @property
    def complete(self) -> bool:
        """Whether there are users and items, which make a table a log."""
        return bool(self.user and self.item)


def find_roles(table: Table, known: Mapping[str, str] | None = None) -> Roles:
    """Guess the roles of a table's columns; what is `known` of them, by role, stays as it is."""
    roles = Roles(**dict(known or {}))  # type: ignore[arg-type]
    roles.reasons = dict.fromkeys(known or {}, "given")
    if not roles.item and table.form.layout != "events":
        roles.item, roles.reasons["item"] = table.form.items, f"guess: its rows are {table.form.layout}"
    _by_name(table, roles, "user", _repeats)
    _by_name(table, roles, "item", _repeats)
    if not roles.user:
        _by_name(table, roles, "session", _repeats)
    _time(table, roles)
    _ids_by_content(table, roles)
    _event(table, roles)
    _value(table, roles)
    return roles


def require(roles: Roles, table: Table) -> None:
    """Refuse a table without users or items.

    Raises:
        UserError: names what is missing, the columns that there are, and how to say it.
    """
    missing = [role for role in ("user", "item") if not getattr(roles, role)]
    if missing:
        columns = ", ".join(table.columns)
        raise UserError(
            f"which column holds the {' and the '.join(missing)} cannot be told; it has {columns}",
            where=table.files[0],
            remedy=" and ".join(f"add --set data.{role}=COLUMN" for role in missing),
        )


def _free(table: Table, roles: Roles) -> Iterator[Column]:
    return (c for name, c in table.columns.items() if name not in roles.taken and not c.constant)


def _repeats(column: Column) -> bool:
    """Whether a column can hold the ids of who or what comes again and again."""
    return column.identifies and column.filled >= 0.5 and (column.unique < UNIQUE or len(column.present) < 50)


def _by_name(table: Table, roles: Roles, role: str, fits: Callable[[Column], bool]) -> None:
    target = "user" if role == "session" else role
    if getattr(roles, target):
        return
    named = {c.name: likeness(c.name, role) for c in _free(table, roles)}
    best = max((n for n in named if named[n] and fits(table.columns[n])), key=lambda n: named[n], default="")
    if not best:
        return
    setattr(roles, target, best)
    first = "its name" if table.named else "the first of each row's ids"
    reason = f"guess: {first}; {table.columns[best].distinct:,} ids in the sample"
    if role == "session":
        empty = [n for n, c in table.columns.items() if likeness(n, "user") and not fits(c)]
        why = f"{empty[0]} is mostly empty" if empty else "no column names users"
        reason = f"guess: the session stands for the user, because {why}"
    roles.reasons[target] = reason


def _time(table: Table, roles: Roles) -> None:
    if roles.times:
        return
    spelled = {c.name: c.spelling for c in _free(table, roles) if c.filled >= 0.5 and c.spelling}
    if not spelled:
        _order_by_number(table, roles)
        return

    def preference(name: str) -> tuple[bool, bool, int, int]:
        spelling = spelled[name]
        plain = not spelling.format
        return plain, not spelling.days, likeness(name, "time"), table.columns[name].distinct

    best = max(spelled, key=preference)
    spelling = spelled[best]
    others = [name for name in spelled if name != best]
    roles.times, roles.time_format = [best], spelling.format
    roles.reasons["timestamp"] = (
        "guess: the only column of times" if not others else f"guess: of times, too, are {', '.join(others)}"
    )
    if spelling.other:
        roles.reasons["time_format"] = f"guess: day and month may be the other way about, {spelling.other}"
    elif spelling.format:
        roles.reasons["time_format"] = "guess: all times of the sample have this spelling, and it alone"
    if spelling.days:
        _order_within_days(table, roles)


def _order_by_number(table: Table, roles: Roles) -> None:
    """A column that is named as a time and holds numbers, which are no dates but still order events."""
    numbered = [c for c in _free(table, roles) if c.numeric and likeness(c.name, "time") >= 200]
    if numbered and numbered[0].distinct > FEW:
        roles.times = [numbered[0].name]
        roles.reasons["timestamp"] = "guess: its name; its numbers are no dates, but may order events"


def _order_within_days(table: Table, roles: Roles) -> None:
    """A second column that orders the events of a day."""
    named = {c.name: likeness(c.name, "order") for c in _free(table, roles) if c.numeric or _of_day(c)}
    best = max(named, key=lambda name: named[name], default="")
    if best and named[best] >= 100:
        roles.times.append(best)
        roles.reasons["timestamp"] = f"guess: {roles.times[0]} has days alone, and {best} orders within them"


def _of_day(column: Column) -> bool:
    return bool(len(column.present)) and column.present.str.contains(r"^\d{1,2}:\d{2}(:\d{2})?").mean() == 1


def _ids_by_content(table: Table, roles: Roles) -> None:
    """Without a telling name: the first column of ids that repeat is the user, the next the item."""
    for role in ("user", "item"):
        if getattr(roles, role):
            continue
        rows_are_users = role == "user" and table.form.layout == "lists" and not table.named
        if rows_are_users and "user" not in table.form.columns:
            roles.user, roles.reasons["user"] = "user", "guess: each row lists the items of a user of its own"
            continue
        ids = [column.name for column in _free(table, roles) if _anonymous(column)]
        # A number of the row comes again only where the row becomes several events.
        again = [name for name in ids if _repeats(table.by_row.get(name, table.columns[name]))]
        if best := next(iter(again or ids), ""):
            setattr(roles, role, best)
            order = "first" if role == "user" else "next"
            roles.reasons[role] = f"guess: the {order} column of ids that come again and again"


def _anonymous(column: Column) -> bool:
    """Whether a column without a telling name can hold ids: they come again, are not few, and no times."""
    few = column.distinct <= min(FEW, 0.01 * len(column.present))
    return _repeats(column) and not few and not column.spelling


def _event(table: Table, roles: Roles) -> None:
    if roles.event:
        return
    for column in _free(table, roles):
        if not 2 <= column.distinct <= MOST_TYPES or column.filled < 0.5 or column.fractional:
            continue
        types = column.present.unique()
        known = any(has_word(value, EVENT_WORDS) for value in types)
        named = likeness(column.name, "event") > 0 and has_word(column.name, STRONG)
        if named or (known and not column.numeric):
            roles.event = column.name
            counts = column.present.value_counts(sort=True).head(5)
            shown = ", ".join(f"{value} {count:,}" for value, count in counts.iter_rows())
            roles.reasons["event"] = f"guess: few values, in the sample {shown}"
            return


def _value(table: Table, roles: Roles) -> None:
    if roles.value:
        return
    numeric = [c for c in _free(table, roles) if c.numeric and not c.spelling and c.filled >= 0.5]
    named = {c.name: likeness(c.name, "value") for c in numeric}
    best = max(named, key=lambda name: named[name], default="")
    if not best or not named[best]:
        rated = [c.name for c in numeric if not table.named and c.distinct <= FEW and _within(*c.bounds)]
        best = rated[0] if rated else ""
    if best:
        roles.value = best
        low, high = table.columns[best].bounds
        roles.reasons["value"] = f"guess: numbers from {low:g} to {high:g} in the sample"


def _within(low: float, high: float) -> bool:
    return low >= -1 and high <= 100
