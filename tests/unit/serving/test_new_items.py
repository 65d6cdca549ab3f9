"""PUT /v1/items/{id}, and how every replica and every version learns of items."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest

from app.bundle.request.requests import ItemAnswer
from app.bundle.runtime import Ranker
from app.client import AsyncClient
from app.errors import MachineError, RequestError
from app.recipe import Serve
from app.serving.feedback.new_items import StoredItems
from app.serving.feedback.user_events import UserEventCache
from app.serving.http.guard import key_digest
from app.serving.replica import Replica
from app.stores.base import ItemRecord
from app.stores.sqlite_store import SqliteStore
from tests.fakes import FakeRanker, fake_replica, transport

COLUMNS = {"kind": "hats", "price": 12.5}


def fake(digest: str, *known: str) -> Any:
    """A ranker whose training knew these items."""
    ranker = FakeRanker()
    ranker.artifact, ranker.items = SimpleNamespace(digest=digest), ("", *known)  # type: ignore[assignment]
    return ranker


def put(replica: Replica, path: str, body: Any, method: str = "PUT", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
            sent = {"Content-Type": "application/json", **headers}
            return await client.request(method, path, content=content, headers=sent)

    return asyncio.run(send())


def columns_of(replica: Replica) -> dict[str, Any]:
    """The items that its ranker was given."""
    return cast(FakeRanker, replica.ranker).put


def look(cache: UserEventCache) -> None:
    """At the store, as before every batch."""
    cache.look_up((), lambda _: None)


@pytest.fixture
def open_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Replica]:
    return lambda: fake_replica(monkeypatch, tmp_path / "store", Serve(max_body_bytes=2000))


def test_an_item_that_was_put_is_known_here_there_and_after_a_restart(
    open_replica: Callable[[], Replica],
) -> None:
    replica, other = open_replica(), open_replica()
    answer = put(replica, "/v1/items/new", {"columns": COLUMNS})
    assert (answer.status_code, answer.json()) == (200, {"item": "new", "ranked_by": "content"})
    assert columns_of(replica) == {"new": COLUMNS}
    assert columns_of(other) == {}
    look(other.user_events)
    assert columns_of(other) == columns_of(open_replica()) == {"new": COLUMNS}


def test_a_known_item_is_ranked_by_what_training_learned(open_replica: Callable[[], Replica]) -> None:
    replica = open_replica()
    answer = put(replica, "/v1/items/bb", {"columns": {"price": None}})
    assert answer.json() == {"item": "bb", "ranked_by": "training"}
    assert columns_of(replica) == columns_of(open_replica()) == {"bb": {"price": None}}


@pytest.mark.parametrize("name", ["a/b", "ä?x=1#y", "100%", "  ", ".."])
def test_an_id_may_hold_anything(name: str, open_replica: Callable[[], Replica]) -> None:
    replica = open_replica()

    async def send() -> ItemAnswer:
        async with AsyncClient("http://test", transport=transport(replica)) as client:
            return await client.put_item(name, **COLUMNS)

    if name == "..":  # which clients take for a step up the path
        with pytest.raises(RequestError):
            asyncio.run(send())
        return
    assert asyncio.run(send()) == ItemAnswer(name, "content")
    assert columns_of(replica) == {name: COLUMNS}


def test_what_cannot_be_used_is_a_problem_and_is_not_stored(open_replica: Callable[[], Replica]) -> None:
    replica, good = open_replica(), {"columns": COLUMNS}
    asked = [
        (put(replica, "/v1/items/x", {"columns": {"colour": "red"}}), 422),
        (put(replica, "/v1/items/x", {"columns": {"price": {"a": 1}}}), 422),
        (put(replica, "/v1/items/x", {"columns": {}, "kind": "hats"}), 422),
        (put(replica, "/v1/items/x", {}), 422),
        (put(replica, "/v1/items/" + 257 * "x", good), 422),
        (put(replica, "/v1/items/", good), 422),
        (put(replica, "/v1/items/%ff", good), 422),
        (put(replica, "/v1/items/x", b"{"), 400),
        (put(replica, "/v1/items/x", {"columns": {"kind": 3000 * "x"}}), 413),
        (put(replica, "/v1/items/x", good, **{"Content-Type": "text/plain"}), 415),
        (put(replica, "/v1/items/x", good, method="POST"), 405),
    ]
    assert [answer.status_code for answer, _ in asked] == [status for _, status in asked]
    assert asked[0][0].json()["errors"][0]["field"] == "columns.colour"
    assert asked[-1][0].headers["allow"] == "GET, HEAD, PUT"
    assert columns_of(replica) == {} == columns_of(open_replica())


def test_there_is_room_for_so_many(open_replica: Callable[[], Replica]) -> None:
    replica = open_replica()
    answers = [put(replica, f"/v1/items/n{n}", {"columns": {}}).status_code for n in range(4)]
    assert answers == [200, 200, 200, 507]
    assert put(replica, "/v1/items/n1", {"columns": COLUMNS}).status_code == 200


def test_the_administrators_key_is_asked_for_and_else_the_api_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replica = fake_replica(monkeypatch, tmp_path, Serve(), key="sesame")
    good = {"columns": COLUMNS}
    for admin, given, status in (
        (None, "", 401),
        (None, "sesame", 200),
        ("open", "sesame", 401),
        ("open", "open", 200),
    ):
        replica.keys["admin"] = key_digest(admin or "sesame")
        headers = {"X-API-Key": given} if given else {}
        assert put(replica, "/v1/items/x", good, **headers).status_code == status


def test_a_store_that_fails_is_a_problem(
    open_replica: Callable[[], Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()

    def fail(*_: Any) -> None:
        raise MachineError("the disk is full", where="store")

    monkeypatch.setattr(replica.store, "put_item", fail)
    assert put(replica, "/v1/items/x", {"columns": COLUMNS}).status_code == 503
    assert columns_of(replica) == {}


def test_a_later_version_gets_the_items_that_its_training_did_not_know(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    items = StoredItems(store)
    first = fake("d1", "a")
    items.introduce(cast(Ranker, first))
    items.apply(items.changes())
    for name in ("a", "new", "newer"):
        store.put_item(name, msgspec.json.encode(ItemRecord(COLUMNS, items.versions(name))))
    second, again = fake("d2", "a", "new"), fake("d1", "a")
    items.introduce(cast(Ranker, second))
    items.introduce(cast(Ranker, again))
    assert sorted(second.put) == ["newer"]  # it brings its own columns of the others
    assert sorted(again.put) == ["a", "new", "newer"]


def test_what_is_put_while_a_version_is_loaded_is_not_lost(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    items = StoredItems(store)
    cache = UserEventCache(store, items=items)
    late = fake("d2")
    items.introduce(late)
    store.put_item("new", msgspec.json.encode(ItemRecord(COLUMNS)))
    assert late.put == {}
    look(cache)
    assert late.put == {"new": COLUMNS}


@pytest.mark.parametrize("error", [MachineError("busy", where="store"), ZeroDivisionError("a fault of ours")])
def test_a_version_that_is_loaded_while_the_store_fails_gets_them_later(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path)
    store.put_item("new", msgspec.json.encode(ItemRecord(COLUMNS)))
    items, late, ask = StoredItems(store), fake("d2"), store.items

    def fail(*_: Any) -> Any:
        monkeypatch.setattr(store, "items", ask)
        raise error

    monkeypatch.setattr(store, "items", fail)
    items.introduce(late)
    assert late.put == {}
    look(UserEventCache(store, items=items))
    assert late.put == {"new": COLUMNS}


class Picky(FakeRanker):
    """Cannot stand one item."""

    artifact = SimpleNamespace(digest="d1")

    def put_items(self, items: dict[str, Any], times: dict[str, float] | None = None) -> int:
        if "poison" in items:
            raise ZeroDivisionError("a fault of ours")
        return super().put_items(items, times)


def test_an_item_that_cannot_be_used_keeps_back_no_other_and_no_batch(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    items, ranker = StoredItems(store), Picky()
    cache = UserEventCache(store, items=items)
    items.introduce(cast(Ranker, ranker))
    for name, content in (
        ("first", msgspec.json.encode(ItemRecord(COLUMNS))),
        ("poison", msgspec.json.encode(ItemRecord(COLUMNS))),
        ("damaged", b"{"),
        ("last", msgspec.json.encode(ItemRecord(COLUMNS))),
    ):
        store.put_item(name, content)
    informed = []
    cache.look_up(["u"], lambda lookup: informed.append(lookup.informed))
    assert (informed, sorted(ranker.put)) == ([True], ["first", "last"])
    store.put_item("later", msgspec.json.encode(ItemRecord(COLUMNS)))
    look(cache)
    assert sorted(ranker.put) == ["first", "last", "later"]


def test_the_items_of_a_store_on_another_machine_are_read_in_a_thread(
    open_replica: Callable[[], Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = open_replica()
    monkeypatch.setattr(replica.store, "local", False)
    items, threads = replica.store.items, set()

    def note(mark: Any) -> Any:
        threads.add(threading.get_ident())
        return items(mark)

    monkeypatch.setattr(replica.store, "items", note)
    assert put(replica, "/v1/items/new", {"columns": COLUMNS}).status_code == 200
    assert columns_of(replica) == {"new": COLUMNS}  # the answer waited for it
    assert threads and threading.get_ident() not in threads
