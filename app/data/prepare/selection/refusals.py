"""Logs that give nothing to train on, each with a message and a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.data.prepare.plan import Plan
from app.errors import DataError

Json = dict[str, Any]


def span_of(reports: Sequence[Json]) -> tuple[int, int]:
    """Microseconds of the first and the last event, of the reports of phase 3."""
    return min(r["span"][0] for r in reports), max(r["span"][1] for r in reports)


def moment_of(microseconds: int) -> str:
    """A time as text, without the time of day where that is midnight; UTC."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return moment.date().isoformat() if microseconds % 86_400_000_000 == 0 else moment.isoformat()


def refuse_no_training(
    reports: Sequence[Json], rows: Mapping[str, Sequence[int]], plan: Plan, events: Sequence[str]
) -> None:
    """Refuse a split that trains on nothing, or on no event that is to be predicted.

    Args:
        reports: of phase 3, a bucket each.
        rows: events of each part, by bucket.
        plan: the plan.
        events: the event types, row 0 padding.

    Raises:
        DataError: says which rule leaves nothing.
    """
    first, last = span_of(reports)
    if sum(rows["train"]) == 0 and plan.split.method == "time" and first == last:
        raise DataError(
            f"the split leaves no event to train on: all have the time {moment_of(first)}",
            where="split.method = 'time'",
            remedy="choose another split.method, e.g. leave_random, or name another column in data.timestamp",
        )
    if sum(rows["train"]) == 0:
        counts = ", ".join(f"{part} {sum(count)}" for part, count in rows.items())
        raise DataError(
            f"the split leaves no event to train on ({counts})",
            where=f"split.method = {plan.split.method!r}",
            remedy="lower split.valid and split.test, or choose another method",
        )
    if any(r["positive"] for r in reports):
        return
    above = plan.data.positive_above
    if above is None:
        what, where = (
            f"no training event is of a type to predict; there are {', '.join(events[1:])}",
            "positive",
        )
    else:
        what, where = f"no training event to predict has a value above {above:g}", "positive_above"
    raise DataError(what, where=f"data.{where}", remedy=f"change data.{where}, or leave it out")
