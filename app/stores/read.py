"""Reading a feedback log back: for preparing data, and for files to keep.

    with StoredLog.open("store:runs/mine/bundle.store") as log:
        for events in log.events(): ...

A log is read as it was when it was opened, whatever a service adds meanwhile, and is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

import msgspec

from app.errors import DataError
from app.events import Event, Value
from app.stores.base import ItemRecord
from app.stores.open import is_redis
from app.stores.sqlite_log import SqliteLog

PREFIX = "store:"
CHUNK = 50_000


class Log(Protocol):
    """What a kind of store does for a StoredLog; errors are DataErrors."""

    def events(self, chunk: int) -> Iterator[list[Event]]:
        """All events in the order of storing; see StoredLog.events."""

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Ids and contents of items, in the order of arrival."""

    def digest(self) -> str:
        """A text that differs once the content does; see StoredLog.digest."""

    def close(self) -> None:
        """Close the connection to the log."""


class StoredLog:
    """A feedback log, opened for reading; a context manager.

    Args:
        location: named by errors, without a password.
        log: the log there.
    """

    def __init__(self, location: str, log: Log) -> None:
        self.location, self._log = location, log

    @classmethod
    def open(cls, location: str) -> StoredLog:
        """The log at a location.

        Args:
            location: `store:FOLDER`, the folder that a service keeps as BUNDLE.store, with or without
                the prefix; or redis://HOST:PORT/0.

        Raises:
            DataError: there is none, it is none, it is damaged, or of a newer version.
        """
        location = location.removeprefix(PREFIX)
        if not is_redis(location):
            return cls(location, SqliteLog(Path(location)))
        try:
            from app.stores.redis_log import RedisLog
        except ModuleNotFoundError as error:
            raise DataError(
                "the client of Redis is not installed",
                where=location.rpartition("@")[2],
                remedy="pip install rayrec[redis]",
            ) from error
        return cls(location.rpartition("@")[2], RedisLog(location))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self, chunk: int = CHUNK) -> Iterator[list[Event]]:
        """All events in the order of storing, at most `chunk` at a time; timestamps are seconds (float).

        Raises:
            DataError: the log is damaged, or does not answer.
        """
        return self._log.events(chunk)

    def items(self) -> Iterator[tuple[str, dict[str, Value]]]:
        """Id and columns of the items that PUT /v1/items stored, in the order of their latest content.

        Raises:
            DataError: the log is damaged, or does not answer.
        """
        decoder = msgspec.json.Decoder(ItemRecord)
        for item, content in self._log.items():
            try:
                yield item, decoder.decode(content).columns
            except msgspec.MsgspecError as error:
                raise DataError(
                    f"the content of item {item[:80]!r} is damaged ({error})",
                    where=self.location,
                    remedy="put the item again",
                ) from None

    def digest(self) -> str:
        """A text that differs once the content does; takes no reading of the log."""
        return self._log.digest()

    def close(self) -> None:
        """Close the connection to the log."""
        self._log.close()
