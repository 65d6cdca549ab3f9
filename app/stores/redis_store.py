"""The event log and the recent history of a user in Redis 6.2 or later, for services on many machines.

    {rayrec}:events      stream of all events, in the order of arrival: what training exports
    {rayrec}:u:USER      the last WHOLE_PAST events of a user, a sorted set by time, then arrival
    {rayrec}:s:USER      the items of all events of a user, a sorted set by the time of the last one
    {rayrec}:items       the content of items that came after training, a hash
    {rayrec}:order       these items in the order of arrival, a sorted set; the last number is
    {rayrec}:place       a counter
    {rayrec}:version     of this layout
    {rayrec}:claimed     there while a process removes old events, or has lately

A script appends to the first three at once. The braces put all keys into one slot, so that scripts
run on a Redis cluster, too: one of its nodes holds the log. An acknowledged event is as durable as
Redis is set to make it: `appendonly yes` and `appendfsync always` survive the loss of power, and a
service says so where they are off. The stream grows until Redis is full, which refuses events
rather than lose old ones, or until `serve.keep_days` bounds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from sys import intern
from typing import Any

import msgspec
import redis

from app.errors import MachineError
from app.events import WHOLE_PAST, Event, HistoryEvent, microseconds
from app.stores.base import PAGE, Change, newer
from app.terminal.console import say

LOG, USER, SEEN = "{rayrec}:events", "{rayrec}:u:", "{rayrec}:s:"
ITEMS, ORDER, COUNTER = "{rayrec}:items", "{rayrec}:order", "{rayrec}:place"
LAYOUT, CLAIMED = "{rayrec}:version", "{rayrec}:claimed"
VERSION = 1  # of the layout; absent: before there were versions, without the seen items
TIMEOUT_S = 0.25  # replicas wait for no longer; a ranking then goes without
PORTION = 1000  # entries of the log that one removal looks at
# KEYS: the log, then for each event the user's two sets. ARGV: how many events of a user are kept, then for
# each event its user, time, item and the rest. The id of the log, padded so that it sorts as text, keeps
# events of one moment in order.
_APPEND = """
for n = 0, (#ARGV - 1) / 4 - 1 do
    local recent, seen = KEYS[2 * n + 2], KEYS[2 * n + 3]
    local user, time, item, rest = ARGV[4 * n + 2], ARGV[4 * n + 3], ARGV[4 * n + 4], ARGV[4 * n + 5]
    local id = redis.call('XADD', KEYS[1], '*', 'user', user, 'time', time, 'event', rest)
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    redis.call('ZADD', recent, time, string.format('%015d%09d', ms, seq) .. rest)
    redis.call('ZREMRANGEBYRANK', recent, 0, -1 - tonumber(ARGV[1]))
    redis.call('ZADD', seen, 'GT', time, item)
end
"""
_PUT = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
"""
_ORDER = 24  # characters of the padded id


class LoggedEvent(msgspec.Struct, array_like=True):
    """What the log and the set of a user hold of an event, besides its user and time."""

    item: str
    event: str
    value: float | None = None
    variant: str = ""


class RedisStore:
    """A Store in Redis.

    Args:
        url: redis://host:port/database, rediss:// for TLS.

    Raises:
        MachineError: the URL is none, Redis does not answer, or a newer version's log is in it.
    """

    local = False

    def __init__(self, url: str) -> None:
        self.where = url.rpartition("@")[2]  # without a password
        self._redis = self._try(connect, url, TIMEOUT_S)
        self._append = self._redis.register_script(_APPEND)
        self._put, self._last_item = self._redis.register_script(_PUT), 0
        self._decode = msgspec.json.Decoder(LoggedEvent).decode
        self._migrate()
        self._warn()

    def append(self, events: Sequence[Event]) -> None:
        """Store events, all or none; see Store.append."""
        now = round(time.time() * 1e6)
        keys, arguments = [LOG], [str(WHOLE_PAST)]
        for event in events:
            when = now if event.timestamp is None else microseconds(event.timestamp)
            rest = msgspec.json.encode(LoggedEvent(event.item, event.event, event.value, event.variant))
            keys += [USER + event.user, SEEN + event.user]
            arguments += [event.user, str(when), event.item, rest.decode()]
        self._try(self._append, keys=keys, args=arguments)

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        """The user's last events by time; see Store.recent."""
        entries = self._try(self._redis.zrange, USER + user, 0, limit - 1, desc=True, withscores=True)
        events = [(self._decode(member[_ORDER:]), score) for member, score in reversed(entries)]
        return [HistoryEvent(intern(e.item), intern(e.event), score / 1e6) for e, score in events]

    def seen(self, user: str) -> Iterator[list[str]]:
        """Pages of the items that a user met; see Store.seen."""
        for start in range(0, 1 << 62, PAGE):
            # An item that an event puts to the front meanwhile is not missed: `changes` names it.
            page: list[str] = self._try(self._redis.zrange, SEEN + user, start, start + PAGE - 1, desc=True)
            if page:
                yield page
            if len(page) < PAGE:
                return

    def unchanged(self) -> bool:
        """False: only the changes tell it; see Store.unchanged."""
        return False

    def changes(self, mark: str | None) -> tuple[str, list[Change] | None]:
        """Users and items of events since a mark; see Store.changes."""
        if mark is not None:
            page, counter = self._try(self._after, mark)
            self._last_item = int(counter or 0)
            if len(page) <= PAGE:
                changes = [(fields["user"], self._decode(fields["event"]).item) for _, fields in page]
                return (page[-1][0] if page else mark), changes
        newest = self._try(self._redis.xrevrange, LOG, count=1)
        return (newest[0][0] if newest else "0-0"), None

    def put_item(self, item: str, content: bytes) -> None:
        """Store the content of an item; see Store.put_item."""
        self._try(self._put, keys=[ITEMS, ORDER, COUNTER], args=[item, content])

    def items(self, mark: int | None) -> tuple[int, list[tuple[str, bytes]]]:
        """The items put since a mark; see Store.items."""
        if mark is not None and self._last_item <= mark:
            return mark, []
        items: list[tuple[str, bytes]] = []
        number = mark or 0
        while page := self._try(items_after, self._redis, number):
            number = page[-1][0]
            items += [(item, content) for _, item, content in page]
        return number, items

    def remove_before(self, time: int) -> Iterator[int]:
        """Remove old events in portions; see Store.remove_before."""
        after, newest = "-", self._try(self._redis.xrevrange, LOG, count=1)
        while newest:
            page = self._try(self._redis.xrange, LOG, after, f"({newest[0][0]}", PORTION)
            if not page:
                return
            old = [(entry, fields["user"]) for entry, fields in page if int(fields["time"]) < time]
            if old:
                self._try(self._remove, old, time)
            yield len(old)
            after = f"({page[-1][0]}"

    def claim_removal(self, seconds: float) -> bool:
        """Whether the caller is to remove events now; see Store.claim_removal."""
        return bool(self._try(self._redis.set, CLAIMED, 1, nx=True, px=max(1, round(seconds * 1000))))

    def close(self) -> None:
        """Close the connections to the store."""
        self._redis.close()

    def _after(self, mark: str) -> list[Any]:
        """A page of the log after a mark, and the number of the last item, in one go."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xrange(LOG, min=f"({mark}", count=PAGE + 1)
        pipeline.get(COUNTER)
        results: list[Any] = pipeline.execute()
        return results

    def _remove(self, old: list[tuple[str, str]], time: int) -> None:
        """Remove entries of the log, and before them what their users' sets hold from before `time`."""
        pipeline = self._redis.pipeline(transaction=False)
        for user in {user for _, user in old}:
            pipeline.zremrangebyscore(USER + user, "-inf", f"({time}")
            pipeline.zremrangebyscore(SEEN + user, "-inf", f"({time}")
        pipeline.xdel(LOG, *(entry for entry, _ in old))
        pipeline.execute()

    def _migrate(self) -> None:
        """Refuse a newer log, and give one of before there were versions the seen items of its users."""
        version = int(self._try(self._redis.get, LAYOUT) or 0)
        if version > VERSION:
            raise newer(version, self.where, VERSION)
        if version == VERSION:
            return
        after = "-"
        while page := self._try(self._redis.xrange, LOG, after, count=PORTION):
            pipeline = self._redis.pipeline(transaction=False)
            for _, fields in page:
                item = self._decode(fields["event"]).item
                pipeline.zadd(SEEN + fields["user"], {item: int(fields["time"])}, gt=True)
            self._try(pipeline.execute)
            after = f"({page[-1][0]}"
        self._try(self._redis.set, LAYOUT, VERSION)

    def _try(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except redis.RedisError as error:
            raise MachineError(
                f"Redis cannot be used ({error})",
                where=self.where,
                remedy="check that it runs, is reachable and not full, and see serve.store",
            ) from error

    def _warn(self) -> None:
        try:
            options = self._redis.config_get("append*")
        except redis.RedisError:
            return  # managed ones refuse to answer
        if options.get("appendonly") != "yes" or options.get("appendfsync") != "always":
            say(
                f"Redis at {self.where} may lose acknowledged events when it stops:"
                " set appendonly yes and appendfsync always"
            )


def connect(url: str, timeout_s: float) -> Any:
    """A client of the Redis at a URL, or of the cluster that this Redis belongs to.

    Raises:
        MachineError: the URL is none.
        redis.RedisError: nothing answers.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "decode_responses": True
    }  # fmt: skip
    try:
        client = redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise MachineError(
            f"not the address of a Redis ({error})",
            where="serve.store",
            remedy="write redis://HOST:PORT/0",
        ) from error
    try:
        clustered = client.info("cluster").get("cluster_enabled")
    except redis.ResponseError:  # a managed one that refuses to answer
        clustered = False
    return redis.RedisCluster.from_url(url, **options) if clustered else client


def items_after(client: Any, number: int) -> list[tuple[int, str, bytes]]:
    """A page of the items put after a number (0: all): number, id and content, in the order of arrival."""
    page = client.zrange(ORDER, f"({number}", "+inf", byscore=True, withscores=True, offset=0, num=PAGE)
    contents = client.hmget(ITEMS, [item for item, _ in page]) if page else []
    return [(int(n), item, text.encode()) for (item, n), text in zip(page, contents, strict=True)]
