"""What every store of feedback keeps to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from app.errors import MachineError
from app.events import Event, HistoryEvent, Value

PAGE = 10_000  # rows that a store reads or removes in one go
Change = tuple[str, str]  # user and item of an event


class ItemRecord(msgspec.Struct, frozen=True):
    """An item as PUT /v1/items stored it.

    `columns`: all of it. `versions`: digests of the bundles that knew it then. `time`: when that was, in
    seconds since 1970; 0 in records of before it was stored.
    """

    columns: dict[str, Value]
    versions: list[str] = []
    time: float = 0.0


class Store(Protocol):
    """Event log and recent history per user; every method may be called from any thread.

    `local` says whether the store answers reads within microseconds, so that an event loop may wait.
    """

    local: bool

    def append(self, events: Sequence[Event]) -> None:
        """Make events durable, all or none; they are in every `recent` that starts later.

        Raises:
            MachineError: the store is full, not writable or damaged; nothing was stored.
        """

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        """The user's last `limit` events by time (then by arrival), the latest last."""

    def seen(self, user: str) -> Iterator[list[str]]:
        """The items of all the user's stored events, in pages, the latest event's first.

        An item may come more than once.
        """

    def unchanged(self) -> bool:
        """Whether nothing was stored, by whichever process, since `changes` was last called.

        Quick; False where that cannot be told without asking for the changes.
        """

    def changes(self, mark: Any) -> tuple[Any, list[Change] | None]:
        """User and item of the events that were stored after `mark`, by whichever process.

        Quick where there is nothing new.

        Args:
            mark: of an earlier call; None for the first.

        Returns:
            The new mark, and the changes in the order of storing; None instead of more than PAGE,
            and where there was no mark: what the caller knows of users may be old.
        """

    def put_item(self, item: str, content: bytes) -> None:
        """Make the content of an item durable, instead of an earlier one.

        Args:
            item: its id.
            content: an ItemRecord as JSON.

        Raises:
            MachineError: as for `append`.
        """

    def items(self, mark: Any) -> tuple[Any, list[tuple[str, bytes]]]:
        """The items that were put after `mark`, by whichever process; None: all.

        Sure to know what the last call of `changes` could know, and no later; so it costs
        nothing where there is nothing new.

        Returns:
            The new mark, and items with their latest content, in the order of arrival.
        """

    def remove_before(self, time: int) -> Iterator[int]:
        """Remove the events that happened before `time`, in portions; nothing younger goes.

        The newest stored event stays, whatever its time.

        Args:
            time: microseconds since the epoch.

        Yields:
            The number of events in the portion just removed.
        """

    def claim_removal(self, seconds: float) -> bool:
        """Whether it is for the caller to remove old events now: true once in `seconds`, for one process."""

    def close(self) -> None:
        """Close the connections to the store."""


def newer(version: int, where: str, known: int) -> MachineError:
    """The refusal of a log that a newer RayRec wrote.

    Args:
        version: of the log's format.
        where: the log's file or address.
        known: the newest format that this RayRec reads.
    """
    return MachineError(
        f"the feedback log has format {version}, this RayRec reads up to {known}",
        where=where,
        remedy="use the RayRec that wrote it, or another store",
    )
