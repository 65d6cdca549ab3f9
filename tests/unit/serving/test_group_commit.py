"""Group commit: feedback that waits together is stored together, and every call hears what became of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from app.errors import MachineError
from app.events import Event
from app.serving.feedback.group_commit import Full, GroupCommitWriter

LONG_S = 10.0  # waits end by an event; so long only where something is wrong


class Disk:
    """A store that counts commits, and may be held up or broken."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.open, self.begun = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def append(self, events: Sequence[Event]) -> None:
        self.begun.set()
        assert self.open.wait(LONG_S)
        if self.error is not None:
            raise self.error
        if any(event.item == "poison" for event in events):
            raise OverflowError("no database takes this")
        self.commits.append(len(events))


class Outcome:
    """The outcome of a call: None for success, or the error."""

    def __init__(self) -> None:
        self.come, self.error = threading.Event(), None

    def __call__(self, error: Exception | None) -> None:
        self.error = error
        self.come.set()

    def wait(self) -> Exception | None:
        assert self.come.wait(LONG_S), "the call was never answered"
        return self.error


def writer_of(disk: Disk, limit: int = 100) -> GroupCommitWriter:
    return GroupCommitWriter(disk, limit)  # type: ignore[arg-type]


def put(writer: GroupCommitWriter, *items: str) -> Outcome:
    outcome = Outcome()
    writer.put([Event("u", item) for item in items], outcome)
    return outcome


def test_events_that_wait_together_are_committed_together() -> None:
    disk = Disk()
    writer = writer_of(disk)
    outcomes = [put(writer, "first")]
    assert disk.begun.wait(LONG_S)
    outcomes += [put(writer, "a", "b") for _ in range(20)]
    disk.open.set()
    writer.close()
    assert disk.commits == [1, 40]
    assert [outcome.wait() for outcome in outcomes] == [None] * 21


@pytest.mark.parametrize("error", [MachineError("disk is full"), OverflowError("int too large")])
def test_calls_of_a_commit_that_fails_hear_of_it_and_the_next_one_is_written(error: Exception) -> None:
    disk = Disk()
    disk.error = error
    writer = writer_of(disk)
    outcomes = [put(writer, "first")]
    assert disk.begun.wait(LONG_S)
    outcomes += [put(writer, "a"), put(writer, "b")]
    disk.open.set()
    assert [outcome.wait() for outcome in outcomes] == [error] * 3
    disk.error = None
    assert put(writer, "c").wait() is None
    writer.close()
    assert disk.commits == [1]


def test_events_that_no_store_takes_fail_their_own_call_alone() -> None:
    disk = Disk()
    writer = writer_of(disk)
    first = put(writer, "first")
    assert disk.begun.wait(LONG_S)
    outcomes = [put(writer, "a"), put(writer, "b", "poison"), put(writer, "c")]
    disk.open.set()
    assert [type(outcome.wait()) for outcome in (first, *outcomes)] == [
        type(None), type(None), OverflowError, type(None)
    ]  # fmt: skip
    writer.close()
    assert disk.commits == [1, 1, 1]


def test_a_call_that_cannot_be_answered_does_not_end_the_writer() -> None:
    disk = Disk()
    disk.open.set()
    writer, called = writer_of(disk), threading.Event()

    def closed_loop(_: Exception | None) -> None:
        called.set()
        raise RuntimeError("Event loop is closed")

    writer.put([Event("u", "a")], closed_loop)
    assert called.wait(LONG_S)
    assert put(writer, "b").wait() is None
    writer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_dies_answers_those_who_wait_and_refuses_all_others() -> None:
    disk = Disk()
    disk.error = SystemExit("a library that exits")
    writer = writer_of(disk)
    outcomes = [put(writer, "first")]
    assert disk.begun.wait(LONG_S)
    outcomes += [put(writer, "a"), put(writer, "b")]
    disk.open.set()
    for outcome in outcomes:
        assert isinstance(outcome.wait(), MachineError)
    writer.close()
    with pytest.raises(MachineError, match="writer"):
        put(writer, "c")
    writer.close()  # a second time, too


def test_the_queue_of_the_writer_is_bounded() -> None:
    disk = Disk()
    writer = writer_of(disk, limit=2)
    put(writer, "first")
    assert disk.begun.wait(LONG_S)
    put(writer, "a")
    put(writer, "b")
    with pytest.raises(Full):
        put(writer, "one too many")
    disk.open.set()
    writer.close()


def test_closing_does_not_wait_for_a_disk_that_hangs_and_takes_nothing_more() -> None:
    disk = Disk()
    writer = writer_of(disk, limit=1)
    hangs = put(writer, "first")
    assert disk.begun.wait(LONG_S)
    waits = put(writer, "a")  # the queue is full
    writer.close(timeout_s=0.01)
    with pytest.raises(MachineError, match="closed"):
        put(writer, "b")
    disk.open.set()
    assert (hangs.wait(), waits.wait()) == (None, None)
