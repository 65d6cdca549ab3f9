"""One vocabulary of events for files, HTTP and feedback.

Needs msgspec alone, because the serving runtime uses it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

UNKNOWN = 0  # row 0 of every table: padding, and ids that training never saw
ID_BYTES = 256
# Events of a user, the most recent ones, that a model which reads the whole past looks at. They hold the past
# of all but a few people in ten thousand, and bound what a store keeps and a request costs.
WHOLE_PAST = 1000
Value = str | int | float | bool | None | list[str | int | float]  # of a column of an item


class Event(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a user did with an item.

    `timestamp` is seconds since the epoch or ISO 8601 text (UTC where it names no zone);
    None means now. `variant` is the version of the model that the user met; the service knows it
    by itself.
    """

    user: str
    item: str
    event: str = ""
    timestamp: float | str | None = None
    value: float | None = None
    variant: str = ""


class HistoryEvent(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One event of the user in question, as a request carries it and as a store gives it back."""

    item: str
    event: str = ""
    timestamp: float | str | None = None


def microseconds(timestamp: float | str) -> int:
    """Microseconds since the epoch (UTC) of an event's timestamp.

    Raises:
        ValueError: text that is not ISO 8601, or a number that is not finite.
    """
    if isinstance(timestamp, str):
        moment = datetime.fromisoformat(timestamp)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1e6)
    if not -1e12 < timestamp < 1e12:
        raise ValueError(f"{timestamp!r} is not a time in seconds")
    return round(timestamp * 1e6)
