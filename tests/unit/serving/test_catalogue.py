"""GET of items, users, popular and latest: what the service knows, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from app.data.dataset import Dataset
from app.errors import MachineError
from tests.fakes import Conversation

Serving = Callable[..., Conversation]


def events_of(dataset: Dataset, column: str, row: int) -> list[tuple[float, str]]:
    """Seconds and types of the events of a user or an item in the log."""
    events: list[tuple[float, str]] = []
    for part in dataset.parts:
        users = np.repeat(np.arange(len(part.indptr) - 1), np.diff(part.indptr))
        rows = {"user": users, "item": np.asarray(part.item)}[column] == row
        kinds = [dataset.schema.events[kind] for kind in part.event[rows]]
        events += zip((part.time[rows] / 1e6).tolist(), kinds, strict=True)
    return sorted(events)


def test_an_item_is_shown_with_its_events_and_all_its_columns(
    serve_bundle: Serving, described: Dataset
) -> None:
    ask = serve_bundle()
    item = ask.get("/v1/items/i1")
    assert (item["item"], item["known"], item["trained"]) == ("i1", True, True)
    assert item["events"] == len(events_of(described, "item", 1))
    assert {name: item["columns"][name] for name in ("title", "price")} == {"title": "Item 1", "price": 1.5}
    assert ask.get("/v1/items/i40")["trained"] is False
    assert len(ask.get("/v1/items/i2")["columns"]["blurb"]) > 1000  # whole, as one item alone is shown
    assert "price" not in ask.get("/v1/items/i3")["columns"]


@pytest.mark.parametrize("name", ["a/b", "ä?x=1#y", "100%", "two words"])
def test_an_item_that_was_put_is_known_whatever_its_id(serve_bundle: Serving, name: str) -> None:
    ask, path = serve_bundle(), f"/v1/items/{quote(name, safe='')}"
    assert "PUT /v1/items" in ask.get(path, 404)["detail"]
    assert ask("PUT", path, json={"columns": {"title": "new", "price": 3}}).status_code == 200
    for prefix in ("/v1", "/v1/models/tiny"):
        item = ask.get(f"{prefix}/items/{quote(name, safe='')}")
        assert (item["item"], item["known"], item["trained"], item["events"]) == (name, False, False, 0)
        assert item["columns"] == {"title": "new", "price": 3}
    assert [listed["item"] for listed in ask.get("/v1/latest?k=1")["items"]] == [name]


@pytest.mark.parametrize("kind", ["items", "users"])
def test_an_id_that_cannot_be_one_is_refused_by_the_name_of_its_field(
    serve_bundle: Serving, kind: str
) -> None:
    ask = serve_bundle()
    for name in ("", "%ff", 257 * "x"):
        assert ask.get(f"/v1/{kind}/{name}", 422)["errors"][0]["field"] == "id"


def test_a_user_is_shown_with_the_events_of_the_log_and_of_feedback(
    serve_bundle: Serving, described: Dataset
) -> None:
    ask = serve_bundle()
    user = ask.get("/v1/users/u1")
    assert (user["user"], user["known"], user["trained"]) == ("u1", True, True)
    logged = [(event["timestamp"], event["event"]) for event in user["events"]]
    assert logged == events_of(described, "user", 1)[-len(logged) :]  # as many as a history has
    assert len(logged) == described.schema.history
    again = {"user": "u1", **user["events"][0]}  # one that the log has counts once
    ask.post("/v1/feedback", {"events": [again, {"user": "u1", "item": "i9", "event": "buy"}]}, 202)
    after = ask.get("/v1/users/u1")["events"]
    assert after[:-1] == user["events"]
    assert (after[-1]["item"], after[-1]["event"]) == ("i9", "buy")


def test_a_user_by_feedback_alone_and_a_stranger(serve_bundle: Serving) -> None:
    ask = serve_bundle()
    assert "such a user" in ask.get("/v1/users/new%2Fuser", 404)["detail"]
    sent = [{"user": "new/user", "item": f"i{n}", "event": "view", "timestamp": 1e9 + n} for n in range(60)]
    ask.post("/v1/feedback", {"events": sent}, 202)
    user = ask.get("/v1/models/tiny/users/new%2Fuser")
    assert (user["known"], user["trained"]) == (False, False)
    assert [event["item"] for event in user["events"]] == [f"i{n}" for n in range(10, 60)]  # the last 50


def test_a_user_while_the_store_does_not_answer(
    serve_bundle: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = serve_bundle(), []

    def gone(*_: Any) -> Any:
        asked.append(1)
        raise MachineError("the disk is gone", where="store")

    for method in ("changes", "unchanged", "recent"):
        monkeypatch.setattr(ask.replica.store, method, gone)
    known = ask.get("/v1/users/u1")
    assert known["events"] and "store" in known["degraded"]
    assert "try again" in ask.get("/v1/users/stranger", 503)["detail"]
    assert asked


def test_popular_items_come_by_their_events(serve_bundle: Serving, described: Dataset) -> None:
    counts = {f"i{row}": len(events_of(described, "item", row)) for row in range(1, 41)}
    listed = serve_bundle().get("/v1/popular?k=40")["items"]
    assert {item["item"]: item["count"] for item in listed} == {i: n for i, n in counts.items() if n}
    assert [item["count"] for item in listed] == sorted((n for n in counts.values() if n), reverse=True)


def test_latest_items_come_by_their_first_event(serve_bundle: Serving, described: Dataset) -> None:
    met = {f"i{row}": events_of(described, "item", row) for row in range(1, 41)}
    first = {item: events[0][0] for item, events in met.items() if events}
    listed = serve_bundle().get("/v1/latest?k=40")["items"]
    assert {item["item"]: item["timestamp"] for item in listed} == pytest.approx(first)
    times = [item["timestamp"] for item in listed]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("path", ["/v1/popular", "/v1/latest", "/v1/models/tiny/popular"])
def test_lists_have_limits_and_columns(serve_bundle: Serving, path: str) -> None:
    ask = serve_bundle(max_k=20, columns=["title"])
    assert len(ask.get(path)["items"]) == 10
    assert all(item["columns"].keys() == {"title"} for item in ask.get(path)["items"])
    first = ask.get(f"{path}?k=1&columns=price&columns=blurb")["items"][0]
    assert "title" not in first["columns"] and "blurb" in first["columns"]
    assert "columns" not in ask.get(f"{path}?columns=")["items"][0]
    for query, field in (("k=0", "k"), ("k=21", "k"), ("k=x", "k"), ("k=1&k=2", "k"), ("kk=1", "kk")):
        assert ask.get(f"{path}?{query}", 422)["errors"][0]["field"] == field
    assert ask.get(f"{path}?columns=nope", 422)["errors"][0]["field"] == "columns[0]"
    answer = ask("POST", path, json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_further_model_has_its_own_and_a_key_is_asked_for(serve_bundle: Serving, bundle: Path) -> None:
    ask, key = serve_bundle("sesame", models={"second": str(bundle)}), {"X-API-Key": "sesame"}
    for path in ("items/i1", "users/u1", "popular", "latest"):
        ask.get(f"/v1/{path}", 401)
        answer = ask.get(f"/v1/models/second/{path}", headers=key)
        assert answer == ask.get(f"/v1/{path}", headers=key)
        ask.get(f"/v1/models/third/{path}", 404, headers=key)
