"""HTTP on the hot path, over real sockets: which calls take it, and that none is lost or mixed up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from app.serving.http import protocol

HOT = b"POST /v1/rank HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, "Echo"], Awaitable[None]]


class Echo:
    """A handler that answers with what it was sent, at once or, where it has `replies`, by the test."""

    hot_paths = (b"/v1/rank",)
    streamed_paths = (b"/v1/stream",)

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, str]] = []
        self.replies: list[protocol.Reply] | None = None

    def has_key(self, headers: protocol.Headers) -> bool:
        return headers.get(b"x-api-key") != b"wrong"

    def handle(self, path: str, body: bytes, request_id: str, reply: protocol.Reply) -> None:
        self.calls.append((path, body, request_id))
        if self.replies is not None:
            self.replies.append(reply)
        else:
            reply(200, b"hot " + body, {"content-type": "application/json"})


async def usual(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application: everything that is not hot."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    content = b"usual " + scope["method"].encode() + b" " + body
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def serving(patch: pytest.MonkeyPatch, handler: Echo) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")
    protocol.install(handler, max_body_bytes=1000)
    config = uvicorn.Config(usual, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


def talk(patch: pytest.MonkeyPatch, converse: Talk) -> Echo:
    """Run a conversation on one connection."""

    async def run() -> Echo:
        handler = Echo()
        async with serving(patch, handler) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.wait_for(converse(reader, writer, handler), 10)
            writer.close()
        return handler

    return asyncio.run(run())


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return head, await reader.readexactly(int(length.partition(b":")[2]))


def hot(body: bytes, *further: bytes) -> bytes:
    return HOT + b"".join(further) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_a_plain_call_goes_to_the_handler_and_keeps_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        for number in range(3):
            writer.write(hot(b"call %d" % number, b"X-Request-ID: id-%d\r\n" % number))
            head, body = await answer(reader)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-request-id: id-%d\r\n" % number in head
            assert body == b"hot call %d" % number

    handler = talk(monkeypatch, converse)
    assert handler.calls == [("/v1/rank", b"call %d" % number, f"id-{number}") for number in range(3)]


def test_a_body_in_pieces_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        for byte in hot(b"slowly"):
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await answer(reader))[1] == b"hot slowly"

    talk(monkeypatch, converse)


def test_a_call_without_an_id_is_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        writer.write(hot(b"a"))
        head, _ = await answer(reader)
        assert f"x-request-id: {handler.calls[0][2]}".encode() in head
        assert len(handler.calls[0][2]) == 16

    talk(monkeypatch, converse)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/rank HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        HOT.replace(b"/v1/rank", b"/v1/other") + b"Content-Length: 1\r\n\r\nx",
        HOT.replace(b"application/json", b"text/plain") + b"Content-Length: 1\r\n\r\nx",
        HOT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        HOT + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        HOT + b"X-API-Key: wrong\r\nContent-Length: 1\r\n\r\nx",
        HOT + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
        HOT + b"\r\n",
    ],
)
def test_anything_else_goes_the_usual_way_and_hot_calls_work_after_it(
    monkeypatch: pytest.MonkeyPatch, request_: bytes
) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        writer.write(request_)
        assert (await answer(reader))[1].startswith(b"usual ")
        assert handler.calls == []
        writer.write(hot(b"after"))
        assert (await answer(reader))[1] == b"hot after"

    talk(monkeypatch, converse)


def test_close_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        writer.write(hot(b"last", b"Connection: close\r\n"))
        head, body = await answer(reader)
        assert b"connection: close" in head
        assert body == b"hot last"
        assert await reader.read() == b""

    talk(monkeypatch, converse)


def test_a_request_sent_before_the_answer_is_never_mixed_up_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        handler.replies = []
        writer.write(hot(b"first") + hot(b"second"))
        while not handler.replies:
            await asyncio.sleep(0)
        handler.replies[0](200, b"of the first", {})
        head, body = await answer(reader)
        assert body == b"of the first"
        assert b"connection: close" in head, "the second is to be sent again"
        assert await reader.read() == b""

    handler = talk(monkeypatch, converse)
    assert [body for _, body, _ in handler.calls] == [b"first"]


def test_draining_answers_what_was_taken_and_then_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        handler = Echo()
        handler.replies = []
        async with serving(monkeypatch, handler) as (server, port):
            idle = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hot(b"owed"))
            while not handler.replies:
                await asyncio.sleep(0)
            server.should_exit = True
            assert await idle[0].read() == b"", "an idle connection is closed at once"
            handler.replies[0](200, b"paid", {})
            head, body = await answer(reader)
            assert body == b"paid"
            assert b"connection: close" in head

    asyncio.run(asyncio.wait_for(run(), 10))


def test_an_answer_to_a_caller_that_left_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        handler.replies = []
        writer.write(hot(b"gone"))
        while not handler.replies:
            await asyncio.sleep(0)
        writer.transport.abort()
        await asyncio.sleep(0.05)  # for the server to notice; either way the reply must not raise
        handler.replies[0](200, b"for nobody", {})

    talk(monkeypatch, converse)


def test_serve_neither_ends_a_stream_nor_reads_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own headers tell it so, and the caller's never reach it: of some it would fail."""
    scopes: list[dict[bytes, bytes]] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(dict(scope["headers"]))
        await usual_application(scope, receive, send)

    usual_application = usual
    monkeypatch.setitem(globals(), "usual", noting)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        for path in (b"/v1/stream?a", b"/v1/other"):
            own = b"X-Request-Timeout-Seconds: 7\r\nX-Request-Disconnect-Disabled: \xff\r\n"
            own += b"Serve_Multiplexed_Model_Id: \xff\r\nX-Request-ID: \xff\r\nContent-Length: 1\r\n\r\nx"
            writer.write(HOT.replace(b"/v1/rank", path) + own)
            assert (await answer(reader))[1] == b"usual POST x"

    talk(monkeypatch, converse)
    names = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
    assert [[scope.get(name) for name in names] for scope in scopes] == [[b"0", b"?1"], [None, None]]
    assert not {b"serve_multiplexed_model_id", b"x-request-id"} & {name for scope in scopes for name in scope}


def test_a_body_that_never_ends_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_S", 0.05)

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        writer.write(HOT + b"Content-Length: 100\r\n\r\nsome of it")
        head, body = await answer(reader)
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head
        assert b"took too long" in body
        assert await reader.read() == b""
        assert handler.calls == []

    talk(monkeypatch, converse)


@pytest.mark.parametrize("before", [b"", hot(b"good"), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_what_is_not_http_gets_a_problem_document_and_the_connection_closed(
    monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        if before:
            writer.write(before)
            await answer(reader)
        writer.write(b"NONSENSE\r\n\r\n")
        head, body = await answer(reader)
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["status"] == 400
        assert await reader.read() == b""

    talk(monkeypatch, converse)


def test_nonsense_after_a_call_does_not_cost_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Echo) -> None:
        handler.replies = []
        writer.write(hot(b"first") + b"\x00\x01\r\n\r\n")
        while not handler.replies:
            await asyncio.sleep(0)
        handler.replies[0](200, b"of the first", {})
        head, body = await answer(reader)
        assert (head.split(b" ")[1], body) == (b"200", b"of the first")
        assert await reader.read() == b""

    talk(monkeypatch, converse)
