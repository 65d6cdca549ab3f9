"""The table of calls: a row that is added is a call that is answered, described, counted and checked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from app.artifact import publish
from app.client import AsyncClient
from app.errors import RequestError
from app.recipe import Serve
from app.serving.http import calls
from app.serving.http.calls import Endpoint
from app.serving.replica import Replica
from tests.fakes import FakeRanker, fake_replica, sample, transport


class LengthRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long is the id of this item?"""

    item: str


class LengthAnswer(msgspec.Struct, frozen=True):
    """That long."""

    model: str
    length: int


def _length(ranker: Any, request: LengthRequest) -> LengthAnswer:
    if not request.item:
        raise RequestError("no text", where="item", remedy="give an id")
    return LengthAnswer(ranker.name, len(request.item))


LENGTH = Endpoint(
    "/v1/length", "The length of an id", LengthAnswer, body=LengthRequest, handler=_length, per_model=True
)
Talk = Callable[[Replica, AsyncClient, httpx.AsyncClient], Awaitable[None]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Talk], None]]:
    """Runs a conversation with a replica that serves one more call, for its model and a further one."""
    with publish(tmp_path / "news", "bundle", {}, {}) as draft:
        (draft.path / "rows").write_bytes(b"")
    monkeypatch.setattr(calls, "CALLS", (*calls.CALLS, LENGTH))
    replica = fake_replica(monkeypatch, tmp_path, Serve(models={"news": str(tmp_path / "news")}), "sesame")

    async def run(converse: Talk) -> None:
        async with (
            AsyncClient("http://test", "sesame", transport=transport(replica)) as client,
            httpx.AsyncClient(transport=transport(replica), base_url="http://test") as http,
        ):
            await converse(replica, client, http)

    yield lambda converse: asyncio.run(run(converse))


def test_a_row_is_a_call_that_is_answered_described_counted_and_checked(
    talk: Callable[[Talk], None],
) -> None:
    async def converse(replica: Replica, client: AsyncClient, http: httpx.AsyncClient) -> None:
        assert await client.call(LENGTH, LengthRequest("four")) == LengthAnswer("fake", 4)
        assert b"/v1/length" in replica.hot_paths  # so that the server's protocol hands it over
        key = {"X-API-Key": "sesame"}
        for model in ("fake", "news"):
            answer = await http.post(f"/v1/models/{model}/length", json={"item": "a"}, headers=key)
            assert answer.json() == {"model": "fake", "length": 1}
        for body, field in (
            ({"item": 4.5}, "item"),
            ({"item": ""}, "item"),
            ({}, "item"),
            ({"id": "a"}, "id"),
        ):
            refused = await http.post("/v1/length", json=body, headers=key)
            assert refused.status_code == 422
            assert refused.json()["errors"][0]["field"] == field
        assert (await http.get("/v1/length", headers=key)).status_code == 405
        assert (await http.post("/v1/length", json={"item": "a"})).status_code == 401
        text = (await http.get("/metrics", headers=key)).text
        assert sample(text, "rayrec_requests_total", route="/v1/length", status="200") == 1
        assert sample(text, "rayrec_requests_total", route="/v1/length", status="422") == 4
        document = (await http.get("/openapi.json")).json()
        operation = document["paths"]["/v1/length"]["post"]
        assert operation["summary"] == "The length of an id"
        assert "/v1/models/{name}/length" in document["paths"]
        assert document["components"]["schemas"]["LengthAnswer"]["required"] == ["model", "length"]
        assert "/v1/length" in (await http.get("/docs")).text

    talk(converse)


def test_the_client_refuses_a_body_that_is_not_the_calls(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: AsyncClient, http: httpx.AsyncClient) -> None:
        with pytest.raises(RequestError, match="str is not the body of /v1/length"):
            await client.call(LENGTH, "four")
        with pytest.raises(RequestError, match="NoneType is not the body"):
            await client.call(LENGTH)

    talk(converse)


def test_every_call_per_model_is_served_for_a_further_model(talk: Callable[[Talk], None]) -> None:
    async def converse(replica: Replica, client: AsyncClient, http: httpx.AsyncClient) -> None:
        per_model = [endpoint for endpoint in calls.CALLS if endpoint.per_model]
        assert [endpoint.path for endpoint in per_model] == [
            "/v1/rank",
            "/v1/recommend",
            "/v1/similar",
            "/v1/items/{id}",
            "/v1/users/{id}",
            "/v1/popular",
            "/v1/latest",
            "/v1/length",
        ]
        bodies = {"/v1/rank": {"user": "u", "items": ["a"]}, "/v1/recommend": {"user": "u"}}
        for endpoint in (endpoint for endpoint in per_model if endpoint.hot):
            body = bodies.get(endpoint.path, {"item": "a"})
            path = endpoint.path_of("news")
            answer = await http.post(path, json=body, headers={"X-API-Key": "sesame"})
            assert (answer.status_code, answer.json()["model"]) == (200, FakeRanker.name)

    talk(converse)


def test_every_call_says_what_it_is() -> None:
    assert len({(endpoint.method, endpoint.path) for endpoint in calls.CALLS}) == len(calls.CALLS)
    for endpoint in calls.CALLS:
        assert endpoint.summary
        assert (endpoint.handler is None) == (endpoint.batched is not None)
        assert callable(endpoint.handler) <= endpoint.per_model
        assert endpoint.body is not None or endpoint.method == "GET"


def test_the_table_is_light_to_import() -> None:
    code = (
        "import sys, app.client\n"
        "heavy = {'ray', 'numpy', 'starlette', 'uvicorn', 'prometheus_client', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
