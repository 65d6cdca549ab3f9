"""The clients, sync and async, against a replica without Ray and against faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from app import client as client_module
from app.bundle.request.requests import (
    Answer,
    ItemList,
    KnownItem,
    KnownUser,
    ListedItem,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from app.client import RETRIES, AsyncClient, Client
from app.errors import MachineError, RequestError
from app.events import Event, HistoryEvent
from app.recipe import Serve
from tests.fakes import fake_replica, transport

Reply = Callable[[httpx.Request], httpx.Response]
ANSWER = {"model": "m", "version": "1", "items": [{"item": "a", "score": 1.5}]}


def run_sync(reply: Reply, name: str, argument: Any) -> Any:
    with Client("http://test", transport=httpx.MockTransport(reply)) as client:
        return getattr(client, name)(argument)


def run_async(reply: Reply, name: str, argument: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient("http://test", transport=httpx.MockTransport(reply)) as client:
            return await getattr(client, name)(argument)

    return asyncio.run(run())


both = pytest.mark.parametrize("run", [run_sync, run_async])


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that a client asked for, none of which takes time."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client_module.time, "sleep", waited.append)
    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    return waited


@both
def test_an_answer_is_typed(run: Callable[..., Any]) -> None:
    answer = run(lambda request: httpx.Response(200, json=ANSWER), "rank", RankRequest("u", ["a"]))
    assert isinstance(answer, Answer)
    assert (answer.items[0].item, answer.items[0].score) == ("a", 1.5)


@both
def test_a_429_is_tried_again_as_told(run: Callable[..., Any], waits: list[float]) -> None:
    replies = [httpx.Response(429, headers={"Retry-After": wait}) for wait in ("2", "3600")]
    replies.append(httpx.Response(200, json=ANSWER))
    assert run(lambda request: replies.pop(0), "rank", RankRequest("u", ["a"])).model == "m"
    assert waits == [2.0, client_module.LONGEST_WAIT_S]


@both
def test_but_not_for_ever(run: Callable[..., Any], waits: list[float]) -> None:
    seen = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(429, json={"title": "t", "status": 429, "detail": "over capacity"})

    with pytest.raises(RequestError, match="over capacity"):
        run(reply, "rank", RankRequest("u", ["a"]))
    assert (len(seen), waits) == (RETRIES + 1, [1.0] * RETRIES)


@both
@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (
            {
                "status_code": 422,
                "json": {
                    "title": "t",
                    "status": 422,
                    "detail": "wrong",
                    "errors": [{"field": "k", "detail": "big"}],
                },
            },
            RequestError,
            "wrong; k: big",
        ),
        (
            {"status_code": 500, "json": {"title": "t", "status": 500, "detail": "failed"}},
            MachineError,
            "failed",
        ),
        ({"status_code": 404, "text": "nginx"}, RequestError, "HTTP 404"),
        ({"status_code": 200, "text": "<html>"}, MachineError, "check the address"),
        ({"status_code": 200, "json": {"a": 1}}, MachineError, "check the address"),
    ],
)
def test_what_goes_wrong_is_said(
    run: Callable[..., Any], reply: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(lambda request: httpx.Response(**reply), "similar", SimilarRequest("a"))


@both
def test_a_service_that_is_not_there(run: Callable[..., Any]) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(MachineError, match="rayrec serve"):
        run(reply, "recommend", RecommendRequest("u"))


def lines_of(request: httpx.Request) -> httpx.Response:
    """Answers a batch as the service does, and a user "bad" with a problem."""
    answers = []
    for number, line in enumerate(request.content.splitlines(), 1):
        user = json.loads(line)["user"]
        bad = {"title": "t", "status": 422, "detail": "wrong", "line": number}
        answers.append(bad if user == "bad" else {**ANSWER, "model": user})
    return httpx.Response(200, content=b"\n".join(json.dumps(answer).encode() for answer in answers))


def batch(run: Callable[..., Any], reply: Reply, requests: Iterable[RankRequest]) -> list[Any]:
    async def collect(client: AsyncClient) -> list[Any]:
        return [answer async for answer in client.batch_rank(requests)]

    if run is run_sync:
        with Client("http://test", transport=httpx.MockTransport(reply)) as client:
            return list(client.batch_rank(requests))

    async def run_it() -> list[Any]:
        async with AsyncClient("http://test", transport=httpx.MockTransport(reply)) as client:
            return await collect(client)

    return asyncio.run(run_it())


@both
def test_a_batch_of_any_length_is_sent_in_portions(run: Callable[..., Any]) -> None:
    sizes, taken = [], []

    def reply(request: httpx.Request) -> httpx.Response:
        sizes.append(len(request.content))
        assert len(taken) < 1000 * len(sizes)  # not taken before they are needed
        return lines_of(request)

    def requests() -> Iterator[RankRequest]:
        for count in range(3000):
            taken.append(count)
            yield RankRequest(f"u{count}", ["i" * (100_000 if count == 1500 else 50)])

    answers = batch(run, reply, requests())
    assert [answer.model for answer in answers] == [f"u{count}" for count in range(3000)]
    assert sorted(sizes)[-2] <= client_module.BATCH_BYTES < sorted(sizes)[-1]


@both
def test_a_line_that_cannot_be_answered_gets_its_error_in_its_place(run: Callable[..., Any]) -> None:
    good, bad, last = batch(run, lines_of, [RankRequest(user, ["a"]) for user in ("u", "bad", "v")])
    assert (good.model, last.model) == ("u", "v")
    assert isinstance(bad, RequestError)
    assert bad.what == "wrong"
    assert batch(run, lines_of, []) == []


@both
def test_a_batch_that_ends_early_is_an_error(run: Callable[..., Any]) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=lines_of(request).content.partition(b"\n")[0])

    with pytest.raises(MachineError, match="2 lines were sent and 1 answered"):
        batch(run, reply, [RankRequest("u", ["a"])] * 2)
    with pytest.raises(MachineError, match="check the address"):
        batch(run, lambda _: httpx.Response(200, text="<html>"), [RankRequest("u", ["a"])])


def test_every_call_against_a_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replica = fake_replica(monkeypatch, tmp_path, Serve(), key="sesame")

    async def run() -> None:
        async with AsyncClient("http://test", "sesame", transport=transport(replica)) as client:
            assert (await client.ready())["model"] == "fake"
            assert await client.feedback([Event("u", "a"), Event("u", "b")]) == 2
            assert (await client.similar(SimilarRequest("a"))).items[0].item == "ax"
            wanted = [RankRequest("u", ["a", "bb", "ccc"]), RecommendRequest(""), RecommendRequest("u", 2)]
            first, wrong, last = [answer async for answer in client.batch_rank(wanted)]
            assert isinstance(first, Answer) and first.items[0].item == "a"  # of the feedback
            assert isinstance(wrong, RequestError)
            assert isinstance(last, Answer) and len(last.items) == 2
        async with AsyncClient("http://test", transport=transport(replica)) as client:
            with pytest.raises(RequestError, match="API key"):
                await client.feedback([])

    asyncio.run(run())


@both
@pytest.mark.parametrize(
    ("name", "argument", "path", "answer"),
    [
        (
            "item",
            "a/b ä",
            "/v1/items/a%2Fb%20%C3%A4",
            KnownItem("a/b ä", True, True, 3, {"price": 2}, "m", "1"),
        ),
        ("user", 7, "/v1/users/7", KnownUser("7", False, False, [HistoryEvent("a", "view", 5.0)], "m", "1")),
        ("popular", 3, "/v1/popular?k=3", ItemList([ListedItem("a", 4)], "m", "1")),
        ("latest", 3, "/v1/latest?k=3", ItemList([ListedItem("a", None, 5.0)], "m", "1")),
    ],
)
def test_what_is_read_is_typed(
    run: Callable[..., Any], name: str, argument: Any, path: str, answer: Any
) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.raw_path.decode()) == ("GET", path)
        return httpx.Response(200, content=msgspec.json.encode(answer))

    assert run(reply, name, argument) == answer


def test_columns_of_lists_are_sent_one_by_one_and_none_as_an_empty_one() -> None:
    queries: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        queries.append(request.url.query.decode())
        return httpx.Response(200, content=msgspec.json.encode(ItemList([], "m", "1")))

    with Client("http://test", transport=httpx.MockTransport(reply)) as client:
        client.popular(2, ["title", "price"])
        client.latest(2, [])
    assert queries == ["k=2&columns=title&columns=price", "k=2&columns="]
