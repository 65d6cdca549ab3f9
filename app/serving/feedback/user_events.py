"""The stored events of users, kept at hand without ever being stale.

Reading a user's events from the store costs as much as parsing the request. Before each batch
the store is asked once which users have new events, by whichever replica; all others' are
still right. A store that does not answer is left alone for a while, and rankings go without.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from app.errors import MachineError
from app.events import HistoryEvent
from app.serving.feedback.new_items import StoredItems
from app.stores.base import Store

_log = logging.getLogger("ray.serve")
LENGTH = 200  # events of a user handed to the ranker, which keeps as many as its history is long
KEPT = 200_000  # events in memory, about 40 MB; a user without any counts as one
REST_S = 1.0  # for a store that failed


class UserEventCache:
    """A cache of `Store.recent`; used from one thread.

    `hits` and `misses` count lookups.

    Args:
        store: of the events.
        kept: events in memory.
        items: told of new items whenever the store is asked; None: nobody is.
    """

    def __init__(self, store: Store, kept: int = KEPT, items: StoredItems | None = None) -> None:
        self.store, self.kept, self._items = store, kept, items
        self.hits = self.misses = 0
        self._rests_until = 0.0
        self._mark, _ = store.changes(None)
        self._events: OrderedDict[str, list[HistoryEvent]] = OrderedDict()
        self._outdated: set[str] = set()  # users of these who have new events since
        self._size = 0

    def refresh(self) -> bool:
        """Forget users who have new events; `of` is right as of this call.

        Returns:
            Whether the store answers; where not, `of` knows of no events.
        """
        if time.monotonic() < self._rests_until:
            return False
        try:
            self._mark, changes = self.store.changes(self._mark)
            if self._items is not None:
                self._items.refresh()
        except MachineError as error:
            self._rest(error)
            return False
        if changes is None:  # too many to tell
            self._outdated.update(self._events)
        else:
            self._outdated.update(user for user, _ in changes if user in self._events)
        return True

    def of(self, user: str) -> list[HistoryEvent]:
        """The user's last events by time, the latest last."""
        known = self._events.get(user)
        if known is not None and user not in self._outdated:
            self.hits += 1
            self._events.move_to_end(user)
            return known
        if time.monotonic() < self._rests_until:
            return []
        self.misses += 1
        try:
            found = self.store.recent(user, LENGTH)
        except MachineError as error:
            self._rest(error)
            return []
        if known is not None:  # answers may hold on to the old list: what is in both is there once
            self._forget(user)
            same = {event: event for event in known}
            found = [same.get(event, event) for event in found]
        self._events[user] = found
        self._size += len(found) + 1
        while self._size > self.kept:
            self._forget(next(iter(self._events)))
        return found

    @property
    def bytes(self) -> int:
        """That the events in memory take, about."""
        return 200 * self._size

    @property
    def answers(self) -> bool:
        """Whether the store answered when it was last asked."""
        return time.monotonic() >= self._rests_until

    def _rest(self, error: MachineError) -> None:
        _log.error("rankings go without stored events: %s", error)
        self._rests_until = time.monotonic() + REST_S
        self._events.clear()
        self._outdated.clear()
        self._size = 0

    def _forget(self, user: str) -> None:
        self._size -= len(self._events.pop(user)) + 1
        self._outdated.discard(user)
