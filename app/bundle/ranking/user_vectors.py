"""User vectors that are kept for a while: what a model that retrieves makes of a user."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from app.bundle.format.layout import Array
from app.bundle.request.encode import EncodedRequest

OVERHEAD = 500  # bytes of an entry beside its key and its vector
Key = tuple[int, int, bytes]


class Kept(NamedTuple):
    """A vector, the events and the moment, in microseconds, that it was made for."""

    vector: Array
    seen: bytes
    moment: int


class UserVectorCache:
    """User vectors by model, user and last events; safe to use from several threads.

    A vector depends on the user, on the events that the model looks at, and on the moment (its
    hour, the age of events). A user has one, which serves as long as the events are the same, so
    that a fresh event never meets an older vector; of another moment it serves for so many
    seconds. Unknown users are told apart by their events.

    `hits` and `misses` count users; `bytes` is what is kept now.

    Args:
        limit: bytes, least recently used vectors go first; 0: nothing is kept.
        seconds: between the moment of a request and that of a vector, at most.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self.tolerance = limit, round(seconds * 1e6)
        self.hits = self.misses = self.bytes = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self,
        catalogue_version: int,
        length: int,
        asked: Sequence[EncodedRequest],
        make: Callable[[Sequence[EncodedRequest]], Array],
    ) -> Array:
        """The vectors (B, Q) of the users of requests; those that are not known are made together.

        Args:
            edition: of the model and its rows; vectors of one never serve another.
            length: of the history that the model looks at.
            asked: the requests.
            make: the model.
        """
        events = [_seen(length, one) for one in asked]
        keys = [
            (catalogue_version, one.user, b"" if one.user else seen)
            for one, seen in zip(asked, events, strict=True)
        ]
        with self._lock:
            found = [self._find(*three) for three in zip(keys, events, asked, strict=True)]
        places = [place for place, vector in enumerate(found) if vector is None]
        if places:
            made = make([asked[place] for place in places])
            for place, vector in zip(places, made, strict=True):
                found[place] = vector
            with self._lock:
                for place in places:
                    self._keep(keys[place], events[place], found[place], asked[place].now)
        return np.stack(found)  # type: ignore[arg-type]

    def _find(self, key: Key, seen: bytes, asked: EncodedRequest) -> Array | None:
        kept = self._kept.get(key)
        if kept is None or kept.seen != seen or abs(asked.now - kept.moment) >= self.tolerance:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return kept.vector

    def _keep(self, key: Key, seen: bytes, vector: Array | None, now: int) -> None:
        assert vector is not None
        self._forget(key)
        kept = self._kept[key] = Kept(vector.copy(), seen, now)  # a row of a batch would hold on to all of it
        self.bytes += _size(kept)
        while self.bytes > self.limit:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.bytes -= _size(kept)


def _seen(length: int, asked: EncodedRequest) -> bytes:
    history, last = asked.history, slice(max(0, len(asked.history) - length), None)
    return history.item[last].tobytes() + history.event[last].tobytes() + history.time[last].tobytes()


def _size(kept: Kept) -> int:
    return len(kept.seen) + kept.vector.nbytes + OVERHEAD
