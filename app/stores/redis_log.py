"""The feedback log in a Redis, read up to the event that is its last when it is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import redis

from app.errors import DataError, MachineError
from app.events import Event
from app.stores.base import newer
from app.stores.redis_store import COUNTER, ITEMS, LAYOUT, LOG, VERSION, LoggedEvent, connect, items_after

TIMEOUT_S = 10.0
PAGE = 10_000  # entries of a call: a Redis answers nobody else meanwhile
CHECK = "check address, database number and password, and that the Redis runs"


class RedisLog:
    """Reads the stream of a RedisStore; see app.stores.read.

    Args:
        url: redis://HOST:PORT/0.

    Raises:
        DataError: it does not answer, holds no feedback log, or one of a newer version.
    """

    def __init__(self, url: str) -> None:
        self.where = url.rpartition("@")[2]
        try:
            self._redis = self._try(connect, url, TIMEOUT_S)
        except MachineError as error:
            raise DataError(error.what, where=self.where, remedy=error.remedy) from error
        self._decode = msgspec.json.Decoder(LoggedEvent).decode
        layout = self._try(self._redis.get, LAYOUT)
        if layout is None and not self._try(self._redis.exists, LOG, ITEMS):
            raise DataError("there is no feedback log in this Redis", where=self.where, remedy=CHECK)
        if int(layout or 0) > VERSION:
            refusal = newer(int(layout), self.where, VERSION)
            raise DataError(refusal.what, where=refusal.where, remedy=refusal.remedy)
        newest = self._try(self._redis.xrevrange, LOG, count=1)
        self._last: str | None = newest[0][0] if newest else None

    def events(self, chunk: int) -> Iterator[list[Event]]:
        """All events in the order of storing; see StoredLog.events."""
        after, size = "-", min(chunk, PAGE)
        while self._last is not None:
            page = self._try(self._redis.xrange, LOG, after, self._last, size)
            if page:
                yield [self._event(*entry) for entry in page]
                after = f"({page[-1][0]}"
            if len(page) < size:
                return

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Ids and contents of items, in the order of arrival."""
        number = 0
        while page := self._try(items_after, self._redis, number):
            yield from ((item, content) for _, item, content in page)
            number = page[-1][0]

    def digest(self) -> str:
        """A text that differs once the content does; see StoredLog.digest."""
        first = self._try(self._redis.xrange, LOG, "-", "+", 1)
        length = self._try(self._redis.xlen, LOG)
        items = self._try(self._redis.get, COUNTER)
        content = (first[0][0] if first else None, length, self._last, items)
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def close(self) -> None:
        """Close the connection to the log."""
        self._redis.close()

    def _event(self, entry: str, fields: dict[str, str]) -> Event:
        try:
            rest = self._decode(fields["event"])
            return Event(
                fields["user"], rest.item, rest.event, int(fields["time"]) / 1e6, rest.value, rest.variant
            )
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise DataError(
                f"entry {entry} of the feedback log is damaged ({error})",
                where=self.where,
                remedy=f"remove it: XDEL {LOG} {entry}",
            ) from error

    def _try(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except redis.RedisError as error:
            raise DataError(
                f"the feedback log cannot be read ({error})", where=self.where, remedy=CHECK
            ) from error
