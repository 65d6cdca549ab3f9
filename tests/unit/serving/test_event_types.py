"""Feedback of event types that training did not know: said in the answer and the metrics, and seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.bundle.request.requests import Accepted
from app.serving.metrics import Metrics
from tests.fakes import Conversation, sample

Serving = Callable[..., Conversation]


def event(item: str, kind: str) -> dict[str, Any]:
    return {"user": "u1", "item": item, "event": kind}


def test_an_answer_and_the_metrics_count_unknown_types_and_items(serve_bundle: Serving) -> None:
    ask = serve_bundle()
    known = [event("i1", "view"), event("i2", ""), event("i3", "buy")]
    assert ask.post("/v1/feedback", {"events": known}, 202) == {"accepted": 3}
    odd = [event("i4", "View"), event("i5", "View"), event("new", 'a"b'), event("i6", "view")]
    answer = ask.post("/v1/feedback", {"events": odd}, 202)
    assert answer == {"accepted": 4, "unknown_events": {"View": 2, 'a"b': 1}, "unknown_items": 1}
    text = ask("GET", "/metrics").text
    assert sample(text, "rayrec_unknown_events_total", event="View") == 2
    assert sample(text, "rayrec_unknown_events_total", event='a"b') == 1
    assert sample(text, "rayrec_unknown_items_total") == 1


def test_ten_types_are_named_and_the_others_counted(serve_bundle: Serving) -> None:
    ask = serve_bundle()
    sent = [event("i1", f"kind {n}") for n in range(12) for _ in range(12 - n)]
    unknown = ask.post("/v1/feedback", {"events": sent}, 202)["unknown_events"]
    assert unknown == {**{f"kind {n}": 12 - n for n in range(10)}, "others": 3}


def test_types_in_the_metrics_are_bounded() -> None:
    metrics = Metrics("r1")
    for number in range(1000):
        metrics.stored(Accepted(1, {f"kind {number}": 1}))
    assert len(metrics.unknown_events) < 100
    assert metrics.unknown_events.total() == 1000


def test_an_item_of_an_unknown_type_counts_as_seen_and_changes_no_score(serve_bundle: Serving) -> None:
    ask = serve_bundle()
    body = {"user": "u1", "k": 40, "context": {"timestamp": 1_706_000_000}}
    before = ask.post("/v1/recommend", body)["items"]
    met = before[0]["item"]
    sent = {**event(met, "teleport"), "timestamp": 1_705_999_000}
    ask.post("/v1/feedback", {"events": [sent]}, 202)
    assert ask.post("/v1/recommend", body)["items"] == before[1:]
    assert met in {
        scored["item"] for scored in ask.post("/v1/recommend", {**body, "exclude_seen": False})["items"]
    }


def test_a_history_of_an_unknown_type_is_refused_with_those_there_are(serve_bundle: Serving) -> None:
    body = {"user": "u1", "items": ["i1"], "history": [{"item": "i2", "event": "teleport"}]}
    (error,) = serve_bundle().post("/v1/rank", body, 422)["errors"]
    assert error["field"] == "history[0].event" and "view, buy, skip" in error["detail"]
