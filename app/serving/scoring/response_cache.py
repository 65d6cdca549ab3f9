"""Answers that are given again, as long as nothing that they depend on has changed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from app.events import HistoryEvent

OVERHEAD = 400  # bytes of an entry beside its texts
EVENT = 250  # and of each stored event that it holds on to


class Kept(NamedTuple):
    """An answer as JSON, who gave it, and the user's stored events that it saw.

    `cold`: as the answer's `cold_start`. `digest`: of the version. `edition`: of its catalogue.
    """

    content: bytes
    cold: bool
    digest: str
    catalogue_version: int
    stored: list[HistoryEvent]
    until: float
    size: int


class ResponseCache:
    """Answers by their request, encoded; used on one event loop.

    A request says all that an answer depends on but the version, its catalogue, the user's
    stored events and the moment. All but the last are compared, so that a fresh event, a new
    version or a changed item never meets an older answer; for the moment (models may see the
    hour, or the age of events) an answer lives for so many seconds. An older one is kept until
    its room is needed, for requests that have no time for more: `stale`.

    `hits` and `misses` count calls of `find`; `bytes` is what is kept now.

    Args:
        limit: bytes, least recently used answers go first; 0: nothing is kept.
        seconds: that an answer is given for.
        clock: monotonic, in seconds.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.seconds, self._clock = limit, seconds, clock
        self.hits = self.misses = self.bytes = 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def find(
        self, request: bytes, digest: str, catalogue_version: int, stored: list[HistoryEvent]
    ) -> Kept | None:
        """The answer to a request, if it would be the same now.

        Args:
            request: encoded, defaults left out, so that equal ones are equal bytes.
            digest: of the version that the user meets.
            edition: of its catalogue, taken before the request is read.
            stored: the user's events, the very list that `Recent.of` gives: it makes a new one
                whenever there are new events.
        """
        kept = self._kept.get(request)
        if (
            kept
            and kept.stored is stored
            and (kept.digest, kept.catalogue_version) == (digest, catalogue_version)
            and self._clock() < kept.until
        ):
            self.hits += 1
            self._kept.move_to_end(request)
            return kept
        self.misses += 1
        return None

    def stale(self, request: bytes, digest: str) -> bytes | None:
        """The last answer of this version to a request, however old it is."""
        kept = self._kept.get(request)
        return kept.content if kept and kept.digest == digest else None

    def keep(
        self,
        request: bytes,
        digest: str,
        catalogue_version: int,
        stored: list[HistoryEvent],
        content: bytes,
        *,
        cold: bool = False,
    ) -> None:
        """Keep an answer, in the place of an older one."""
        self._forget(request)
        size = len(request) + len(content) + OVERHEAD + EVENT * len(stored)
        if size > self.limit:
            return
        self._kept[request] = Kept(
            content, cold, digest, catalogue_version, stored, self._clock() + self.seconds, size
        )
        self.bytes += size
        while self.bytes > self.limit:
            self._forget(next(iter(self._kept)))

    def _forget(self, request: bytes) -> None:
        kept = self._kept.pop(request, None)
        if kept is not None:
            self.bytes -= kept.size
