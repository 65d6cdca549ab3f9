"""serve.keep_days: old events go in small portions, by one replica at a time; none younger does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import MachineError
from app.events import Event
from app.recipe import Serve
from app.serving.feedback import retention
from app.serving.feedback.retention import DAY_S, Retention
from app.stores.sqlite_store import SqliteStore
from tests.fakes import fake_replica

LONG_S = 10.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store")
    now = time.time()
    ages = [40.0, 31.0, 30.1, 29.9, 1.0, 35.0, 0.0]  # days
    store.append([Event("u", f"{age:g}", timestamp=now - age * DAY_S) for age in ages])
    yield store
    store.close()


def ages(store: SqliteStore) -> list[str]:
    return [event.item for event in store.recent("u", 100)]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_older_than_the_days_are_removed_and_no_others(store: SqliteStore) -> None:
    keeper = Retention(store, keep_days=30)
    wait_until(lambda: len(ages(store)) == 3)
    keeper.close()
    assert ages(store) == ["29.9", "1", "0"]


def test_without_days_nothing_is_removed_and_no_thread_runs(store: SqliteStore) -> None:
    before = threading.active_count()
    keeper = Retention(store, keep_days=0)
    assert threading.active_count() == before
    keeper.close()
    assert len(ages(store)) == 7


def test_one_replica_removes_and_feedback_is_taken_between_the_portions(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.stores.sqlite_store.REMOVAL_ROWS", 1)
    pauses = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        SqliteStore(store.path.parent).append([Event("v", str(len(pauses)))])
        return False

    keepers = [Retention(store, 0), Retention(SqliteStore(store.path.parent), 0)]
    for keeper in keepers:
        monkeypatch.setattr(keeper, "_pause", pause)
    assert [keeper.remove(30) for keeper in keepers] == [4, 0]
    assert len(pauses) == 6 and set(pauses) == {retention.PAUSE_S}
    assert len(store.recent("v", 100)) == 6


def test_a_store_that_fails_is_tried_again(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "LOOK_S", 0.01)
    claim, failures = store.claim_removal, [MachineError("busy"), ZeroDivisionError("a fault of ours")]

    def fail(seconds: float) -> bool:
        if failures:
            raise failures.pop()
        return claim(seconds)

    monkeypatch.setattr(store, "claim_removal", fail)
    keeper = Retention(store, keep_days=30)
    wait_until(lambda: len(ages(store)) == 3)
    keeper.close()
    assert not failures


def test_a_replica_keeps_to_the_days_of_its_recipe(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = fake_replica(monkeypatch, store.path.parent, Serve(keep_days=30))
    wait_until(lambda: len(ages(store)) == 3)
    replica.retention.close()
