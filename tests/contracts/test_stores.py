"""What every event store keeps to; a new one joins by one line in STORES."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import DataError, MachineError
from app.events import Event, HistoryEvent
from app.stores import redis_store, sqlite_store
from app.stores.base import ItemRecord, Store
from app.stores.open import open_store
from app.stores.read import StoredLog
from app.stores.schema import FILE
from tests.redis_server import redis_server

STORES = ("sqlite", "redis", "redis cluster")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis"), cluster=True) as url:
        yield url


@pytest.fixture(params=STORES)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that is empty, or is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "store")
    url: str = request.getfixturevalue(request.param.replace(" ", "_") + "_url")
    redis.Redis.from_url(url).flushall()
    return url


@pytest.fixture
def new_store(location: str) -> Iterator[Callable[[], Store]]:
    """Opens one and the same store, as often as asked, each time as a replica of its own would."""
    opened: list[Store] = []

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
    stored = store.recent(user, 10)[-len(events) :]
    assert [(e.item, e.event) for e in stored] == [(item, item) for item, _ in expected]
    assert [round(float(e.timestamp or 0) * 1e6) for e in stored] == [time for _, time in expected]


def test_changes_name_users_and_items_whoever_stored_them(new_store: Callable[[], Store]) -> None:
    ours, theirs = new_store(), new_store()
    ours.append([Event("before", "a")])
    mark, changes = ours.changes(None)
    assert changes is None
    assert ours.changes(mark) == (mark, [])
    theirs.append([Event("u", "a"), Event("v", "a"), Event("u", "b")])
    ours.append([Event("w", "a")])
    later, changes = ours.changes(mark)
    assert changes == [("u", "a"), ("v", "a"), ("u", "b"), ("w", "a")]
    assert ours.changes(later) == (later, [])


def test_more_changes_than_a_page_are_not_read(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "PAGE", 3)
    monkeypatch.setattr(redis_store, "PAGE", 3)
    store, other = new_store(), new_store()
    mark, _ = store.changes(None)
    other.append([Event("u", f"i{n}") for n in range(3)])
    mark, changes = store.changes(mark)
    assert changes == [("u", "i0"), ("u", "i1"), ("u", "i2")]
    other.append([Event("u", f"i{n}") for n in range(4)])
    mark, changes = store.changes(mark)
    assert changes is None
    other.append([Event("v", "a")])
    assert store.changes(mark)[1] == [("v", "a")]


def test_seen_holds_every_item_of_a_user_of_2000_events_the_latest_first(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    store.append([Event("u", f"i{n}", timestamp=n) for n in range(2000)] + [Event("v", "i1", timestamp=9)])
    expected = [f"i{n}" for n in reversed(range(2000))]
    assert [item for page in store.seen("u") for item in page] == expected
    assert [item for page in store.seen("v") for item in page] == ["i1"]
    assert list(store.seen("nobody")) == []
    monkeypatch.setattr(sqlite_store, "PAGE", 300)
    monkeypatch.setattr(redis_store, "PAGE", 300)
    pages = list(store.seen("u"))
    assert [len(page) for page in pages] == [300] * 6 + [200]
    assert [item for page in pages for item in page] == expected


def test_seen_knows_an_item_of_many_events_of_one_moment_and_any_name(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "PAGE", 2)
    store = new_store()
    items = ['é "q"', "a,b", "\u0000x", "a,b", "{tag}", "-1"]
    store.append([Event("u", item, timestamp=7) for item in items])
    assert {item for page in store.seen("u") for item in page} == set(items)


def test_only_events_before_the_time_are_removed_in_portions(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "REMOVAL_ROWS", 4)
    monkeypatch.setattr(redis_store, "PORTION", 4)
    store = new_store()
    times = [1, 2, 50, 3, 60, 4, 5, 70, 6, 80]  # seconds; late events come out of order
    store.append([Event("u", f"i{time}", timestamp=time) for time in times])
    store.append([Event("v", "i1", timestamp=1), Event("v", "i1", timestamp=90)])
    mark, _ = store.changes(None)
    portions = list(store.remove_before(50_000_000))
    assert sum(portions) == 7 and max(portions) <= 4
    assert items(store.recent("u", 100)) == ["i50", "i60", "i70", "i80"]
    assert {item for page in store.seen("u") for item in page} == {"i50", "i60", "i70", "i80"}
    assert {item for page in store.seen("v") for item in page} == {"i1"}  # by the younger event
    assert sum(store.remove_before(50_000_000)) == 0
    store.append([Event("w", "a")])
    assert store.changes(mark)[1] == [("w", "a")]


def test_after_all_events_went_new_ones_are_still_noticed(new_store: Callable[[], Store]) -> None:
    store = new_store()
    store.append([Event("u", "a", timestamp=n) for n in range(5)])
    mark, _ = store.changes(None)
    list(store.remove_before(10**15))
    store.append([Event("u", "b", timestamp=20)])
    assert store.changes(mark)[1] == [("u", "b")]


def test_one_process_removes_old_events_at_a_time(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(3)]
    assert [store.claim_removal(3600) for store in stores] == [True, False, False]


def test_a_log_is_read_as_it_was_opened_while_a_service_writes(
    new_store: Callable[[], Store], location: str
) -> None:
    store = new_store()
    events = [
        Event("u", "a", "view", 1_700_000_000.123457, None, "v1"),
        Event("ü,\n", 'b"', "", 0.0, -2.5),
        Event("u", "c", "buy", 5.0, 1e300, "v2"),
    ]
    store.append(events)
    store.put_item("a", msgspec.json.encode(ItemRecord({"price": 1})))
    store.put_item("b", msgspec.json.encode(ItemRecord({"tags": ["x", "y"], "price": None}, ["d"])))
    with StoredLog.open(location) as log:
        chunks = log.events(2)
        first = next(chunks)
        store.append([Event("later", "z")])
        assert first + [event for chunk in chunks for event in chunk] == events
        assert list(log.items()) == [("a", {"price": 1}), ("b", {"tags": ["x", "y"], "price": None})]
    with StoredLog.open(location) as log:
        assert [event.item for chunk in log.events() for event in chunk] == ["a", 'b"', "c", "z"]


def test_the_digest_of_a_log_changes_with_its_content(new_store: Callable[[], Store], location: str) -> None:
    store, digests = new_store(), []

    def digest() -> str:
        with StoredLog.open(location) as log:
            return log.digest()

    def note() -> None:
        digests.append(digest())
        assert digest() == digests[-1]

    note()
    for time in (5, 1, 9):
        store.append([Event("u", "a", timestamp=time)])
        note()
    for content in (b'{"columns":{}}', b'{"columns":{"a":1}}'):
        store.put_item("a", content)
        note()
    assert list(store.remove_before(3_000_000)) == [1]  # neither the first nor the last
    note()
    assert len(set(digests)) == len(digests)


def test_a_log_of_a_newer_version_is_refused_by_writers_and_readers(
    new_store: Callable[[], Store], location: str
) -> None:
    new_store()
    _make_newer(location)
    with pytest.raises(MachineError, match="format 7, this RayRec reads up to 1"):
        new_store()
    with pytest.raises(DataError, match="format 7, this RayRec reads up to 1"):
        StoredLog.open(location)


def _make_newer(location: str) -> None:
    if location.startswith("redis"):
        redis.Redis.from_url(location).set(redis_store.LAYOUT, 7)
        return
    connection = sqlite3.connect(Path(location) / FILE)
    connection.execute("PRAGMA user_version = 7")
    connection.close()


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
    number, _ = other.items(None)
    for round in ("one", "two"):
        store.put_item(round, b"{}")
        store.append([Event("u", "x")])
        mark, changes = other.changes(mark)
        number, new = other.items(number)
        assert changes == [("u", "x")] and new == [(round, b"{}")]
        mark, _ = other.changes(mark)
        assert other.items(number) == (number, [])


def test_a_replica_learns_of_the_items_that_it_put_itself(new_store: Callable[[], Store]) -> None:
    store = new_store()
    mark, number = store.changes(None)[0], store.items(None)[0]
    store.put_item("a", b"{}")
    store.changes(mark)
    assert store.items(number)[1] == [("a", b"{}")]


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
