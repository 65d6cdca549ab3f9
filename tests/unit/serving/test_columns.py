"""Columns of items in answers: by serve.columns, by request, of items that were put, and from the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.errors import RecipeError
from app.recipe import Serve
from app.serving import service
from app.serving.http.calls import NDJSON
from tests.fakes import Conversation

Serving = Callable[..., Conversation]
BODIES = {
    "/v1/rank": {"user": "u1", "items": ["i1", "i2", "i3"]},
    "/v1/recommend": {"user": "u1", "k": 40, "exclude_seen": False},
    "/v1/similar": {"item": "i9", "k": 39},
}
calls = pytest.mark.parametrize("path", BODIES)


def columns(answer: Any) -> dict[str, Any]:
    """Of each item what is shown of it."""
    return {scored["item"]: scored.get("columns") for scored in answer["items"]}


@calls
def test_the_service_shows_its_columns_of_each_item(serve_bundle: Serving, path: str) -> None:
    shown = columns(serve_bundle(columns=["title", "price"]).post(path, BODIES[path]))
    assert shown["i1"] == {"title": "Item 1", "price": 1.5}
    assert shown["i3"] == {"title": "Item 3"}  # which has no price


@calls
def test_a_request_shows_others_or_none(serve_bundle: Serving, path: str) -> None:
    ask = serve_bundle(columns=["title"])
    shown = columns(ask.post(path, {**BODIES[path], "columns": ["blurb"]}))
    assert shown["i1"].keys() == shown["i2"].keys() == {"blurb"}
    assert (len(shown["i1"]["blurb"]), len(shown["i2"]["blurb"])) == (107, 1000)
    assert shown["i2"]["blurb"].endswith("…")
    assert set(columns(ask.post(path, {**BODIES[path], "columns": []})).values()) == {None}
    assert columns(ask.post(path, BODIES[path]))["i2"] == {"title": "Item 2"}  # each its own, cached or not


@calls
def test_a_column_that_there_is_not_is_refused(serve_bundle: Serving, path: str) -> None:
    ask = serve_bundle()
    (error,) = ask.post(path, {**BODIES[path], "columns": ["title", "nope"]}, 422)["errors"]
    assert error["field"] == "columns[1]" and "title" in error["detail"] and "nope" not in error["detail"]
    assert ask.post(path, {**BODIES[path], "columns": ["title"] * 33}, 422)["errors"][0]["field"] == "columns"


def test_what_was_put_is_shown_at_once(serve_bundle: Serving) -> None:
    ask = serve_bundle(columns=["title", "price"])
    recommend = BODIES["/v1/recommend"]
    assert columns(ask.post("/v1/recommend", recommend))["i1"] == {"title": "Item 1", "price": 1.5}
    ask("PUT", "/v1/items/i1", json={"columns": {"title": "Changed"}})
    ask("PUT", "/v1/items/new", json={"columns": {"title": "New", "price": 2, "blurb": "b" * 2000}})
    assert columns(ask.post("/v1/recommend", recommend))["i1"] == {"title": "Changed"}
    shown = columns(ask.post("/v1/rank", {"user": "u1", "items": ["new", "nowhere"]}))
    assert shown == {"new": {"title": "New", "price": 2}, "nowhere": {}}


def test_columns_stand_beside_reasons_and_in_lines(serve_bundle: Serving) -> None:
    ask = serve_bundle(columns=["title"])
    explained = ask.post("/v1/rank", {**BODIES["/v1/rank"], "explain": True})["items"]
    assert all(scored["because"] and scored["columns"]["title"] for scored in explained)
    lines = [BODIES["/v1/rank"], {**BODIES["/v1/recommend"], "columns": ["price"]}]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    answer = ask("POST", "/v1/batch_rank", content=content, headers={"Content-Type": NDJSON})
    ranked, recommended = (columns(json.loads(line)) for line in answer.text.splitlines())
    assert (ranked["i1"], recommended["i1"]) == ({"title": "Item 1"}, {"price": 1.5})


def test_a_service_does_not_start_with_columns_that_its_bundle_lacks(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service.processes, "end_dead_runs", lambda: None)
    monkeypatch.setattr(service, "check_port", lambda _: None)
    settings = Serve(columns=["title", "titel", "pict"], store=str(tmp_path))
    with pytest.raises(RecipeError) as error, service.running(bundle, settings):
        pass
    assert error.value.where == "serve.columns"
    assert "'titel', 'pict'" in str(error.value) and "price, blurb" in str(error.value)
