"""The event log and the recent history of a user in Redis, for services on many machines.

    {rayrec}:events      stream of all events, in the order of arrival: what training exports
    {rayrec}:u:USER      the last KEPT events of a user, a sorted set by time, then arrival
    {rayrec}:items       what was said of items after training, a hash
    {rayrec}:order       these items in the order of arrival, a sorted set; the last place is
    {rayrec}:place       a counter

A script appends to both at once. An acknowledged event is as durable as Redis is set to make
it: `appendonly yes` and `appendfsync always` survive the loss of power, and a service says so
where they are off. The stream grows until Redis is full, which refuses events rather than
lose old ones; trim it once they are exported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from sys import intern
from typing import Any, TypeVar

import msgspec
import redis

from app.errors import MachineError
from app.events import Event, HistoryEvent, microseconds
from app.terminal.console import say

LOG, USER = "{rayrec}:events", "{rayrec}:u:"  # braces: one node of a Redis cluster has them all
ITEMS, ORDER, PLACE = "{rayrec}:items", "{rayrec}:order", "{rayrec}:place"
KEPT = 1000
TIMEOUT_S = 0.25  # replicas wait for no longer; a ranking then goes without
PAGE = 10_000
_FIELDS = 3  # of an event, as the script takes it: user, microseconds, the rest
# The id of the log, padded so that it sorts as text, keeps events of one moment in their order.
_APPEND = """
for i = 1, #ARGV, 3 do
    local id = redis.call('XADD', KEYS[1], '*', 'user', ARGV[i], 'time', ARGV[i + 1], 'event', ARGV[i + 2])
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    local key = KEYS[2] .. ARGV[i]
    redis.call('ZADD', key, ARGV[i + 1], string.format('%015d%09d', ms, seq) .. ARGV[i + 2])
    redis.call('ZREMRANGEBYRANK', key, 0, -1 - tonumber(KEYS[3]))
end
"""
_PUT = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
"""
_ORDER = 24  # characters of the padded id

T = TypeVar("T")


class _Kept(msgspec.Struct, array_like=True):
    """What the set of a user holds of an event, besides its time."""

    item: str
    event: str
    value: float | None = None
    variant: str = ""


class RedisStore:
    """A Store in Redis.

    Args:
        url: redis://host:port/database, rediss:// for TLS.

    Raises:
        MachineError: the URL is none, or Redis does not answer.
    """

    def __init__(self, url: str) -> None:
        self.where = url.rpartition("@")[2]  # without a password
        try:
            self._redis = redis.Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, decode_responses=True
            )
        except ValueError as error:
            raise MachineError(
                f"not the address of a Redis ({error})",
                where="serve.store",
                remedy="write redis://HOST:PORT/0",
            ) from error
        self._append = self._redis.register_script(_APPEND)
        self._put, self._place = self._redis.register_script(_PUT), 0
        self._decode = msgspec.json.Decoder(_Kept).decode
        self._try(self._redis.ping)
        self._warn()

    def append(self, events: Sequence[Event]) -> None:
        """See Store."""
        now = round(time.time() * 1e6)
        arguments: list[str | int] = []
        for one in events:
            when = now if one.timestamp is None else microseconds(one.timestamp)
            kept = msgspec.json.encode(_Kept(one.item, one.event, one.value, one.variant)).decode()
            arguments += [one.user, when, kept]
        self._try(lambda: self._append(keys=[LOG, USER, str(KEPT)], args=arguments))

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        """See Store."""
        found = self._try(lambda: self._redis.zrange(USER + user, 0, limit - 1, desc=True, withscores=True))
        kept = [(self._decode(member[_ORDER:]), score) for member, score in reversed(found)]
        return [HistoryEvent(intern(one.item), intern(one.event), score / 1e6) for one, score in kept]

    def changes(self, mark: str | None) -> tuple[str, list[str]]:
        """See Store."""
        if mark is None:
            last = self._try(lambda: self._redis.xrevrange(LOG, count=1))
            return (last[0][0] if last else "0-0"), []
        users: set[str] = set()
        while True:
            after = f"({mark}"
            page, place = self._try(lambda after=after: self._after(after))  # type: ignore[misc]
            self._place = int(place or 0)
            users.update(fields["user"] for _, fields in page)
            mark = page[-1][0] if page else mark
            if len(page) < PAGE:
                return mark, list(users)

    def put_item(self, item: str, content: bytes) -> None:
        """See Store."""
        self._try(lambda: self._put(keys=[ITEMS, ORDER, PLACE], args=[item, content]))

    def items(self, mark: int | None) -> tuple[int, list[tuple[str, bytes]]]:
        """See Store."""
        if mark is not None and self._place <= mark:
            return mark, []
        found: list[tuple[str, bytes]] = []
        mark = mark or 0
        while True:
            after = f"({mark}"
            page = self._try(
                lambda after=after: self._redis.zrange(  # type: ignore[misc]
                    ORDER, after, "+inf", byscore=True, withscores=True, offset=0, num=PAGE
                )
            )
            if not page:
                return mark, found
            names = [name for name, _ in page]
            contents = self._try(lambda names=names: self._redis.hmget(ITEMS, names))  # type: ignore[misc]
            found += [(name, text.encode()) for name, text in zip(names, contents, strict=True) if text]
            mark = int(page[-1][1])

    def close(self) -> None:
        """See Store."""
        self._redis.close()

    def _after(self, mark: str) -> list[Any]:
        """A page of the log after a mark, and the place of the last item, in one go."""
        asking = self._redis.pipeline(transaction=False)
        asking.xrange(LOG, min=mark, count=PAGE)
        asking.get(PLACE)
        return asking.execute()

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except redis.RedisError as error:
            raise MachineError(
                f"Redis cannot be used ({error})",
                where=self.where,
                remedy="check that it runs, is reachable and not full, and see serve.store",
            ) from error

    def _warn(self) -> None:
        try:
            found = self._redis.config_get("append*")
        except redis.RedisError:
            return  # managed ones do not tell
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            say(
                f"Redis at {self.where} may lose acknowledged events when it stops:"
                " set appendonly yes and appendfsync always"
            )
