"""Bounds the feedback log: `serve.keep_days` after they happened, events are removed.

Every replica looks once in a while whether it is due; one of them gets to do it. What is removed
goes in small portions, each a short transaction, with pauses for the feedback that comes meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time

from app.errors import MachineError
from app.stores.base import Store

DAY_S = 86_400.0
EVERY_S = 3600.0  # between two removals
LOOK_S = 60.0  # after which a replica looks whether one is due
PAUSE_S = 0.05  # between two portions
_log = logging.getLogger("ray.serve")


class Retention:
    """Removes old events of a store in a thread of its own.

    Args:
        store: the feedback log.
        keep_days: age of the events that are removed, by their time; 0: none is, and no thread runs.
    """

    def __init__(self, store: Store, keep_days: float) -> None:
        self.store = store
        self._closed = threading.Event()
        self._pause = self._closed.wait
        self._thread: threading.Thread | None = None
        if keep_days:
            self._thread = threading.Thread(
                target=self._run, args=(keep_days,), name="retention", daemon=True
            )
            self._thread.start()

    def remove(self, keep_days: float) -> int:
        """Remove events older than so many days, if that is due and no other replica does; how many.

        Raises:
            MachineError: the store cannot be used.
        """
        if not self.store.claim_removal(EVERY_S):
            return 0
        count = 0
        for removed in self.store.remove_before(round((time.time() - keep_days * DAY_S) * 1e6)):
            count += removed
            if self._pause(PAUSE_S):
                break
        if count:
            _log.info("%d events older than %g days were removed", count, keep_days)
        return count

    def close(self) -> None:
        """End the thread after the portion under way."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, keep_days: float) -> None:
        while True:
            try:
                self.remove(keep_days)
            except Exception as error:  # it is tried again
                fault = None if isinstance(error, MachineError) else error
                _log.error("old events could not be removed: %s", error, exc_info=fault)
            if self._closed.wait(LOOK_S):
                return
