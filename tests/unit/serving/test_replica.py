"""What the replica answers, without Ray: calls, limits, problem documents, keys, batches."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import MachineError
from app.recipe import Serve
from app.serving.replica import Replica
from tests.fakes import fake_replica, sample, transport

RANK = {"user": "u1", "items": ["a", "ccc", "bb"]}


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replica:
    return fake_replica(monkeypatch, tmp_path, Serve(max_body_bytes=20_000))


@pytest.fixture(autouse=True, scope="module")
def one_loop() -> Iterator[None]:
    """Serve's batching lives on one event loop, as a replica has it."""
    global _runner
    with asyncio.Runner() as _runner:
        yield


_runner: asyncio.Runner


def together(replica: Replica, *requests: dict[str, Any]) -> list[httpx.Response]:
    """Send requests at once."""

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
            return list(await asyncio.gather(*(client.request(**request) for request in requests)))

    return _runner.run(send())


def call(replica: Replica, method: str, path: str, **options: Any) -> httpx.Response:
    return together(replica, {"method": method, "url": path, **options})[0]


def post(replica: Replica, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(
        replica, "POST", path, content=content, headers={"Content-Type": "application/json", **headers}
    )


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 2048
    document = response.json()
    assert document["status"] == status
    assert document["title"]
    return dict(document)


def test_rank_is_best_first_and_names_the_model(replica: Replica) -> None:
    answer = post(replica, "/v1/rank", RANK)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model": "fake",
        "version": "v1",
        "items": [{"item": "ccc", "score": 3.0}, {"item": "bb", "score": 2.0}, {"item": "a", "score": 1.0}],
        "cold_start": False,
    }


def test_recommend_and_similar(replica: Replica) -> None:
    recommended = post(replica, "/v1/recommend", {"user": "new", "k": 2}).json()
    assert [scored["item"] for scored in recommended["items"]] == ["ccc", "bb"]
    assert recommended["cold_start"] is True
    assert post(replica, "/v1/similar", {"item": "a"}).json()["items"] == [{"item": "ax", "score": 2.0}]


def test_feedback_changes_the_next_answer_of_that_user_alone(replica: Replica) -> None:
    event = {"user": "u1", "item": "a", "event": "view", "timestamp": "2024-05-01T10:00:00", "value": 2}
    accepted = post(replica, "/v1/feedback", {"events": [event]})
    assert (accepted.status_code, accepted.json()) == (202, {"accepted": 1})
    assert post(replica, "/v1/rank", RANK).json()["items"][0] == {"item": "a", "score": 101.0}
    assert post(replica, "/v1/rank", {**RANK, "user": "u2"}).json()["items"][0]["item"] == "ccc"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b'{"user": "u1", "items": ["a"]',
        b'{"user": "u1", "items": ["a"], "k": NaN}',
        b'{"user": "u1", "items": ["\\ud800"]}',
        b'{"user": "u1", "items": ["\\udc00x"]}',
        b'{"user": "u1", "items": ["\xed\xa0\x80"]}',
        b'{"user": "u1", "items": ["\xff"]}',
    ],
)
def test_what_is_not_json_is_a_400(replica: Replica, body: bytes) -> None:
    assert "not JSON" in problem(post(replica, "/v1/rank", body), 400)["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], ""),
        ({"user": "u1"}, "items"),
        ({"user": 1.5, "items": ["a"]}, "user"),
        ({"user": "u1", "items": ["a", True]}, "items[1]"),
        ({"user": "u1", "items": "a"}, "items"),
        ({**RANK, "kk": 3}, "kk"),
        ({**RANK, "k": "3"}, "k"),
        ({**RANK, "k": 0}, "k"),
        ({"user": "u1", "items": []}, "items"),
        ({"user": "u1", "items": ["a"] * 1001}, "items"),
        ({"user": "u1", "items": ["x" * 257]}, "items[0]"),
        ({"user": "", "items": ["a"]}, "user"),
        ({**RANK, "context": {"timestamp": "yesterday"}}, "context.timestamp"),
        ({**RANK, "history": [{"item": "a", "event": "?"}]}, "history[0].event"),
    ],
)
def test_a_field_that_is_wrong_is_a_422_that_names_it(replica: Replica, body: Any, field: str) -> None:
    errors = problem(post(replica, "/v1/rank", body), 422)["errors"]
    assert [finding["field"] for finding in errors] == [field]


@pytest.mark.parametrize("k", [0, -1, 101, 10**9, 10**30, 2.5, True, None])
def test_k_has_limits(replica: Replica, k: Any) -> None:
    for path, body in (("/v1/recommend", {"user": "u1"}), ("/v1/similar", {"item": "a"})):
        assert problem(post(replica, path, {**body, "k": k}), 422)["errors"][0]["field"] == "k"


def test_a_problem_never_repeats_the_input(replica: Replica) -> None:
    secret = "<script>Zebra42</script>"
    bodies: list[Any] = [
        {"user": secret, "items": []},
        {**RANK, secret: 1},
        {"user": "u1", "items": [secret * 30]},
        {**RANK, "context": {"timestamp": secret}},
    ]
    for body in bodies:
        assert "Zebra42" not in post(replica, "/v1/rank", body).text
    assert "Zebra42" not in call(replica, "GET", "/v1/Zebra42").text


def test_at_most_ten_findings(replica: Replica) -> None:
    events = [{"user": "", "item": "", "timestamp": "?", "value": 1.0}] * 50
    assert len(problem(post(replica, "/v1/feedback", {"events": events}), 422)["errors"]) == 10


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"user": "u1", "item": "a", "timestamp": -5}, "events[0].timestamp"),
        ({"user": "u1", "item": "a", "timestamp": 4e9}, "events[0].timestamp"),
        ({"user": "u1", "item": "a", "timestamp": "9999-12-31"}, "events[0].timestamp"),
        ({"user": "u1", "item": "", "timestamp": 5}, "events[0].item"),
        ({"user": "u1", "item": "a", "rating": 5}, "events[0].rating"),
        ({"user": "u1"}, "events[0].item"),
    ],
)
def test_feedback_that_cannot_be_stored_is_refused_whole(
    replica: Replica, event: dict[str, Any], field: str
) -> None:
    good = {"user": "u1", "item": "a"}
    errors = problem(post(replica, "/v1/feedback", {"events": [event, good]}), 422)["errors"]
    assert errors[0]["field"] == field
    assert replica.store.recent("u1", 10) == []


def test_no_events_and_too_many_are_refused(replica: Replica) -> None:
    assert problem(post(replica, "/v1/feedback", {"events": []}), 422)["errors"][0]["field"] == "events"
    many = {"events": [{"user": "u", "item": "i"}] * 1001}
    assert problem(post(replica, "/v1/feedback", many), 413)


def test_a_long_body_is_refused_before_it_is_read(replica: Replica) -> None:
    read = []

    async def endless() -> AsyncIterator[bytes]:
        for count in range(1000):
            read.append(count)
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    assert problem(post(replica, "/v1/rank", b" " * 20_001), 413)
    assert problem(call(replica, "POST", "/v1/rank", content=endless(), headers=headers), 413)
    assert len(read) < 10


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_only_plain_json_is_taken(replica: Replica, headers: dict[str, str]) -> None:
    answer = call(replica, "POST", "/v1/rank", content=json.dumps(RANK), headers=headers)
    assert "application/json" in problem(answer, 415)["detail"]


def test_wrong_path_and_wrong_method(replica: Replica) -> None:
    assert "/docs" in problem(post(replica, "/v1/ranks", RANK), 404)["detail"]
    answer = call(replica, "GET", "/v1/rank")
    problem(answer, 405)
    assert answer.headers["allow"] == "POST"
    answer = post(replica, "/metrics", {})
    problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"


def test_a_fault_of_ours_shows_the_request_id_and_nothing_else(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    answer = post(replica, "/v1/rank", {**RANK, "user": "boom"}, **{"X-Request-ID": "id-7"})
    document = problem(answer, 500)
    assert document["request_id"] == "id-7"
    assert "fault of ours" not in answer.text
    assert "id-7" in caplog.text


def test_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replica = fake_replica(monkeypatch, tmp_path, Serve(), key="sesame")
    refused = post(replica, "/v1/rank", RANK)
    assert "API key" in problem(refused, 401)["detail"]
    assert refused.headers["www-authenticate"] == "Bearer"
    problem(post(replica, "/v1/rank", RANK, **{"X-API-Key": "sesam"}), 401)
    problem(call(replica, "GET", "/metrics"), 401)
    assert post(replica, "/v1/rank", RANK, **{"X-API-Key": "sesame"}).status_code == 200
    assert post(replica, "/v1/rank", RANK, Authorization="Bearer sesame").status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready", "/docs", "/"):
        assert call(replica, "GET", path).status_code == 200


def test_health_and_model(replica: Replica) -> None:
    assert call(replica, "GET", "/v2/health/live").json() == {"live": True}
    assert call(replica, "GET", "/v2/health/ready").json()["model"] == "fake"
    model = call(replica, "GET", "/v2/models/fake").json()
    assert (model["versions"], model["figures"]) == (["v1"], {"ndcg@10": 0.5})
    problem(call(replica, "GET", "/v2/models/other"), 404)


def test_metrics_count_answers_cold_starts_and_events(replica: Replica) -> None:
    post(replica, "/v1/rank", {**RANK, "user": "new"})
    post(replica, "/v1/rank", b"?")
    post(replica, "/v1/nothing", RANK)
    post(replica, "/v1/feedback", {"events": [{"user": "u", "item": "i"}] * 2})
    text = call(replica, "GET", "/metrics").text
    for value, name, labels in (
        (1, "rayrec_requests_total", {"route": "/v1/rank", "status": "200"}),
        (1, "rayrec_requests_total", {"route": "/v1/rank", "status": "400"}),
        (1, "rayrec_requests_total", {"route": "other", "status": "404"}),
        (1, "rayrec_cold_starts_total", {}),
        (2, "rayrec_events_total", {}),
        (2, "rayrec_request_seconds_count", {"route": "/v1/rank"}),
        (1, "rayrec_batch_size_bucket", {"route": "/v1/rank", "le": "1.0"}),
        (1, "rayrec_model_info", {"model": "fake", "version": "v1"}),
    ):
        assert sample(text, name, replica="r1", **labels) == value


def test_requests_at_once_are_scored_together_and_a_bad_one_spoils_no_other(replica: Replica) -> None:
    bodies: list[dict[str, Any]] = [{**RANK, "user": f"u{n}"} for n in range(10)]
    bodies[5]["history"] = [{"item": "a"}]
    answers = together(replica, *({"method": "POST", "url": "/v1/rank", "json": body} for body in bodies))
    assert [answer.status_code for answer in answers] == [200] * 5 + [422] + [200] * 4
    assert max(replica.ranker.batches) > 1  # type: ignore[attr-defined]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Replica]:
    """A replica that holds one request at most, and whose store waits until the test ends."""
    settings = Serve(max_ongoing_requests=1, max_queued_requests=1, request_timeout_s=0.2)
    replica, release = fake_replica(monkeypatch, tmp_path, settings), threading.Event()
    monkeypatch.setattr(replica.store, "append", lambda events: release.wait(5))
    threading.Timer(1.0, release.set).start()
    yield replica
    release.set()


def test_over_capacity_is_a_429_at_once_and_late_is_a_503(slow: Replica) -> None:
    body = {"events": [{"user": "u", "item": "i"}]}
    answers = together(slow, *[{"method": "POST", "url": "/v1/feedback", "json": body}] * 5)
    assert sorted(answer.status_code for answer in answers) == [429, 429, 429, 503, 503]
    for answer in answers:
        problem(answer, answer.status_code)
        assert answer.headers["retry-after"] == "1"
    assert call(slow, "GET", "/v2/health/live").status_code == 200
    assert slow.in_flight == 2  # what waits for the disk still counts
    slow.writer.close()
    call(slow, "GET", "/v2/health/live")
    assert slow.in_flight == 0


def test_pages_need_nothing_from_elsewhere(replica: Replica) -> None:
    for path in ("/", "/docs"):
        page = call(replica, "GET", path)
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in page.text
        assert "https://" not in page.text
    head = call(replica, "HEAD", "/")
    assert head.status_code == 200


def test_openapi_describes_every_call(replica: Replica) -> None:
    document = call(replica, "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    served = {path.replace("/fake", "/{name}") for path in replica.routes.routes}
    with_id = {f"{label}{{id}}".replace("/fake", "/{name}") for label in replica.routes._with_id}
    served |= with_id
    assert set(document["paths"]) == served - {"/", "/docs", "/openapi.json"}
    schemas = document["components"]["schemas"]
    assert schemas["RankRequest"]["required"] == ["user", "items"]
    assert schemas["RankRequest"]["additionalProperties"] is False
    for reference in set(_references(document)):
        assert reference.rpartition("/")[2] in schemas


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def test_a_store_that_fails_costs_the_stored_events_and_not_the_answer(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"user": "u1", "item": "a", "timestamp": 1}
    assert post(replica, "/v1/feedback", {"events": [event]}).status_code == 202
    assert post(replica, "/v1/rank", RANK).json()["items"][0]["item"] == "a"

    def gone(*_: Any) -> Any:
        raise MachineError("the disk is gone", where="store", remedy="bring it back")

    for read in ("unchanged", "changes"):
        monkeypatch.setattr(replica.store, read, gone)
    monkeypatch.setattr(replica.store, "append", gone)
    answer = post(replica, "/v1/rank", RANK)
    assert answer.status_code == 200
    assert answer.json()["items"][0]["item"] == "ccc"
    assert "stored events" in answer.json()["degraded"]
    document = problem(post(replica, "/v1/feedback", {"events": [event]}), 503)
    assert "disk is gone" not in document["detail"]
    assert "rayrec_degraded_total" in call(replica, "GET", "/metrics").text


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which fails when it is first called."""
    calls = itertools.count()

    def fail_first(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 0:
            raise ZeroDivisionError("a fault of ours")
        return method(*arguments, **named)

    return fail_first


RECOMMEND = {"user": "u1", "k": 2}


@pytest.mark.parametrize(("path", "body"), [("/v1/rank", RANK), ("/v1/recommend", RECOMMEND)])
@pytest.mark.parametrize(
    "fault",
    [
        lambda replica: (replica.user_events, "look_up"),  # before a batch is read
        lambda replica: (replica.metrics.stages["features"], "observe"),  # when it is read
        lambda replica: (replica.metrics.stages["score"], "observe"),  # when it was scored
    ],
)
def test_a_fault_beside_the_scoring_fails_its_batch_and_the_next_one_is_answered(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], fault: Any
) -> None:
    target, name = fault(replica)
    monkeypatch.setattr(target, name, _once(getattr(target, name)))
    request = {"method": "POST", "url": path, "json": body}
    equal, other = request, {**request, "json": {**body, "user": "u2"}}
    assert [answer.status_code for answer in together(replica, request, equal, other)] == [500] * 3
    assert [answer.status_code for answer in together(replica, request, other)] == [200] * 2
    assert replica.in_flight == 0


def test_a_fault_after_the_answers_went_out_costs_none_of_them(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = replica.traffic_split
    monkeypatch.setattr(split, "record_answer", _once(split.record_answer))
    requests = [{"method": "POST", "url": "/v1/rank", "json": {**RANK, "user": f"u{n}"}} for n in range(3)]
    for _ in range(2):
        assert [answer.status_code for answer in together(replica, *requests)] == [200] * 3
    assert replica.metrics.requests == {("/v1/rank", 200): 6}  # each counted once


def test_a_call_that_cannot_be_counted_is_answered_all_the_same(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica.load, "add", _once(replica.load.add))
    for _ in range(2):
        assert post(replica, "/v1/rank", RANK).status_code == 200
    assert replica.in_flight == 0
