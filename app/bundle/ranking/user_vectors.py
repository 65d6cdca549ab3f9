"""User vectors that are kept for a while: what a model that retrieves computes of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from app.bundle.byte_cache import ByteBoundedCache
from app.bundle.format.layout import Array
from app.bundle.request.encode import EncodedRequest

OVERHEAD = 500  # bytes of an entry beside its key and its vector
Key = tuple[int, int, bytes]


class CachedVector(NamedTuple):
    """A vector, and the events and the moment, in microseconds, that it was computed for."""

    vector: Array
    events: bytes
    moment: int


class UserVectorCache(ByteBoundedCache[Key, CachedVector]):
    """User vectors by model, user and last events; safe to use from several threads.

    A vector depends on the user, on the events that the model looks at, and on the moment (its
    hour, the age of events). A user has one, which serves as long as the events are the same, so
    that a fresh event never meets an older vector; of another moment it serves for so many
    seconds. Unknown users differ by their events. `hits` and `misses` count users.

    Args:
        limit: bytes, least recently used vectors go first; 0: nothing is kept.
        seconds: between the moment of a request and that of a vector, at most.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        super().__init__(limit)
        self.tolerance = round(seconds * 1e6)

    def vectors(
        self,
        catalogue_version: int,
        length: int,
        requests: Sequence[EncodedRequest],
        compute: Callable[[Sequence[EncodedRequest]], Array],
    ) -> Array:
        """The vectors (B, Q) of the users of requests; those not cached are computed together.

        Args:
            catalogue_version: of the model and its rows; vectors of one never serve another.
            length: of the history that the model looks at.
            requests: of the users.
            compute: the model.
        """
        events = [_last_events(length, request) for request in requests]
        keys = [
            (catalogue_version, request.user, b"" if request.user else last)
            for request, last in zip(requests, events, strict=True)
        ]
        vectors = [self._cached(*entry) for entry in zip(keys, events, requests, strict=True)]
        missing = [i for i, vector in enumerate(vectors) if vector is None]
        if missing:
            computed = compute([requests[i] for i in missing])
            for i, vector in zip(missing, computed, strict=True):
                vectors[i] = vector
                # A copy, because a row of a batch would hold on to all of it.
                entry = CachedVector(vector.copy(), events[i], requests[i].now)
                self.put(keys[i], entry, len(events[i]) + vector.nbytes + OVERHEAD)
        return np.stack(vectors)  # type: ignore[arg-type]

    def _cached(self, key: Key, events: bytes, request: EncodedRequest) -> Array | None:
        def serves(cached: CachedVector) -> bool:
            return cached.events == events and abs(request.now - cached.moment) < self.tolerance

        cached = self.get(key, serves)
        return None if cached is None else cached.vector


def _last_events(length: int, request: EncodedRequest) -> bytes:
    history, last = request.history, slice(max(0, len(request.history) - length), None)
    return history.item[last].tobytes() + history.event[last].tobytes() + history.time[last].tobytes()
