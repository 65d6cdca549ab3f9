"""Batching by event-loop tick: what has arrived by the end of a tick is scored together.

An idle replica scores a lone request at once, a busy one all that queued while it scored: no
waiting window, which at one connection would cost more than the model.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")
C = TypeVar("C")
R = TypeVar("R")
_log = logging.getLogger("ray.serve")


class MicroBatcher(Generic[T, C, R]):
    """Collects entries and works on them in batches, first come, first served.

    Every entry is part of one batch, and each batch ends: with `finish` or, where anything but
    the work itself raised, with `fail`. Then the next batch runs, whatever became of this one.
    `queue` holds the entries that wait; `busy` says whether a batch is due or under way.

    Args:
        gather: asks for what the entries of a batch need, and hands it to the function given, at
            once or later; on the loop.
        begin: turns the entries and what was gathered into work, or None where there is none; on
            the loop.
        work: the work itself; on the loop, or in a thread of `executor`.
        finish: given the work, and the exception that `work` raised or None; on the loop.
        fail: given the entries of a batch that could not be begun, worked on or finished; some may
            have been answered before. On the loop.
        cost: of an entry.
        limit: cost at which a batch is full; one entry fits always.
        executor: where work that takes long runs, one batch at a time; None: on the loop.
    """

    def __init__(
        self,
        gather: Callable[[list[T], Callable[[C], None]], None],
        begin: Callable[[list[T], C], R | None],
        work: Callable[[R], None],
        finish: Callable[[R, Exception | None], None],
        fail: Callable[[list[T], Exception], None],
        *,
        cost: Callable[[T], int],
        limit: int,
        executor: Executor | None = None,
    ) -> None:
        self._gather, self._begin = gather, begin
        self._work, self._finish, self._fail = work, finish, fail
        self._cost, self._limit, self._executor = cost, limit, executor
        self.queue: deque[T] = deque()
        self.busy = False
        self._batch: list[T] | None = None  # entries of the batch that is under way

    def add(self, entry: T) -> None:
        """Have an entry worked on at the end of this tick or, where that batch is full, soon after."""
        self.queue.append(entry)
        if not self.busy:
            self.busy = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        entries: list[T] = []
        self._batch = entries
        try:
            self._take(entries)
            self._gather(entries, partial(self._start, entries))
        except Exception as error:
            self._give_up(entries, error)

    def _start(self, entries: list[T], context: C) -> None:
        if entries is not self._batch:  # it was given up
            return
        try:
            work = self._begin(entries, context)
            if work is None:
                self._next()
            elif self._executor is None:
                self._end(entries, work, _outcome(self._work, work))
            else:
                loop = asyncio.get_running_loop()
                running = loop.run_in_executor(self._executor, _outcome, self._work, work)
                running.add_done_callback(lambda future: self._end(entries, work, _result(future)))
        except Exception as error:
            self._give_up(entries, error)

    def _take(self, entries: list[T]) -> None:
        """Move what fits into a batch from the queue to `entries`."""
        queue, cost = self.queue, self._cost
        entries.append(queue.popleft())
        room = self._limit - cost(entries[0])
        while queue and (room := room - cost(queue[0])) >= 0:
            entries.append(queue.popleft())

    def _end(self, entries: list[T], work: R, error: Exception | None) -> None:
        try:
            self._finish(work, error)
        except Exception as fault:
            self._give_up(entries, fault)
        else:
            self._next()

    def _give_up(self, entries: list[T], error: Exception) -> None:
        """Fail a batch that is under way, and go on with the next one."""
        if entries is not self._batch:
            return
        _log.error("a batch failed", exc_info=error)
        try:
            self._fail(entries, error)
        except Exception as fault:
            _log.error("a batch that failed could not be answered", exc_info=fault)
        self._next()

    def _next(self) -> None:
        self._batch = None
        if self.queue:  # what comes in meanwhile is read before the next batch
            asyncio.get_running_loop().call_soon(self._tick)
        else:
            self.busy = False


def _outcome(work: Callable[[R], None], content: R) -> Exception | None:
    try:
        work(content)
    except Exception as error:
        return error
    return None


def _result(future: Future[Exception | None]) -> Exception | None:
    """The outcome of work in a thread; what else ended it is an error of this batch alone."""
    try:
        return future.result()
    except BaseException as error:  # a library that exits, or an executor that was shut down
        return RuntimeError(f"the work was ended by {type(error).__name__}")
