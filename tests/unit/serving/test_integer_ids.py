"""Integers where ids stand mean their decimal text; booleans and other numbers are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.bundle.request.requests import RankRequest, RecommendRequest, SimilarRequest
from app.events import HistoryEvent
from app.serving.http.calls import NDJSON
from tests.fakes import Conversation

Serving = Callable[..., Conversation]
MOMENT = {"context": {"timestamp": 1_706_000_000}}
LONG = 123456789012345678901234567890


@pytest.fixture
def ask(serve_bundle: Serving) -> Conversation:
    """A service that knows an item "9" and events of a user "7" on it."""
    ask = serve_bundle()
    assert ask("PUT", "/v1/items/9", json={"columns": {"price": 9}}).status_code == 200
    ask.post("/v1/feedback", {"events": [{"user": 7, "item": 9, "event": "view", "timestamp": 17e8}]}, 202)
    return ask


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rank", {"user": 7, "items": [9, "i2", -5, LONG], **MOMENT}),
        ("/v1/rank", {"user": 8, "items": ["i1", "i2"], "history": [{"item": 9}, {"item": "i4"}], **MOMENT}),
        ("/v1/recommend", {"user": 7, "k": 41, "exclude_seen": False, "exclude": [9, "i1"], **MOMENT}),
        ("/v1/similar", {"item": 9}),
    ],
)
def test_an_integer_is_its_text(ask: Conversation, path: str, body: dict[str, Any]) -> None:
    def texts(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                name: inner if name in ("context", "k") else texts(inner) for name, inner in value.items()
            }
        if isinstance(value, list):
            return [texts(inner) for inner in value]
        return str(value) if type(value) is int else value

    answer = ask.post(path, body)
    assert answer == ask.post(path, texts(body))
    items = {scored["item"] for scored in answer["items"]}
    if path == "/v1/recommend":
        assert len(items) == 39 and not items & {"9", "i1"}
    if "items" in body:
        assert items == set(map(str, body["items"]))


def test_feedback_and_reads_know_the_same_user(ask: Conversation) -> None:
    assert ask.get("/v1/users/7")["events"] == [{"item": "9", "event": "view", "timestamp": 17e8}]
    assert ask.get("/v1/items/9")["columns"] == {"price": 9}


def test_integers_in_lines(ask: Conversation) -> None:
    lines = [{"user": 7, "items": [9, "i2"]}, {"user": 7, "k": 2, "exclude": [9]}, {"user": True}]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    answer = ask("POST", "/v1/batch_rank", content=content, headers={"Content-Type": NDJSON})
    ranked, recommended, refused = map(json.loads, answer.text.splitlines())
    assert {scored["item"] for scored in ranked["items"]} == {"9", "i2"}
    assert len(recommended["items"]) == 2
    assert (refused["status"], refused["errors"][0]["field"]) == (422, "user")


@pytest.mark.parametrize("wrong", [True, 7.0, 1.5, None, [7], {"id": 7}, 10**300])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/rank", lambda wrong: {"user": wrong, "items": [9]}, "user"),
        ("/v1/rank", lambda wrong: {"user": 7, "items": [9, wrong]}, "items[1]"),
        (
            "/v1/rank",
            lambda wrong: {"user": 7, "items": [9], "history": [{"item": wrong}]},
            "history[0].item",
        ),
        ("/v1/recommend", lambda wrong: {"user": 7, "exclude": [wrong]}, "exclude[0]"),
        ("/v1/similar", lambda wrong: {"item": wrong}, "item"),
        ("/v1/feedback", lambda wrong: {"events": [{"user": 7, "item": wrong}]}, "events[0].item"),
    ],
)
def test_what_is_neither_text_nor_an_integer_is_refused_by_its_field(
    ask: Conversation, path: str, body: Callable[[Any], Any], field: str, wrong: Any
) -> None:
    assert ask.post(path, body(wrong), 422)["errors"][0]["field"] == field


def test_integers_from_python(ask: Conversation) -> None:
    ranker: Any = ask.replica.ranker
    numbers = RankRequest(7, ["i1", 9], history=[HistoryEvent(9)])  # type: ignore[arg-type, list-item]
    assert {scored.item for scored in ranker.rank([numbers])[0].items} == {"i1", "9"}
    (recommended,) = ranker.recommend([RecommendRequest(7, k=41, exclude=[9])])  # type: ignore[arg-type, list-item]
    assert "9" not in {scored.item for scored in recommended.items}
    similar = ranker.similar([SimilarRequest(9)])  # type: ignore[arg-type]
    assert similar == ranker.similar([SimilarRequest("9")])
