"""A least-recently-used cache bounded in bytes: user vectors, responses, stored events, filters."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteBoundedCache(Generic[K, V]):
    """Values by key, the least recently used ones evicted first. Safe to use from several threads.

    `bytes` is the size of all values now, at most `limit`; `hits` and `misses` count calls of `get`.

    Args:
        limit: bytes; 0: nothing is cached.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K, usable: Callable[[V], bool] | None = None) -> V | None:
        """The value of a key, or None.

        Args:
            key: as given to `put`.
            usable: says whether a value still serves; one that does not counts as a miss and stays.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or (usable is not None and not usable(entry[0])):
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def peek(self, key: K) -> V | None:
        """The value of a key, or None; neither counted nor taken for a use."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Cache a value instead of the key's older one, unless it alone exceeds the limit.

        Args:
            key: of the value.
            value: not None.
            size: bytes that key, value and their entry take.
        """
        with self._lock:
            self._remove(key)
            if size > self.limit:
                return
            self._entries[key] = value, size
            self.bytes += size
            while self.bytes > self.limit:
                self._remove(next(iter(self._entries)))

    def forget(self, key: K) -> None:
        """Drop the value of a key, if there is one."""
        with self._lock:
            self._remove(key)

    def clear(self) -> None:
        """Drop the values of all keys."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def _remove(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]
