"""Batching by tick, group commit, and the cache of stored events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import MachineError
from app.events import Event
from app.serving.feedback.group_commit import Full, GroupCommitWriter
from app.serving.feedback.user_events import REST_S, UserEventCache
from app.serving.scoring.batching import MicroBatcher
from app.stores.sqlite_store import SqliteStore


class Work:
    """Doubles numbers; knows the batches it was given and the outcomes."""

    def __init__(self, limit: int = 10, executor: ThreadPoolExecutor | None = None) -> None:
        self.batches: list[list[int]] = []
        self.done: list[int] = []
        self.errors: list[Exception] = []
        self.ticks = MicroBatcher(
            self.begin, self.work, self.finish, cost=abs, limit=limit, executor=executor
        )

    def begin(self, entries: list[int]) -> list[int] | None:
        self.batches.append(entries)
        kept = [entry for entry in entries if entry]  # 0 has nothing to be done
        return kept or None

    def work(self, entries: list[int]) -> None:
        if -1 in entries:
            raise ZeroDivisionError
        entries[:] = [2 * entry for entry in entries]

    def finish(self, entries: list[int], error: Exception | None) -> None:
        if error:
            self.errors.append(error)
        else:
            self.done += entries


def ran(work: Work, *numbers: int) -> Work:
    async def run() -> None:
        for number in numbers:
            work.ticks.add(number)
        while work.ticks.queue or len(work.done) + len(work.errors) < 1:
            await asyncio.sleep(0)
        for _ in range(5):
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
    work = ran(Work(limit=2), -1, 1, 2)
    assert [type(error) for error in work.errors] == [ZeroDivisionError]
    assert work.done == [4]


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
            work.ticks.add(1)
            await asyncio.sleep(0.01)
            work.ticks.add(2)  # the loop is free, so this is heard of
            work.ticks.add(3)
            release.set()
            while len(work.done) < 3:
                await asyncio.sleep(0)
        return work

    work = asyncio.run(asyncio.wait_for(run(), 10))
    assert (work.batches, work.done, most) == ([[1], [2, 3]], [2, 4, 6], [1])


class Disk:
    """A store that counts commits, and may be held up or broken."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.open, self.broken = threading.Event(), False
        self.begun = threading.Event()

    def append(self, events: Sequence[Event]) -> None:
        self.begun.set()
        assert self.open.wait(10)
        if self.broken:
            raise MachineError("disk is full", where="store", remedy="free some space")
        self.commits.append(len(events))


def test_events_that_wait_together_are_committed_together() -> None:
    disk, outcomes = Disk(), []
    writer = GroupCommitWriter(disk, limit=100)  # type: ignore[arg-type]
    writer.put([Event("u", "first")], outcomes.append)
    assert disk.begun.wait(10)
    for _ in range(20):
        writer.put([Event("u", "a"), Event("u", "b")], outcomes.append)
    disk.open.set()
    writer.close()
    assert disk.commits == [1, 40]
    assert outcomes == [None] * 21


def test_a_commit_that_fails_is_told_to_all_of_it_and_the_writer_goes_on() -> None:
    disk, outcomes = Disk(), []
    disk.broken = True
    disk.open.set()
    writer, told = GroupCommitWriter(disk, limit=10), threading.Event()  # type: ignore[arg-type]
    writer.put([Event("u", "a")], lambda error: (outcomes.append(error), told.set()))
    assert told.wait(10)
    disk.broken = False
    writer.put([Event("u", "b")], outcomes.append)
    writer.close()
    assert isinstance(outcomes[0], MachineError)
    assert (outcomes[1], disk.commits) == (None, [1])


def test_the_queue_of_the_writer_is_bounded() -> None:
    disk = Disk()
    writer = GroupCommitWriter(disk, limit=2)  # type: ignore[arg-type]
    writer.put([Event("u", "first")], lambda _: None)
    assert disk.begun.wait(10)
    for _ in range(2):
        writer.put([Event("u", "a")], lambda _: None)
    with pytest.raises(Full):
        writer.put([Event("u", "one too many")], lambda _: None)
    disk.open.set()
    writer.close()


def items(recent: UserEventCache, user: str) -> list[str]:
    recent.refresh()
    return [event.item for event in recent.of(user)]


def test_a_user_is_read_once_until_someone_stores_an_event_of_theirs(tmp_path: Path) -> None:
    ours, theirs = SqliteStore(tmp_path), SqliteStore(tmp_path)
    recent = UserEventCache(ours)
    assert items(recent, "u") == items(recent, "u") == []
    assert (recent.hits, recent.misses) == (1, 1)
    theirs.append([Event("v", "x", timestamp=1)])  # another replica, another user
    assert items(recent, "u") == []
    assert recent.misses == 1
    for store, item in ((theirs, "a"), (ours, "b")):
        store.append([Event("u", item, timestamp=2)])
        assert items(recent, "u")[-1] == item
    assert items(recent, "v") == ["x"]


def test_the_cache_keeps_to_its_limit_and_drops_who_was_not_asked_for_longest(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.append([Event(user, str(n), timestamp=n) for user in "abc" for n in range(4)])
    recent = UserEventCache(store, kept=10)  # two users of four events
    for user in "abac":
        assert items(recent, user) == ["0", "1", "2", "3"]
    assert (recent.hits, recent.misses) == (1, 3)
    assert items(recent, "a")
    assert recent.hits == 2
    assert items(recent, "b")
    assert recent.misses == 4


def test_an_old_list_and_a_new_one_share_their_events(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    recent = UserEventCache(store)
    store.append([Event("u", item, timestamp=1) for item in "ab"])
    recent.refresh()
    old = recent.of("u")
    store.append([Event("u", "c", timestamp=2)])
    recent.refresh()
    new = recent.of("u")
    assert [event.item for event in old] == ["a", "b"]  # whoever holds it sees it unchanged
    assert [event.item for event in new] == ["a", "b", "c"]
    assert all(one is other for one, other in zip(old, new, strict=False))


@settings(deadline=None, max_examples=25)  # each commit waits for the disk
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("uvw"), st.integers(0, 5)), max_size=12))
def test_the_cache_never_differs_from_the_store(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    writers, store = [SqliteStore(folder), SqliteStore(folder)], SqliteStore(folder)
    recent = UserEventCache(store, kept=6)
    for first, user, time in steps:
        writers[first].append([Event(user, f"i{time}", timestamp=time)])
        recent.refresh()
        for one in "uvw":
            assert recent.of(one) == store.recent(one, 200)
    for opened in (*writers, store):
        opened.close()


class Faltering(SqliteStore):
    """A store that can be made to fail; counts how often it was asked meanwhile."""

    broken, asked = False, 0

    def changes(self, mark: int | None) -> tuple[int, list[str]]:
        if self.broken:
            self.asked += 1
            raise MachineError("gone", where="store", remedy="bring it back")
        return super().changes(mark)


def test_a_store_that_fails_is_left_alone_for_a_while_and_then_right_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("app.serving.feedback.user_events.time.monotonic", lambda: clock[0])
    store = Faltering(tmp_path)
    store.append([Event("u", "a", timestamp=1)])
    recent = UserEventCache(store)
    assert items(recent, "u") == ["a"]
    store.broken = True
    for _ in range(5):
        assert items(recent, "u") == []
        assert not recent.answers
    assert store.asked == 1
    SqliteStore(tmp_path).append([Event("u", "b", timestamp=2)])
    store.broken = False
    clock[0] += REST_S
    assert recent.refresh()
    assert items(recent, "u") == ["a", "b"]
