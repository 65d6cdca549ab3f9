"""The guard: keys in constant time, no other origin, connections of senders without end are closed."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.recipe import Serve
from app.serving.http import guard
from tests.fakes import fake_replica, transport

ORIGIN = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> httpx.AsyncClient:
    replica = fake_replica(monkeypatch, tmp_path, Serve(max_body_bytes=1000))
    return httpx.AsyncClient(transport=transport(replica), base_url="http://test")


def call(http: httpx.AsyncClient, method: str, path: str, **options: object) -> httpx.Response:
    return asyncio.run(http.request(method, path, **options))  # type: ignore[arg-type]


def test_a_key_of_any_length_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return given == wanted

    monkeypatch.setattr(hmac, "compare_digest", compare)
    digest = guard.key_digest("sesame")
    keys = [b"", b"s", b"sesame", b"x" * 5000, b"\xff"]
    assert [guard.key_holds(b"", key, digest) for key in keys] == [False, False, True, False, False]
    assert [guard.key_holds(b"Bearer " + key, b"", digest) for key in keys] == [
        key == b"sesame" for key in keys
    ]
    assert {(len(given), len(wanted)) for given, wanted in compared} == {(32, 32)}
    assert len(compared) == 2 * len(keys)


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", "/v1/rank"), ("POST", "/v1/rank"), ("GET", "/docs")]
)
def test_a_page_of_another_origin_gets_no_leave(http: httpx.AsyncClient, method: str, path: str) -> None:
    answer = call(http, method, path, headers=ORIGIN)
    assert answer.status_code == {"OPTIONS": 405, "POST": 415, "GET": 200}[method]
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/v1/rank", "text/plain", 415),
        ("/v1/rnk", "application/json", 404),
        ("/docs", "application/json", 405),
    ],
)
def test_a_body_that_nobody_reads_ends_the_connection(
    http: httpx.AsyncClient, path: str, kind: str, status: int
) -> None:
    answer = call(http, "POST", path, content=b"{}", headers={"Content-Type": kind})
    assert (answer.status_code, answer.headers.get("connection")) == (status, "close")
    assert "connection" not in call(http, "GET", "/v1/nothing").headers  # there is none to read


def test_a_slow_body_is_the_senders_fault(monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json"}
    answer = call(http, "POST", "/v1/rank", content=slow(), headers=headers)
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert "too long" in answer.json()["detail"]
