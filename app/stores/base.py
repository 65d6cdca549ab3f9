"""What every store of feedback keeps to, and the one at a location."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from app.errors import MachineError
from app.events import Event, HistoryEvent


class Store(Protocol):
    """Event log and recent history per user; every method may be called from any thread."""

    def append(self, events: Sequence[Event]) -> None:
        """Make events durable, all or none; they are in every `recent` that starts later.

        Raises:
            MachineError: the store is full, not writable or damaged; nothing was stored.
        """

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        """The user's last `limit` events by time (then by arrival), the latest last."""

    def changes(self, mark: Any) -> tuple[Any, list[str]]:
        """Who has events that were stored after `mark`, by whichever process; None: nobody.

        Returns:
            The new mark, and the users. Quick where there is nothing new.
        """

    def put_item(self, item: str, content: bytes) -> None:
        """Make what is said of an item durable, in the place of what was said before.

        Raises:
            MachineError: as for `append`.
        """

    def items(self, mark: Any) -> tuple[Any, list[tuple[str, bytes]]]:
        """What is said of items that were put after `mark`, by whichever process; None: of all.

        Sure to know what the last call of `changes` could know, and no later; so it costs
        nothing where there is nothing new.

        Returns:
            The new mark, and items with their latest content, in the order of arrival.
        """

    def close(self) -> None:
        """Release the store."""


def open_store(location: str) -> Store:
    """The store at a folder (SQLite, for one machine) or at redis://… (for many).

    Raises:
        MachineError: it cannot be used.
    """
    from app.stores.sqlite_store import SqliteStore

    if location.startswith(("redis://", "rediss://")):
        try:
            from app.stores.redis_store import RedisStore
        except ModuleNotFoundError as error:
            raise MachineError(
                "the client of Redis is not installed",
                where="serve.store",
                remedy="pip install rayrec[redis]",
            ) from error
        return RedisStore(location)
    return SqliteStore(Path(location))
