"""The stored events of users, at hand before each batch without ever being stale.

Reading a user's events from the store costs as much as parsing the request. Before each batch
the store is asked once which users have new events, by whichever replica; what is cached of all
others is still right. A store that does not answer is left alone for a while, and rankings go
without. A store on another machine is asked in a thread, so that the event loop never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.bundle.byte_cache import ByteBoundedCache
from app.bundle.request.seen import SeenItems
from app.errors import MachineError
from app.events import HistoryEvent
from app.serving.feedback.new_items import ItemChanges, StoredItems
from app.stores.base import Change, Store

_log = logging.getLogger("ray.serve")
LENGTH = 200  # events of a user handed to the ranker, or as many as its model looks at
LIMIT_BYTES = 64 << 20  # of all users; one of 1,000 events takes 200 KB for them and 129 KiB for seen items
EVENT_BYTES, ENTRY_BYTES = 200, 300
REST_S = 1.0  # for a store that failed


class UserEvents(NamedTuple):
    """What is stored of a user: the last `limit` events by time, and the items of all events.

    `seen` is None where `events` are all there are. `current`: no event was stored since.
    """

    events: list[HistoryEvent]
    seen: SeenItems | None
    limit: int
    current: bool = True

    def serves(self, length: int) -> bool:
        """Whether these are the user's last `length` events, or all."""
        return self.current and (self.limit >= length or len(self.events) < self.limit)

    @property
    def bytes(self) -> int:
        """Memory that they take, about."""
        seen = 0 if self.seen is None else self.seen.bytes
        return ENTRY_BYTES + EVENT_BYTES * len(self.events) + seen


_NO_EVENTS = UserEvents([], None, LENGTH)


class Lookup:
    """The stored events of some users at one moment.

    Args:
        by_user: of these users.
        informed: whether the store answered; where not, nobody has events.
    """

    def __init__(self, by_user: dict[str, UserEvents], informed: bool) -> None:
        self._by_user, self.informed = by_user, informed

    def of(self, user: str) -> list[HistoryEvent]:
        """The user's last events by time, the latest last: the same list until there are new ones."""
        return self._by_user[user].events if self.informed else []

    def seen(self, user: str) -> SeenItems | None:
        """The items of all the user's events; None where `of` gives all of them."""
        return self._by_user[user].seen if self.informed else None


@dataclass
class _Answer:
    """What was read from the store in one go."""

    mark: Any
    changes: list[Change] | None
    items: ItemChanges | None
    limit: int  # events read of a user at most
    cached: dict[str, UserEvents] = field(default_factory=dict)  # of users of whom the cache is right
    events: dict[str, list[HistoryEvent]] = field(default_factory=dict)  # of users not cached, or changed
    seen: dict[str, SeenItems] = field(default_factory=dict)


Waiting = list[tuple[Collection[str], Callable[[Lookup], None]]]


class UserEventCache:
    """Looks up the stored events of users; used on one event loop.

    `hits` and `misses` count users looked up, `bytes` is what their events take.

    Args:
        store: of the events.
        items: gives new items to the rankers whenever the store is asked; None: there is no need.
        limit: bytes of the events and seen items cached; the users not looked up for longest go.
    """

    def __init__(self, store: Store, items: StoredItems | None = None, limit: int = LIMIT_BYTES) -> None:
        self.store, self._items = store, items
        self._cache: ByteBoundedCache[str, UserEvents] = ByteBoundedCache(limit)
        self._mark, _ = store.changes(None)
        self._length = LENGTH
        self._waiting: Waiting = []
        self._asking = False  # one lookup at a time, so that none puts back what another replaced
        self._thread = ThreadPoolExecutor(1, "stored events")
        self._rests_until = 0.0
        self.hits = self.misses = 0

    @property
    def bytes(self) -> int:
        """Memory that the cached events take, about."""
        return self._cache.bytes

    def need(self, length: int) -> None:
        """From now on hand over so many events of a user at least. From any thread."""
        self._length = max(self._length, length)

    def look_up(self, users: Collection[str], then: Callable[[Lookup], None]) -> None:
        """Call `then` with the events of users, those included that were stored before this call.

        At once where the store is on this machine, unless the lookup is one of a user of very many
        events, or another one is under way; else on the event loop when a thread has asked.
        """
        idle = not (self._asking or self._waiting) and time.monotonic() >= self._rests_until
        if idle and self.store.local and (lookup := self._look_up_unchanged(users)):
            _hand_over(lookup, then)
            return
        self._waiting.append((users, then))
        if not self._asking:
            self._ask()

    def _look_up_unchanged(self, users: Collection[str]) -> Lookup | None:
        """The events of users where nothing new was stored, as before most batches; else None.

        A path of its own, because every batch comes by here: it takes half the time of the usual one.
        """
        by_user: dict[str, UserEvents] = {}
        limit = self._length
        try:
            if not self.store.unchanged():
                return None
            if self._items is not None:
                self._items.refresh()
            for user in users:
                entry = self._cache.get(user)
                if entry is None or not entry.serves(limit):
                    events = self.store.recent(user, limit)
                    if len(events) == limit:  # whose seen items may take long to read
                        return None
                    entry = _renewed(entry, events, None, limit)
                    self._cache.put(user, entry, entry.bytes)
                    self.misses += 1
                else:
                    self.hits += 1
                by_user[user] = entry
        except Exception as error:
            self._rest(error)
            return None
        return Lookup(by_user, informed=True)

    async def caught_up(self) -> None:
        """Return once this replica knows of all that was stored before."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.look_up((), lambda _: None if done.done() else done.set_result(None))
        await done

    def close(self) -> None:
        """End the thread, once the lookup under way is done."""
        self._thread.shutdown()

    def _ask(self) -> None:
        while self._waiting and not self._asking:
            waiting, self._waiting = self._waiting, []
            users = {user for asked, _ in waiting for user in asked}
            if time.monotonic() < self._rests_until:
                self._finish(waiting, users, None)
                continue
            self._asking = True
            answer = None
            if self.store.local:
                answer = self._try(self._read, users)
                if answer is None or not self._with_seen(answer):
                    self._finish(waiting, users, answer)
                    continue
            self._in_thread(waiting, users, answer)

    def _in_thread(self, waiting: Waiting, users: set[str], answer: _Answer | None) -> None:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._thread, self._try, self._read_all, users, answer)

        def arrived(future: asyncio.Future[_Answer | None]) -> None:
            failed = future.cancelled() or future.exception() is not None
            if failed:  # by what no error handler may catch; the changes that were read are lost
                self._cache.clear()
            self._finish(waiting, users, None if failed else future.result())
            self._ask()

        running.add_done_callback(arrived)

    def _finish(self, waiting: Waiting, users: set[str], answer: _Answer | None) -> None:
        lookup = Lookup({}, informed=False)
        try:
            if answer is not None:
                lookup = Lookup(self._update(users, answer), informed=True)
                if self._items is not None and answer.items is not None:
                    self._items.apply(answer.items)
        except Exception as error:
            self._rest(error)
        self._asking = False
        for _, then in waiting:
            _hand_over(lookup, then)

    def _try(self, call: Callable[..., _Answer], *arguments: Any) -> _Answer | None:
        """The outcome of a call; None, and a rest for the store, where it fails in any way."""
        try:
            return call(*arguments)
        except Exception as error:
            self._rest(error)
            return None

    def _rest(self, error: Exception) -> None:
        fault = None if isinstance(error, MachineError) else error  # of ours: where it happened
        _log.error("rankings go without stored events: %s", error, exc_info=fault)
        self._rests_until = time.monotonic() + REST_S
        self._cache.clear()

    def _read(self, users: set[str]) -> _Answer:
        """What is new, and the events of those users of whom the cache is not right."""
        mark, changes = self.store.changes(self._mark)
        items = self._items.changes() if self._items is not None else None
        answer = _Answer(mark, changes, items, self._length)
        changed = {user for user, _ in changes} if changes else ()
        for user in users:
            cached = self._cache.get(user)
            if changes is None or cached is None or user in changed or not cached.serves(answer.limit):
                answer.events[user] = self.store.recent(user, answer.limit)
            else:
                answer.cached[user] = cached
        return answer

    def _read_all(self, users: set[str], answer: _Answer | None) -> _Answer:
        """As `_read`, if that is not done, and the seen items of users of many events."""
        answer = answer or self._read(users)
        for user in self._with_seen(answer):
            answer.seen[user] = seen = SeenItems()
            for page in self.store.seen(user):
                seen.add(page)
        return answer

    def _with_seen(self, answer: _Answer) -> list[str]:
        """Users of whom there are more events than were read, and whose seen items are not cached."""
        if not answer.events:
            return []
        many = [user for user, events in answer.events.items() if len(events) == answer.limit]
        if answer.changes is None:
            return many
        cached = ((user, self._cache.peek(user)) for user in many)
        return [user for user, entry in cached if entry is None or entry.seen is None]

    def _update(self, users: set[str], answer: _Answer) -> dict[str, UserEvents]:
        """Bring the cache up to the answer; returns the events of `users`."""
        by_user = answer.cached
        self.hits += len(by_user)
        self._mark = answer.mark
        if answer.changes == [] and not answer.events:
            return by_user  # nothing is new, as most often: every batch comes by here
        self.misses += len(answer.events)
        # Taken out first, because what is put into the cache may drop others from it.
        old = {user: self._cache.peek(user) for user in answer.events}
        self._apply_changes(answer.changes)
        for user, events in answer.events.items():
            by_user[user] = entry = _renewed(old[user], events, answer.seen.get(user), answer.limit)
            self._cache.put(user, entry, entry.bytes)
        return by_user

    def _apply_changes(self, changes: list[Change] | None) -> None:
        if changes is None:
            self._cache.clear()
            return
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for user, item in changes:
            changed[user].append(item)
        entries = {user: entry for user in changed if (entry := self._cache.peek(user)) is not None}
        for user, entry in entries.items():
            if entry.seen is not None:
                entry.seen.add(changed[user])
        for user, entry in entries.items():
            self._cache.put(user, entry._replace(current=False), entry.bytes)


def _hand_over(lookup: Lookup, then: Callable[[Lookup], None]) -> None:
    try:
        then(lookup)
    except Exception as error:
        _log.error("a batch that waited for stored events failed", exc_info=error)


def _renewed(
    old: UserEvents | None, events: list[HistoryEvent], seen: SeenItems | None, limit: int
) -> UserEvents:
    """The entry of a user of whom the last `limit` events were read again."""
    if not events:
        return _NO_EVENTS
    if old is None:
        return UserEvents(events, seen, limit)
    if len(events) == limit:  # else these are all, after old ones were removed
        seen = seen or old.seen
    # Cached answers may refer to the old list: an event that is in both is in memory once.
    same = {event: event for event in old.events}
    return UserEvents([same.get(event, event) for event in events], seen, limit)
