"""Batching by event-loop tick: what has arrived by the end of a tick is scored together.

An idle replica scores a lone request at once, a busy one all that queued while it scored: no
waiting window, which at one connection would cost more than the model.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class MicroBatcher(Generic[T, R]):
    """Collects entries and works on them in batches, first come, first served.

    Args:
        begin: turns the entries of a batch into work, or None where there is none; on the loop.
        work: the work itself; on the loop, or in a thread of `executor`.
        finish: given the outcome, or the exception that `work` raised; on the loop.
        cost: of an entry.
        limit: cost at which a batch is full; one entry fits always.
        executor: where work that takes long runs, one batch at a time.
    """

    def __init__(
        self,
        begin: Callable[[list[T]], R | None],
        work: Callable[[R], None],
        finish: Callable[[R, Exception | None], None],
        *,
        cost: Callable[[T], int],
        limit: int,
        executor: Executor | None = None,
    ) -> None:
        self.begin, self.work, self.finish = begin, work, finish
        self.cost, self.limit, self.executor = cost, limit, executor
        self.queue: deque[T] = deque()
        self._busy = False

    def add(self, entry: T) -> None:
        """Have an entry worked on at the end of this tick or, where that batch is full, soon after."""
        self.queue.append(entry)
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        batch, room = [self.queue.popleft()], self.limit
        room -= self.cost(batch[0])
        while self.queue and (room := room - self.cost(self.queue[0])) >= 0:
            batch.append(self.queue.popleft())
        work = self.begin(batch)
        if work is None:
            self._next()
        elif self.executor is None:
            self._done(work, _outcome(self.work, work))
        else:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self.executor, _outcome, self.work, work)
            running.add_done_callback(lambda future: self._done(work, future.result()))

    def _done(self, work: R, error: Exception | None) -> None:
        self.finish(work, error)
        self._next()

    def _next(self) -> None:
        if self.queue:  # what comes in meanwhile is read before the next batch
            asyncio.get_running_loop().call_soon(self._tick)
        else:
            self._busy = False


def _outcome(work: Callable[[R], None], content: R) -> Exception | None:
    try:
        work(content)
    except Exception as error:
        return error
    return None
