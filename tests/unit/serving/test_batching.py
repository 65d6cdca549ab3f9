"""Batching by tick."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from app.serving.scoring.batching import MicroBatcher


class Work:
    """Doubles numbers; knows the batches it was given and the outcomes. Fails where `faults` say so."""

    def __init__(
        self, limit: int = 10, executor: Executor | None = None, faults: dict[str, int] | None = None
    ) -> None:
        self.batches: list[list[int]] = []
        self.done: list[int] = []
        self.errors: list[Exception] = []
        self.failed: list[int] = []
        self.faults = faults or {}  # stage: the number that it cannot stand
        self.later = False  # whether what a batch needs comes in a later tick
        stages = self.gather, self.begin, self.work, self.finish, self.fail
        self.batcher: MicroBatcher[int, int, list[int]] = MicroBatcher(
            *stages, cost=self.cost, limit=limit, executor=executor
        )

    def check(self, stage: str, entries: list[int]) -> None:
        if self.faults.get(stage) in entries:
            raise ZeroDivisionError(stage)

    def cost(self, entry: int) -> int:
        self.check("cost", [entry])
        return abs(entry)

    def gather(self, entries: list[int], then: Callable[[int], None]) -> None:
        if self.later:
            asyncio.get_running_loop().call_soon(then, len(entries))
        self.check("gather", entries)
        if not self.later:
            then(len(entries))

    def begin(self, entries: list[int], count: int) -> list[int] | None:
        assert count == len(entries)
        self.batches.append(list(entries))
        self.check("begin", entries)
        kept = [entry for entry in entries if entry]  # 0 has nothing to be done
        return kept or None

    def work(self, entries: list[int]) -> None:
        self.check("work", entries)
        entries[:] = [2 * entry for entry in entries]

    def finish(self, entries: list[int], error: Exception | None) -> None:
        self.check("finish", [entry // 2 for entry in entries])
        if error:
            self.errors.append(error)
        else:
            self.done += entries

    def fail(self, entries: list[int], error: Exception) -> None:
        self.failed += entries
        self.check("fail", entries)


def ran(work: Work, *numbers: int) -> Work:
    async def run() -> None:
        for number in numbers:
            work.batcher.add(number)
        while work.batcher.queue or work.batcher.busy:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 10))
    return work


def test_what_arrives_in_one_tick_is_one_batch() -> None:
    work = ran(Work(), 1, 2, 3)
    assert work.batches == [[1, 2, 3]]
    assert work.done == [2, 4, 6]


def test_a_batch_is_full_at_its_limit_and_one_entry_fits_always() -> None:
    assert ran(Work(limit=5), 2, 3, 1, 99, 4, 1).batches == [[2, 3], [1], [99], [4, 1]]


def test_an_error_spoils_its_batch_and_no_other() -> None:
    work = ran(Work(limit=2, faults={"work": -1}), -1, 1, 2)
    assert [type(error) for error in work.errors] == [ZeroDivisionError]
    assert work.done == [4]


@pytest.mark.parametrize("stage", ["cost", "gather", "begin", "finish"])
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("later", [False, True])
def test_a_fault_before_or_after_the_work_fails_its_batch_and_the_next_one_runs(
    stage: str, threads: int, later: bool
) -> None:
    executor = ThreadPoolExecutor(1) if threads else None
    work = Work(limit=3, executor=executor, faults={stage: 1})
    work.later = later
    ran(work, 1, 2, 3)
    ran(work, 2)
    assert work.failed == ([1] if stage == "cost" else [1, 2])
    assert work.done == ([4, 6, 4] if stage == "cost" else [6, 4])


def test_one_who_cannot_even_be_failed_does_not_stop_the_next_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = ran(Work(limit=1, faults={"begin": 1, "fail": 1}), 1, 2)
    assert (work.failed, work.done) == ([1], [4])
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("fault", [SystemExit, asyncio.CancelledError])
def test_whatever_ends_the_work_in_a_thread_its_batch_is_told(fault: type[BaseException]) -> None:
    class Ending(Work):
        def work(self, entries: list[int]) -> None:
            if 1 in entries:
                raise fault
            super().work(entries)

    with ThreadPoolExecutor(1) as executor:
        work = ran(Ending(limit=1, executor=executor), 1, 2)
    assert len(work.errors) == 1 and fault.__name__ in str(work.errors[0])
    assert work.done == [4]


def test_an_executor_that_takes_no_more_fails_the_batch() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    assert ran(Work(limit=1, executor=executor), 1, 2).failed == [1, 2]


def test_a_batch_without_work_does_not_stop_the_next() -> None:
    work = ran(Work(limit=1), 0, 0, 1)
    assert work.done == [2]


def test_a_thread_works_on_one_batch_at_a_time_while_the_loop_goes_on() -> None:
    release, inside, most = threading.Event(), [0], [0]

    class Slow(Work):
        def work(self, entries: list[int]) -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            assert release.wait(10)
            inside[0] -= 1
            super().work(entries)

    async def run() -> Slow:
        with ThreadPoolExecutor(4) as threads:
            work = Slow(executor=threads)
            work.batcher.add(1)
            await asyncio.sleep(0.01)
            work.batcher.add(2)  # the loop is free, so this is heard of
            work.batcher.add(3)
            release.set()
            while len(work.done) < 3:
                await asyncio.sleep(0)
        return work

    work = asyncio.run(asyncio.wait_for(run(), 10))
    assert (work.batches, work.done, most) == ([[1], [2, 3]], [2, 4, 6], [1])
