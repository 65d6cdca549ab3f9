"""What a user should know of a log although it can be used: each a sentence with values and a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from app.data.prepare.buckets import Buckets
from app.data.prepare.plan import Plan
from app.data.prepare.selection.refusals import moment_of
from app.data.prepare.selection.statistics import Column

_MANY = 0.1  # share of duplicates that may be events of their own
_TIED = 0.2  # share of events of one moment from which it matters whether they have an order
_OFF = 0.2  # a part that differs by more from what is asked for is said
_MOMENTS = 3  # of the last ones, whose shares are shown


def notes_of(
    figures: Mapping[str, Any],
    plan: Plan,
    buckets: Buckets,
    ids: tuple[pl.DataFrame, pl.DataFrame],
    span: tuple[int, int],
    ties: str,
) -> Iterator[str]:
    """The sentences.

    Args:
        figures: of the data set.
        plan: the plan.
        buckets: the rows that are kept.
        ids: of the users, those with events first, and of the items.
        span: the first and the last time, in microseconds.
        ties: whether events of one moment come before each other.
    """
    data = plan.data
    if not data.ordered:
        yield (
            "the log has no times and its rows no order: histories are sets, and the events that test are "
            "drawn at random; name a column of times in data.timestamp, or set data.row_order = true if rows "
            "stand in the order in which things happened"
        )
    elif not data.timed:
        yield "the log has no times: rows are in order, and nothing is known of the moment or of ages"
    elif span[0] == span[1] and figures["rows_kept"] > 1:
        yield (
            f"all events have the time {moment_of(span[0])}: those of a user stand in the order of the rows; "
            'set data.timestamp = "" if that order means nothing'
        )
    elif ties == "none" and buckets.tied > _TIED * figures["rows_kept"]:
        yield (
            f"{buckets.tied:,} events have the moment of another one of their user, and none of these comes "
            'before the other: set data.ties = "order" if they happened in the order of the rows, or name a '
            "second column in data.timestamp that orders them"
        )
    repeated = figures["rejected"].get("duplicate", 0)
    if data.duplicates == "exact" and repeated > _MANY * figures["rows_in"]:
        yield (
            f"{repeated:,} of {figures['rows_in']:,} rows repeat another in all columns and count once; set "
            'data.duplicates = "keep" if each is an event'
        )
    users, items = ids
    if sum(buckets.users) == 1:
        yield (
            f"all events are of one user, {users['id'][0]!r}: nothing is learned from others and figures are "
            f"of one list; set data.user to another column than {data.user!r} if there are more users"
        )
    if len(items) == 1:
        yield (
            f"all {figures['rows_kept']:,} events that are kept, of {figures['rows_in']:,} rows, are on one "
            f"item, {items['id'][0]!r}: there is nothing to rank; set data.item to another column than "
            f"{data.item!r} if there are more items"
        )
    yield from _shares(figures, plan, buckets.times)


def _shares(figures: Mapping[str, Any], plan: Plan, times: Column) -> Iterator[str]:
    """Parts of a split by time that are not as large as asked for, since events share their moments."""
    split, total = plan.split, sum(figures[part] for part in ("train", "valid", "test"))
    if split.method != "time":
        return
    days = {"valid": split.valid_days, "test": split.test_days}
    asked = {part: getattr(split, part) for part, length in days.items() if not length}
    got = {part: figures[part] / total for part in asked}
    off = {part: abs(got[part] - asked[part]) for part in asked}
    if any(difference > max(_OFF * asked[part], 1 / total) for part, difference in off.items()):
        shares = " and ".join(f"{part} {share:.1%}" for part, share in asked.items())
        last = ", ".join(
            f"{share:.1%} at {moment_of(moment)}" for moment, share in _last_moments(times, total)
        )
        yield (
            f"a split by time was asked for {shares} of the events and gives "
            f"{' and '.join(f'{share:.1%}' for share in got.values())}, the nearest that moments allow: "
            f"the last ones hold {last}; set split.valid_days and split.test_days, or another split.method"
        )


def _last_moments(times: Column, rows: int) -> Iterator[tuple[int, float]]:
    """The last moments that events have, and the share of the events that each holds."""
    earlier = rows
    for _ in range(_MOMENTS):
        if earlier == 0:
            return
        (moment,) = times.ranked([earlier - 1])
        before = rows - times.count_from(moment)
        yield int(moment), (earlier - before) / rows
        earlier = before
