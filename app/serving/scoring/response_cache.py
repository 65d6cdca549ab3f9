"""Answers that are given again, as long as nothing that they depend on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from app.bundle.byte_cache import ByteBoundedCache
from app.events import HistoryEvent

OVERHEAD = 400  # bytes of an entry beside its texts
EVENT = 250  # and of each stored event that it refers to


class CachedResponse(NamedTuple):
    """An answer as JSON, and what it depends on beside the request.

    `cold`: as the answer's `cold_start`. `digest`: of the version. `catalogue_version`: of its
    items. `stored`: the user's stored events. `until`: when it is too old, on the cache's clock.
    """

    content: bytes
    cold: bool
    digest: str
    catalogue_version: int
    stored: list[HistoryEvent]
    until: float


class ResponseCache:
    """Answers by their request, encoded; used on one event loop.

    A request says all that an answer depends on but the version, its catalogue, the user's
    stored events and the moment. All but the last are compared, so that a fresh event, a new
    version or a changed item never gets an older answer; for the moment (models may see the
    hour, or the age of events) an answer lives for so many seconds. An older one stays until
    its memory is needed, for requests that have no time for more: `stale`. `entries` counts bytes and
    look-ups.

    Args:
        limit: bytes, least recently used answers go first; 0: nothing is cached.
        seconds: that an answer is given for.
        clock: monotonic, in seconds.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self.entries: ByteBoundedCache[bytes, CachedResponse] = ByteBoundedCache(limit)

    def get(
        self, request: bytes, digest: str, catalogue_version: int, stored: list[HistoryEvent]
    ) -> CachedResponse | None:
        """The answer to a request, if it would be the same now.

        Args:
            request: encoded, defaults left out, so that equal ones are equal bytes.
            digest: of the version that the user is assigned to.
            catalogue_version: of its items, taken before the request is read.
            stored: the user's events, the very list that `UserEventCache.of` gives: it makes a new
                one whenever there are new events.
        """

        def usable(response: CachedResponse) -> bool:
            return (
                response.stored is stored
                and response.digest == digest
                and response.catalogue_version == catalogue_version
                and self._clock() < response.until
            )

        return self.entries.get(request, usable)

    def stale(self, request: bytes, digest: str) -> bytes | None:
        """The last answer of this version to a request, however old it is."""
        response = self.entries.peek(request)
        return response.content if response is not None and response.digest == digest else None

    def put(
        self,
        request: bytes,
        digest: str,
        catalogue_version: int,
        stored: list[HistoryEvent],
        content: bytes,
        *,
        cold: bool = False,
    ) -> None:
        """Cache an answer instead of an older one; the arguments are those of `get`."""
        until = self._clock() + self._seconds
        response = CachedResponse(content, cold, digest, catalogue_version, stored, until)
        size = len(request) + len(content) + OVERHEAD + EVENT * len(stored)
        self.entries.put(request, response, size)
