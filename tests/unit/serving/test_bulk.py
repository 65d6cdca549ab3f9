"""POST /v1/batch_rank without Ray: JSON lines in and out, in order, streamed, of bounded memory."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from app.bundle.request.json_lines import Lines, read_line
from app.bundle.request.requests import RankRequest, RecommendRequest
from app.events import Event
from app.recipe import Serve
from app.serving.http.calls import NDJSON
from app.serving.replica import Replica
from app.serving.scoring import bulk
from app.serving.scoring.bulk import PATH
from tests.fakes import FakeRanker, fake_replica, sample, transport

Messages = list[dict[str, Any]]
RANK = {"user": "u1", "items": ["a", "ccc", "bb"]}


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Replica]:
    def make(key: str | None = None, **settings: Any) -> Replica:
        return fake_replica(monkeypatch, tmp_path, Serve(**settings), key)

    return make


async def post(replica: Replica, content: Any, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
        return await client.post(PATH, content=content, headers={"Content-Type": NDJSON, **headers})


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == NDJSON
    return [json.loads(line) for line in response.content.splitlines()]


def batch(replica: Replica, content: Any) -> list[dict[str, Any]]:
    return answers(asyncio.run(post(replica, content)))


def lines(*requests: Any) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def test_a_line_is_ranked_or_recommended_and_answered_in_its_order(make: Callable[..., Replica]) -> None:
    first, second, third = batch(make(), lines(RANK, {"user": "new", "k": 2}, {**RANK, "k": 1})[:-1])
    assert first["items"][0] == {"item": "ccc", "score": 3.0}
    assert [scored["item"] for scored in second["items"]] == ["ccc", "bb"]
    assert (second["cold_start"], len(third["items"])) == (True, 3)
    assert (third["model"], third["version"]) == ("fake", "v1")


def test_a_broken_line_is_a_problem_in_its_place_and_the_others_are_answered(
    make: Callable[..., Replica],
) -> None:
    broken: list[Any] = [b"{", b"[1]", b'{"user": "u", "items": ["\xff"]}', b'{"user": 1.5}', b'{"user": ""}']
    for text, status in zip(broken, (400, 422, 400, 422, 422), strict=True):
        good = lines(RANK)
        answered = batch(make(), good + b"\r\n" + text + b"\n" + good)
        assert [answer.get("status", 200) for answer in answered] == [200, status, 200]
        assert answered[1]["line"] == 3  # as an editor counts
    assert batch(make(), lines({"user": "boom"}))[0]["status"] == 500


def test_a_line_that_is_too_long_is_refused_alone(make: Callable[..., Replica]) -> None:
    long = json.dumps({"user": "u", "items": ["x" * 200] * 20}).encode() + b"\n"
    answered = batch(make(max_body_bytes=2000), long + lines(RANK) + long)
    statuses = [(answer.get("status", 200), answer.get("line")) for answer in answered]
    assert statuses == [(413, 1), (200, None), (413, 3)]


def test_nothing_gets_nothing(make: Callable[..., Replica]) -> None:
    assert batch(make(), b"") == batch(make(), b"\n \n\r\n") == []


def test_stored_events_count(make: Callable[..., Replica]) -> None:
    replica = make()
    replica.store.append([Event("u1", "a", timestamp=5.0)])
    assert batch(replica, lines(RANK))[0]["items"][0] == {"item": "a", "score": 101.0}


def test_what_is_no_batch_is_refused(make: Callable[..., Replica]) -> None:
    replica = make("sesame", max_bulk_streams=1)

    async def statuses() -> list[int]:
        key = {"X-API-Key": "sesame"}
        responses = [
            await post(replica, lines(RANK)),
            await post(replica, lines(RANK), **key, **{"Content-Type": "application/json"}),
            await post(replica, lines(RANK), **key, **{"Content-Encoding": "gzip"}),
        ]
        replica.bulk.streams = 1
        responses.append(await post(replica, lines(RANK), **key))
        assert responses[-1].headers["retry-after"] == "1"
        replica.bulk.streams = 0
        responses.append(await post(replica, lines(RANK), **key))
        async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
            responses.append(await client.get(PATH))
        return [response.status_code for response in responses]

    assert asyncio.run(statuses()) == [401, 415, 415, 429, 200, 405]
    assert replica.bulk.streams == 0


def test_more_lines_than_allowed_end_the_batch(make: Callable[..., Replica]) -> None:
    read = []

    async def endless() -> AsyncIterator[bytes]:
        for count in range(1000):
            read.append(count)
            yield lines({"user": "u"})

    answered = batch(make(max_bulk_lines=20), endless())
    assert [answer.get("status", 200) for answer in answered] == [200] * 20 + [413]
    assert answered[-1]["line"] == 21
    assert len(read) < 30


@pytest.mark.parametrize("more", [None, b" "])
def test_silence_ends_the_batch(make: Callable[..., Replica], more: bytes | None) -> None:
    """Bytes that make no line are silence too."""

    async def stuck() -> AsyncIterator[bytes]:
        yield lines(RANK)
        while more is not None:
            await asyncio.sleep(0)
            yield more
        await asyncio.Event().wait()

    answered = batch(make(request_timeout_s=0.1), stuck())
    assert [answer.get("status", 200) for answer in answered] == [200, 408]
    assert answered[1]["line"] == 2


async def talk(
    replica: Replica, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    headers = [(b"content-type", NDJSON.encode())]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
    response = await replica(Request(scope, receive))
    await response(scope, receive, send)


def test_a_line_is_answered_before_the_next_is_sent(make: Callable[..., Replica]) -> None:
    async def run() -> int:
        answered, sent = asyncio.Semaphore(1), 0

        async def receive() -> dict[str, Any]:
            nonlocal sent
            await answered.acquire()
            sent += 1
            return {"type": "http.request", "body": lines(RANK), "more_body": sent < 5}

        async def send(message: dict[str, Any]) -> None:
            if b"ccc" in message.get("body", b""):
                answered.release()

        await talk(make(request_timeout_s=5), receive, send)
        return sent

    assert asyncio.run(run()) == 5


def test_a_reader_that_takes_nothing_stops_the_reading(make: Callable[..., Replica]) -> None:
    replica, read = make(request_timeout_s=0.1), []

    async def receive() -> dict[str, Any]:
        read.append(1)
        return {"type": "http.request", "body": lines(*[RANK] * 100), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    asyncio.run(talk(replica, receive, send))
    assert len(read) == 1
    assert replica.bulk.streams == 0
    assert replica.metrics.requests[PATH, 499] == 1


def test_a_client_that_leaves_ends_the_batch(make: Callable[..., Replica]) -> None:
    replica, sent = make(), []
    messages: Messages = [{"type": "http.request", "body": lines(RANK), "more_body": True}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(talk(replica, receive, send))
    assert [message.get("more_body") for message in sent] == [None, True]
    assert replica.metrics.requests[PATH, 499] == 1


def test_interactive_calls_come_between(make: Callable[..., Replica]) -> None:
    """A batch of 2,000 lines in one piece, ranked in windows of about 1,000 candidates."""
    replica, ended = make(), []

    async def run() -> None:
        async def bulk() -> None:
            await post(replica, lines(*[{"user": "u", "items": [f"i{n}" for n in range(100)]}] * 2000))
            ended.append("bulk")

        async def interactive() -> None:
            while replica.bulk.streams == 0:
                await asyncio.sleep(0)
            async with httpx.AsyncClient(transport=transport(replica), base_url="http://test") as client:
                await client.post("/v1/rank", json=RANK)
            ended.append("interactive")

        await asyncio.gather(bulk(), interactive())

    asyncio.run(run())
    assert ended == ["interactive", "bulk"]
    ranker = replica.ranker
    assert isinstance(ranker, FakeRanker)
    assert max(ranker.batches) <= 12
    assert sample(replica.described()[1], "rayrec_bulk_lines_total", status="200") == 2000


@pytest.mark.parametrize("name", ["look_up", "on_answer"])
def test_a_fault_of_ours_never_leaves_a_batch_without_its_end(
    make: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One before the lines are read, or one when the first is answered; the next batch is as ever."""
    replica = make()
    target = replica.user_events if name == "look_up" else bulk.Window
    original, faults = getattr(target, name), iter([True])

    def fail_once(*arguments: Any) -> Any:
        if next(faults, False):
            raise ZeroDivisionError("a fault of ours")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail_once)
        answered = batch(replica, lines(RANK, RANK))
    assert next(faults, None) is None
    assert 1 <= sum(answer.get("status", 200) == 500 for answer in answered) <= 2
    assert [len(answer["items"]) for answer in batch(replica, lines(RANK, RANK))] == [3, 3]


def test_the_documentation_tells_of_it(make: Callable[..., Replica]) -> None:
    async def get(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport(make()), base_url="http://test") as client:
            return await client.get(path)

    call = asyncio.run(get("/openapi.json")).json()["paths"][PATH]["post"]
    assert list(call["requestBody"]["content"]) == [NDJSON]
    assert "lines of" in asyncio.run(get("/docs")).text


def test_items_in_an_id_do_not_make_a_ranking() -> None:
    assert read_line(b'{"user": "say \\"items\\""}') == RecommendRequest('say "items"')
    assert read_line(b'{"user": "u", "exclude": ["items"]}') == RecommendRequest("u", exclude=["items"])
    assert read_line(b'{"items": ["a"], "user": "u"}') == RankRequest("u", ["a"])


@given(
    st.lists(st.binary(max_size=8).map(lambda text: text.replace(b"\n", b"-"))), st.lists(st.integers(0, 80))
)
def test_pieces_make_no_difference(texts: list[bytes], cuts: list[int]) -> None:
    whole = b"\n".join(texts)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    cutter, numbered = Lines(5), []
    for start, end in itertools.pairwise(edges):
        numbered += cutter.feed(whole[start:end])
    numbered += cutter.end()
    wanted = [(n, text if len(text) <= 5 else None) for n, text in enumerate(texts, 1)]
    assert numbered == [(n, text) for n, text in wanted if text is None or text.strip()]
