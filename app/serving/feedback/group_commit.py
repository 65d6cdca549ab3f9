"""Group commit: events of requests that arrive together reach the disk together.

A commit that waits for the disk takes milliseconds, whether it holds one event or a thousand.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from app.errors import MachineError
from app.events import Event
from app.stores.base import Store

Done = Callable[[Exception | None], object]
GROUP = 10_000  # events of a commit


class Full(Exception):
    """More waits to be written than may."""


class GroupCommitWriter:
    """Writes events in a thread of its own, in the order given.

    Args:
        store: what is written to.
        limit: requests that may wait.
    """

    def __init__(self, store: Store, limit: int) -> None:
        self.store = store
        self._waiting: queue.Queue[tuple[Sequence[Event], Done] | None] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def put(self, events: Sequence[Event], done: Done) -> None:
        """Have events written; `done` is called in the writer's thread, with the error if it failed.

        Raises:
            Full: too many wait.
        """
        try:
            self._waiting.put_nowait((events, done))
        except queue.Full:
            raise Full from None

    def close(self) -> None:
        """Write what waits, then end."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        ends = False
        while not ends:
            group = [self._waiting.get()]
            while sum(len(one[0]) for one in group if one) < GROUP:
                try:
                    group.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            ends = None in group
            self._write([one for one in group if one is not None])

    def _write(self, group: list[tuple[Sequence[Event], Done]]) -> None:
        if not group:
            return
        error: Exception | None = None
        try:
            self.store.append([event for events, _ in group for event in events])
        except MachineError as failed:
            error = failed
        for _, done in group:
            done(error)
