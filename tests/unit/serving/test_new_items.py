"""PUT /v1/items/{id}, and how every replica and every version learns of items."""

from __future__ import annotations

import asyncio
import json
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
from app.serving.feedback.new_items import Said, StoredItems
from app.serving.feedback.user_events import UserEventCache
from app.serving.http.guard import key_digest
from app.serving.replica import Replica
from app.stores.sqlite_store import SqliteStore
from tests.fakes import FakeRanker, fake_ingress, transport

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


def told(replica: Replica) -> dict[str, Any]:
    return cast(FakeRanker, replica.ranker).put


@pytest.fixture
def open_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Replica]:
    return lambda: fake_ingress(monkeypatch, tmp_path / "store", Serve(max_body_bytes=2000))


def test_an_item_that_was_put_is_known_here_there_and_after_a_restart(
    open_replica: Callable[[], Replica],
) -> None:
    replica, other = open_replica(), open_replica()
    answer = put(replica, "/v1/items/new", {"columns": COLUMNS})
    assert (answer.status_code, answer.json()) == (200, {"item": "new", "ranked_by": "content"})
    assert told(replica) == {"new": COLUMNS}
    assert told(other) == {}
    other.recent.refresh()  # as before every batch
    assert told(other) == told(open_replica()) == {"new": COLUMNS}


def test_a_known_item_is_ranked_by_what_training_learned(open_replica: Callable[[], Replica]) -> None:
    replica = open_replica()
    answer = put(replica, "/v1/items/bb", {"columns": {"price": None}})
    assert answer.json() == {"item": "bb", "ranked_by": "training"}
    assert told(replica) == told(open_replica()) == {"bb": {"price": None}}


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
    assert told(replica) == {name: COLUMNS}


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
    assert asked[-1][0].headers["allow"] == "PUT"
    assert told(replica) == {} == told(open_replica())


def test_there_is_room_for_so_many(open_replica: Callable[[], Replica]) -> None:
    replica = open_replica()
    answers = [put(replica, f"/v1/items/n{n}", {"columns": {}}).status_code for n in range(4)]
    assert answers == [200, 200, 200, 507]
    assert put(replica, "/v1/items/n1", {"columns": COLUMNS}).status_code == 200


def test_the_administrators_key_is_asked_for_and_else_the_api_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replica = fake_ingress(monkeypatch, tmp_path, Serve(), key="sesame")
    good = {"columns": COLUMNS}
    for admin, given, status in (
        (None, "", 401),
        (None, "sesame", 200),
        ("open", "sesame", 401),
        ("open", "open", 200),
    ):
        replica.admin = key_digest(admin) if admin else replica.key
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
    assert told(replica) == {}


def test_a_later_version_is_told_of_what_its_training_did_not_know(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    items = StoredItems(store)
    first = fake("d1", "a")
    items.introduce(cast(Ranker, first))
    items.refresh()
    for name in ("a", "new", "newer"):
        store.put_item(name, msgspec.json.encode(Said(COLUMNS, items.versions(name))))
    second, again = fake("d2", "a", "new"), fake("d1", "a")
    items.introduce(cast(Ranker, second))
    items.introduce(cast(Ranker, again))
    assert sorted(second.put) == ["newer"]  # it brings its own columns of the others
    assert sorted(again.put) == ["a", "new", "newer"]


def test_what_is_put_while_a_version_is_loaded_is_not_lost(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    items = StoredItems(store)
    recent = UserEventCache(store, items=items)
    late = fake("d2")
    items.introduce(late)
    store.put_item("new", msgspec.json.encode(Said(COLUMNS)))
    assert late.put == {}
    recent.refresh()
    assert late.put == {"new": COLUMNS}


def test_a_version_that_is_loaded_while_the_store_fails_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path)
    store.put_item("new", msgspec.json.encode(Said(COLUMNS)))
    items, late, asked = StoredItems(store), fake("d2"), store.items

    def fail(*_: Any) -> Any:
        monkeypatch.setattr(store, "items", asked)
        raise MachineError("busy", where="store")

    monkeypatch.setattr(store, "items", fail)
    items.introduce(late)
    assert late.put == {}
    UserEventCache(store, items=items).refresh()
    assert late.put == {"new": COLUMNS}
