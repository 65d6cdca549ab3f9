"""What every event store keeps to; a new one joins by one line in STORES."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.events import Event, HistoryEvent
from app.stores.base import Store, open_store
from tests.redis_server import redis_server

STORES = ("sqlite", "redis")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=STORES)
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens one and the same store, as often as asked, each time as a replica of its own would."""
    opened: list[Store] = []
    location = str(tmp_path / "store")
    if request.param == "redis":
        location = request.getfixturevalue("redis_url")
        redis.Redis.from_url(location).flushall()

    def make() -> Store:
        opened.append(open_store(location))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def items(history: list[HistoryEvent]) -> list[str]:
    return [event.item for event in history]


def test_recent_is_the_last_by_time_and_the_latest_is_last(new_store: Callable[[], Store]) -> None:
    store = new_store()
    times = {"c": 30, "a": 10, "d": 40, "b": 20}
    store.append([Event("u", item, "view", float(time)) for item, time in times.items()])
    assert store.recent("u", 3) == [
        HistoryEvent("b", "view", 20.0),
        HistoryEvent("c", "view", 30.0),
        HistoryEvent("d", "view", 40.0),
    ]


def test_events_of_one_moment_keep_their_order(new_store: Callable[[], Store]) -> None:
    store = new_store()
    store.append([Event("u", item, timestamp=5) for item in "abc"])
    store.append([Event("u", "d", timestamp=5)])
    assert items(store.recent("u", 10)) == ["a", "b", "c", "d"]


def test_users_do_not_mix(new_store: Callable[[], Store]) -> None:
    store = new_store()
    store.append([Event("u", "a", timestamp=1), Event("U", "b", timestamp=2), Event("u ", "c", timestamp=3)])
    assert items(store.recent("u", 10)) == ["a"]
    assert store.recent("nobody", 10) == []


def test_an_event_without_a_time_happened_now(new_store: Callable[[], Store]) -> None:
    store = new_store()
    store.append(
        [Event("u", "old", timestamp="2020-01-01"), Event("u", "new"), Event("u", "older", timestamp=1)]
    )
    assert items(store.recent("u", 10)) == ["older", "old", "new"]


def test_other_replicas_see_an_event_at_once_and_it_stays(new_store: Callable[[], Store]) -> None:
    first, second = new_store(), new_store()
    first.append([Event("u", "a", timestamp=1)])
    assert items(second.recent("u", 10)) == ["a"]
    first.close()
    assert items(new_store().recent("u", 10)) == ["a"]


def test_replicas_and_threads_write_at_once(new_store: Callable[[], Store]) -> None:
    stores = [new_store(), new_store()]

    def write(worker: int) -> None:
        for count in range(20):
            stores[worker % 2].append([Event("u", f"{worker}-{count}", timestamp=1)])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {f"{worker}-{count}" for worker in range(4) for count in range(20)}
    assert set(items(stores[0].recent("u", 100))) == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            st.integers(0, 2_000_000_000_000_000),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_goes_in_comes_out(new_store: Callable[[], Store], events: list[tuple[str, int]]) -> None:
    store, user = new_store(), f"u{id(events)}-{len(events)}-{hash(tuple(events))}"
    store.append([Event(user, item, item, time / 1e6) for item, time in events])
    expected = sorted(events, key=lambda event: event[1])
    found = store.recent(user, 10)[-len(events) :]
    assert [(e.item, e.event) for e in found] == [(item, item) for item, _ in expected]
    assert [round(float(e.timestamp or 0) * 1e6) for e in found] == [time for _, time in expected]


def test_changes_name_those_with_new_events_whoever_stored_them(new_store: Callable[[], Store]) -> None:
    ours, theirs = new_store(), new_store()
    ours.append([Event("before", "a")])
    mark, users = ours.changes(None)
    assert users == []
    assert ours.changes(mark) == (mark, [])
    theirs.append([Event("u", "a"), Event("v", "a"), Event("u", "b")])
    ours.append([Event("w", "a")])
    later, users = ours.changes(mark)
    assert sorted(users) == ["u", "v", "w"]
    assert ours.changes(later) == (later, [])


def test_items_come_in_the_order_of_arrival_and_the_latest_word_holds(
    new_store: Callable[[], Store],
) -> None:
    store, other = new_store(), new_store()
    assert store.items(None)[1] == []
    for item, content in (("a", b"1"), ("b é", b"2"), ("a", "3é".encode())):
        store.put_item(item, content)
    other.changes(None)
    assert other.items(None)[1] == [("b é", b"2"), ("a", "3é".encode())]
    assert new_store().items(None)[1] == [("b é", b"2"), ("a", "3é".encode())]


def test_another_replica_learns_of_items_with_its_next_look_at_changes(
    new_store: Callable[[], Store],
) -> None:
    store, other = new_store(), new_store()
    mark, _ = other.changes(None)
    place, _ = other.items(None)
    for round in ("one", "two"):
        store.put_item(round, b"{}")
        store.append([Event("u", "x")])
        mark, users = other.changes(mark)
        place, found = other.items(place)
        assert users == ["u"] and found == [(round, b"{}")]
        mark, _ = other.changes(mark)
        assert other.items(place) == (place, [])


def test_a_replica_learns_of_the_items_that_it_put_itself(new_store: Callable[[], Store]) -> None:
    store = new_store()
    mark, place = store.changes(None)[0], store.items(None)[0]
    store.put_item("a", b"{}")
    store.changes(mark)
    assert store.items(place)[1] == [("a", b"{}")]


def test_items_are_put_by_many_at_once(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(3)]

    def put(number: int) -> None:
        for n in range(10):
            stores[number].put_item(f"{number}-{n}", b"{}")

    threads = [threading.Thread(target=put, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item for item, _ in new_store().items(None)[1]) == sorted(
        f"{number}-{n}" for number in range(3) for n in range(10)
    )
