"""Group commit: events of requests that arrive together reach the disk together.

A commit that waits for the disk takes milliseconds, whether it holds one event or a thousand.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.errors import MachineError
from app.events import Event
from app.stores.base import Store

Done = Callable[[Exception | None], object]
GROUP = 10_000  # events of a commit
CLOSE_S = 10.0  # that `close` waits for the disk
_log = logging.getLogger("ray.serve")


class Full(Exception):
    """More waits to be written than may."""


class _Call(NamedTuple):
    """The events of a request, and the function that is called with their outcome."""

    events: Sequence[Event]
    done: Done


class GroupCommitWriter:
    """Writes events in a thread of its own, in the order given.

    Every call is answered: where a commit fails, those of its calls that cannot be stored alone
    fail with the error, and the writer goes on. Should its thread end all the same, the calls that
    wait are answered with an error, and further ones refused.

    Args:
        store: the events are appended to it.
        limit: requests that may wait.
    """

    def __init__(self, store: Store, limit: int) -> None:
        self.store, self._limit = store, limit
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._refusal = ""  # why no more calls are taken
        self._lock = threading.Lock()  # a call is either refused or in the queue while the thread reads it
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def put(self, events: Sequence[Event], done: Done) -> None:
        """Have events written; `done` is called in the writer's thread, with the error if it failed.

        Raises:
            Full: too many wait.
            MachineError: the writer was closed, or its thread ended.
        """
        with self._lock:
            if self._refusal:
                raise _refused(self._refusal)
            if self._queue.qsize() >= self._limit:
                raise Full
            self._queue.put(_Call(events, done))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Take no more, write what waits, then end; where the disk hangs, return after a while."""
        with self._lock:
            self._refusal = self._refusal or "is closed"
            self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.error("feedback is still being written after %g s; its calls are not answered", timeout_s)

    def _run(self) -> None:
        group: deque[_Call] = deque()
        try:
            while self._take(group):
                self._write(group)
            self._write(group)
        finally:
            with self._lock:
                self._refusal = self._refusal or "has ended by a fault, see the log"
                while not self._queue.empty():
                    if (call := self._queue.get()) is not None:
                        group.append(call)
            _answer(group, _refused(self._refusal))  # none where all went well

    def _take(self, group: deque[_Call]) -> bool:
        """Move what waits into the group, up to the size of a commit; False at the end."""
        call = self._queue.get()
        size = 0
        while call is not None:
            group.append(call)
            size += len(call.events)
            if size >= GROUP or self._queue.empty():
                return True
            call = self._queue.get()
        return False

    def _write(self, group: deque[_Call]) -> None:
        """Store and answer the calls of a group, which is empty afterwards."""
        error: Exception | None = None
        try:
            if group:
                self.store.append([event for call in group for event in call.events])
        except Exception as failed:
            error = failed
            if not isinstance(failed, MachineError):
                _log.error("events could not be stored", exc_info=failed)
        if error is None or isinstance(error, MachineError) or len(group) == 1:
            _answer(group, error)
            return
        while group:  # some call's events are no good, so each call is tried by itself
            alone = deque([group[0]])
            self._write(alone)
            group.popleft()


def _answer(group: deque[_Call], error: Exception | None) -> None:
    while group:
        call = group.popleft()
        try:
            call.done(error)
        except Exception as fault:  # the loop of the request is gone
            _log.error("the outcome of feedback could not be delivered", exc_info=fault)


def _refused(why: str) -> MachineError:
    return MachineError(f"the writer of feedback {why}", remedy="start the service again")
