"""The stored events of users: never stale, bounded, whole in what was seen, and off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bundle.request.requests import RecommendRequest
from app.bundle.runtime import Ranker
from app.errors import MachineError
from app.events import Event, HistoryEvent
from app.serving.feedback.user_events import LENGTH, REST_S, Lookup, UserEventCache
from app.stores.base import Change
from app.stores.sqlite_store import SqliteStore
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

LONG_S = 10.0


def look_up(cache: UserEventCache, *users: str) -> Lookup:
    """As a batch of these users does."""

    async def ask() -> Lookup:
        future: asyncio.Future[Lookup] = asyncio.get_running_loop().create_future()
        cache.look_up(users, future.set_result)
        return await asyncio.wait_for(future, LONG_S)

    return asyncio.run(ask())


def items(cache: UserEventCache, user: str) -> list[str]:
    return [event.item for event in look_up(cache, user).of(user)]


class RemoteStore(SqliteStore):
    """A store that is asked as one on another machine is; notes in which threads, and can be held up."""

    local = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.threads: set[int] = set()
        self.may = threading.Event()
        self.may.set()

    def changes(self, mark: int | None) -> tuple[int, list[Change] | None]:
        if mark is not None:  # the first call is made while a replica starts
            self._note()
        return super().changes(mark)

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        self._note()
        return super().recent(user, limit)

    def seen(self, user: str) -> Iterator[list[str]]:
        self._note()
        return super().seen(user)

    def _note(self) -> None:
        self.threads.add(threading.get_ident())
        assert self.may.wait(LONG_S)


@pytest.fixture(params=[SqliteStore, RemoteStore])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    return lambda: request.param(tmp_path / "store")


def test_a_user_is_read_once_until_someone_stores_an_event_of_theirs(new_store: Callable[[], Any]) -> None:
    ours, theirs = new_store(), new_store()
    cache = UserEventCache(ours)
    assert items(cache, "u") == items(cache, "u") == []
    assert (cache.hits, cache.misses) == (1, 1)
    theirs.append([Event("v", "x", timestamp=1)])  # another replica, another user
    assert items(cache, "u") == []
    assert cache.misses == 1
    for store, item in ((theirs, "a"), (ours, "b")):
        store.append([Event("u", item, timestamp=2)])
        assert items(cache, "u")[-1] == item
    assert items(cache, "v") == ["x"]


def test_users_of_a_batch_are_looked_up_together(new_store: Callable[[], Any]) -> None:
    store = new_store()
    cache = UserEventCache(store)
    store.append([Event("u", "a"), Event("v", "b")])
    lookup = look_up(cache, "u", "v", "w")
    assert [[event.item for event in lookup.of(user)] for user in "uvw"] == [["a"], ["b"], []]


def test_the_cache_keeps_to_its_bytes_and_drops_who_was_not_looked_up_for_longest(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.append([Event(user, str(n), timestamp=n) for user in "abc" for n in range(4)])
    cache = UserEventCache(store, limit=2500)  # two users of four events
    for user in "abac":
        assert items(cache, user) == ["0", "1", "2", "3"]
        assert 0 < cache.bytes <= 2500
    assert (cache.hits, cache.misses) == (1, 3)
    assert items(cache, "a")
    assert cache.hits == 2
    assert items(cache, "b")
    assert cache.misses == 4


def test_an_old_list_and_a_new_one_share_their_events(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    cache = UserEventCache(store)
    store.append([Event("u", item, timestamp=1) for item in "ab"])
    old = look_up(cache, "u").of("u")
    assert look_up(cache, "u").of("u") is old  # cached answers go by this
    store.append([Event("u", "c", timestamp=2)])
    new = look_up(cache, "u").of("u")
    assert [event.item for event in old] == ["a", "b"]  # whoever holds it sees it unchanged
    assert [event.item for event in new] == ["a", "b", "c"]
    assert all(before is after for before, after in zip(old, new, strict=False))


@settings(deadline=None, max_examples=25)  # each commit waits for the disk
@given(
    st.sampled_from([SqliteStore, RemoteStore]),
    st.lists(st.tuples(st.booleans(), st.sampled_from("uvw"), st.integers(0, 5)), max_size=12),
)
def test_the_cache_never_differs_from_the_store(
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[SqliteStore],
    steps: list[tuple[bool, str, int]],
) -> None:
    folder = tmp_path_factory.mktemp("store")
    writers, store = [SqliteStore(folder), SqliteStore(folder)], kind(folder)
    cache = UserEventCache(store, limit=1200)
    for first, user, time in steps:
        writers[first].append([Event(user, f"i{time}", timestamp=time)])
        lookup = look_up(cache, *"uvw")
        for name in "uvw":
            assert lookup.of(name) == store.recent(name, LENGTH)
    cache.close()
    for opened in (*writers, store):
        opened.close()


# --- seen --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    """Over 3,000 items."""
    folder = tmp_path_factory.mktemp("seen")
    dataset = tiny_dataset(folder / "dataset", users=20, items=3000, events=400, content=False)
    return bundle_of(random_model("popularity", dataset), dataset, folder / "bundle")


def met_again(ranker: Ranker, cache: UserEventCache, user: str, met: set[str]) -> set[str]:
    """Items met that are among all that is recommended to a user."""
    lookup = look_up(cache, user)
    request = RecommendRequest(user, k=100)
    prepared = ranker.read(request, lookup.of(user), None, lookup.seen(user))
    (answer,) = ranker.answer([prepared])
    assert len(answer.items) == 100
    return met & {scored.item for scored in answer.items}


def best(ranker: Ranker, count: int) -> list[str]:
    """The items that are recommended to a stranger, the best first."""
    items: list[str] = []
    while len(items) < count:
        (answer,) = ranker.answer([ranker.read(RecommendRequest("x", k=100, exclude=items))])
        items += [scored.item for scored in answer.items]
    return items[:count]


def test_every_item_of_2000_events_is_seen_whoever_stored_them_and_however_they_came(
    ranker: Ranker, new_store: Callable[[], Any]
) -> None:
    ours, theirs = new_store(), new_store()
    cache, other = UserEventCache(ours), UserEventCache(theirs)
    liked = best(ranker, 500)
    events = [Event("u", item, timestamp=n) for n, item in enumerate(liked[:250])]
    # So many later events of one item that the newest 200 show nothing of what came before.
    events += [Event("u", liked[0], timestamp=1000 + n) for n in range(1700)]
    ours.append(events)
    met = set(liked[:250])
    assert met_again(ranker, cache, "u", met) == set()
    assert met_again(ranker, other, "u", met) == set()
    for n, item in enumerate(liked[250:300]):  # one by one, at another replica, some from long ago
        theirs.append([Event("u", item, timestamp=n if n % 2 else 5000 + n)])
        met.add(item)
        if n % 10 == 0:
            assert met_again(ranker, cache, "u", met) == set()
    assert met_again(ranker, cache, "u", met) == met_again(ranker, other, "u", met) == set()
    assert cache.misses < 10  # the seen items were kept up, not read again


def test_seen_items_outlive_the_eviction_of_the_user_and_more_changes_than_are_listed(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.stores.sqlite_store.PAGE", 100)
    store, writer = SqliteStore(tmp_path), SqliteStore(tmp_path)
    liked = best(ranker, 400)
    cache = UserEventCache(store, limit=60_000)  # one user of many events
    writer.append([Event("u", item, timestamp=n) for n, item in enumerate(liked[:300])])
    assert met_again(ranker, cache, "u", set(liked[:300])) == set()
    writer.append([Event("v", item, timestamp=n) for n, item in enumerate(liked[:300])])
    assert met_again(ranker, cache, "v", set(liked[:300])) == set()
    writer.append([Event("u", item, timestamp=9 + n) for n, item in enumerate(liked[300:])])
    assert met_again(ranker, cache, "u", set(liked)) == set()
    assert cache.bytes <= 60_000


def test_seen_items_are_those_of_the_events_once_old_ones_were_removed(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.stores.sqlite_store.PAGE", 100)
    store, writer = SqliteStore(tmp_path), SqliteStore(tmp_path)
    cache, liked = UserEventCache(store), best(ranker, 400)
    writer.append([Event("u", item, timestamp=n) for n, item in enumerate(liked[:300])])
    assert look_up(cache, "u").seen("u") is not None
    assert sum(writer.remove_before(10**15)) == 299
    writer.append([Event("u", item, timestamp=n) for n, item in enumerate(liked[300:])])
    writer.append([Event("v", "i1")] * 100)  # more changes than are listed
    assert met_again(ranker, cache, "u", set(liked[299:])) == set()


def test_a_user_of_few_events_has_no_list_of_seen_items(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    cache = UserEventCache(store)
    store.append([Event("u", f"i{n}", timestamp=n) for n in range(LENGTH - 1)])
    assert look_up(cache, "u").seen("u") is None  # the ranker takes it from the events
    store.append([Event("u", "z", timestamp=999)])
    assert look_up(cache, "u").seen("u") is not None


def test_more_events_are_handed_over_once_a_model_needs_them(new_store: Callable[[], Any]) -> None:
    store = new_store()
    cache = UserEventCache(store)
    for user, count in (("u", LENGTH + 50), ("v", LENGTH - 1)):
        store.append([Event(user, f"i{n}", timestamp=n) for n in range(count)])
    assert [len(items(cache, user)) for user in "uv"] == [LENGTH, LENGTH - 1]
    cache.need(LENGTH - 5)
    assert items(cache, "u") and cache.misses == 2, "nothing is read again for less"
    cache.need(LENGTH + 20)
    lookup = look_up(cache, "u")
    assert lookup.of("u") == store.recent("u", LENGTH + 20) and lookup.seen("u") is not None
    assert len(items(cache, "v")) == LENGTH - 1 and cache.misses == 3
    cache.need(LENGTH + 100)
    lookup = look_up(cache, "u")
    assert len(lookup.of("u")) == LENGTH + 50 and lookup.seen("u") is None, "these are all"


# --- a store on another machine ----------------------------------------------------------


def test_a_store_on_another_machine_is_never_asked_on_the_event_loop(tmp_path: Path) -> None:
    store = RemoteStore(tmp_path)
    store.append([Event("u", f"i{n}", timestamp=n) for n in range(LENGTH)])
    cache = UserEventCache(store)

    async def run() -> None:
        future: asyncio.Future[Lookup] = asyncio.get_running_loop().create_future()
        store.may.clear()
        cache.look_up(["u"], future.set_result)
        for _ in range(20):
            await asyncio.sleep(0)  # the loop goes on while the store hangs
        assert not future.done()
        store.may.set()
        lookup = await asyncio.wait_for(future, LONG_S)
        assert len(lookup.of("u")) == LENGTH and lookup.seen("u") is not None

    asyncio.run(run())
    assert store.threads and threading.get_ident() not in store.threads


def test_what_was_acknowledged_while_a_lookup_hangs_is_known_to_the_next(tmp_path: Path) -> None:
    store, writer = RemoteStore(tmp_path), SqliteStore(tmp_path)
    cache = UserEventCache(store)

    async def run() -> list[list[str]]:
        lookups: list[Lookup] = []
        store.may.clear()
        cache.look_up(["u"], lookups.append)
        await asyncio.to_thread(writer.append, [Event("u", "a", timestamp=1)])
        cache.look_up(["u"], lookups.append)
        cache.look_up(["u", "v"], lookups.append)
        store.may.set()
        async with asyncio.timeout(LONG_S):
            while len(lookups) < 3:
                await asyncio.sleep(0)
        return [[event.item for event in lookup.of("u")] for lookup in lookups]

    assert asyncio.run(run())[1:] == [["a"], ["a"]]


# --- faults ------------------------------------------------------------------------------


class Faltering(SqliteStore):
    """A store that can be made to fail; counts how often it was asked meanwhile."""

    error: BaseException | None = None
    asked = 0

    def unchanged(self) -> bool:
        self._falter()
        return super().unchanged()

    def changes(self, mark: int | None) -> tuple[int, list[Change] | None]:
        self._falter()
        return super().changes(mark)

    def _falter(self) -> None:
        if self.error is not None:
            self.asked += 1
            raise self.error


class FalteringRemote(Faltering):
    local = False


@pytest.mark.parametrize("kind", [Faltering, FalteringRemote])
@pytest.mark.parametrize("error", [MachineError("gone"), ZeroDivisionError("a fault of ours")])
def test_a_store_that_fails_is_left_alone_for_a_while_and_then_right_again(
    kind: type[Faltering], error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("app.serving.feedback.user_events.time.monotonic", lambda: clock[0])
    store = kind(tmp_path)
    store.append([Event("u", "a", timestamp=1)])
    cache = UserEventCache(store)
    assert items(cache, "u") == ["a"]
    store.error = error
    for _ in range(5):
        lookup = look_up(cache, "u")
        assert (lookup.of("u"), lookup.seen("u"), lookup.informed) == ([], None, False)
    assert store.asked == 1
    SqliteStore(tmp_path).append([Event("u", "b", timestamp=2)])
    store.error = None
    clock[0] += REST_S
    assert look_up(cache, "u").informed
    assert items(cache, "u") == ["a", "b"]


def test_whatever_ends_a_lookup_in_a_thread_batches_go_on_without_events(tmp_path: Path) -> None:
    store = FalteringRemote(tmp_path)
    cache = UserEventCache(store)
    store.error = SystemExit("a library that exits")
    assert not look_up(cache, "u").informed
    store.error = None
    store.append([Event("u", "a", timestamp=1)])
    assert look_up(cache, "u").informed
    assert items(cache, "u") == ["a"]


def test_a_batch_that_fails_does_not_keep_the_next_from_its_events(tmp_path: Path) -> None:
    cache = UserEventCache(SqliteStore(tmp_path))

    def fail(_: Lookup) -> None:
        raise ZeroDivisionError

    cache.look_up(["u"], fail)
    assert look_up(cache, "u").informed
