"""HTTP as the hot calls need it: from the parser straight to the replica and back.

Serve's way of a request (an ASGI task, a context, a watcher for disconnects, a metric or two)
costs as much as scoring it. A replica's server therefore looks at each request first: a plain
POST to a hot call goes to `CallHandler.handle` without a task or a future, anything else the
usual way. uvicorn parses, keeps connections alive and drains them as before.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Collection, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.serving.http.calls import JSON
from app.serving.http.guard import BODY_S
from app.serving.http.problems import CONTENT_TYPE, Problem

Reply = Callable[[int, bytes, Mapping[str, str]], None]
Headers = dict[bytes, bytes]  # names in lower case

_NOT_PLAIN = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_JSON = JSON.encode()
_request_ids = map("{}{:08x}".format, itertools.repeat(secrets.token_hex(4)), itertools.count())
# These headers steer Serve, and are ours to set; it also fails (500) where one of them is not UTF-8.
_OF_SERVE = frozenset(
    (
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    )
)
# A stream may take long, and is read no faster than it is answered. Serve else ends it after its
# time-out, and reads all of it at once to learn of a disconnect.
_STREAMED = [(b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1")]


class CallHandler(Protocol):
    """Answers hot calls; all on the event loop of the server."""

    hot_paths: Collection[bytes]
    streamed_paths: Collection[bytes]  # of calls that go the usual way, whose body and answer are streamed

    def has_key(self, headers: Headers) -> bool:
        """Whether a call with these headers may be handled; one that may not goes the usual way."""

    def handle(self, path: str, body: bytes, request_id: str, reply: Reply) -> None:
        """Answer a call; `reply` (status, JSON body, further headers) is called exactly once."""


def install(handler: CallHandler, max_body_bytes: int) -> None:
    """Make every HTTP server that this process starts from now on offer hot calls to `handler`."""
    # uvicorn takes a class as well as the name of one.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = partial(HttpProtocol, handler, max_body_bytes)  # type: ignore[assignment]


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        handler: answers hot calls.
        max_body_bytes: longer bodies go the usual way, which refuses them.
    """

    def __init__(self, handler: CallHandler, max_body_bytes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handler, self.max_body_bytes = handler, max_body_bytes
        self._body: list[bytes] | None = None  # of the hot call that is being received
        self._waiting = False  # for the answer of a hot call
        self._last = False  # close after it
        self._call: tuple[str, str] = ("", "")  # path and request id of the hot call
        self._body_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Transport callback; a body that does not come with its head gets a time limit."""
        super().data_received(data)
        if self._body is not None and self._body_timer is None:
            self._body_timer = self.loop.call_later(BODY_S, self._body_late)

    def _body_late(self) -> None:
        self._body_timer, self._body, self._waiting, self._last = None, None, True, True
        problem = Problem(408, "the body took too long to arrive; send it at once")
        self._reply(self._call[1], 408, problem.document(self._call[1]), {"content-type": CONTENT_TYPE})

    def connection_lost(self, exc: Exception | None) -> None:
        """Transport callback: the connection is closed."""
        if self._body_timer is not None:
            self._body_timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Parser callback; the ASGI scope follows later, and only where it is needed."""
        self.url, self.headers, self.expect_100_continue, self._body = b"", [], False, None

    def on_headers_complete(self) -> None:
        """Parser callback: decide the way of the request."""
        if self._waiting:  # sent before the last one was answered; no proxy does that
            self._last = True
            self.flow.pause_reading()
            return
        headers = dict(self.headers)
        path = self.url.partition(b"?")[0]
        if path in self.handler.hot_paths and self._plain(headers) and self.handler.has_key(headers):
            self._body = []
            request_id = headers.get(b"x-request-id", b"")[:64].decode("latin-1")
            self._call = (path.decode(), request_id or next(_request_ids))
            self._last = not self.parser.should_keep_alive()
            return
        url, received = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.expect_100_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self.headers.extend((name, value) for name, value in received if _passes(name, value))
        if path in self.handler.streamed_paths:
            self.headers.extend(_STREAMED)
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is answered, and the connection closed; the base does it in plain text."""
        if self._waiting:  # for an answer, after which no more is read
            self._last = True
            self.flow.pause_reading()
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # within an answer no other can begin
            return
        self._body, self._last = None, True
        request_id, problem = next(_request_ids), Problem(400, "this is not an HTTP request")
        self._reply(request_id, 400, problem.document(request_id), {"content-type": CONTENT_TYPE})

    def _plain(self, headers: Headers) -> bool:
        length = headers.get(b"content-length", b"")
        return (
            self.parser.get_method() == b"POST"
            and length.isdigit()
            and int(length) <= self.max_body_bytes
            and headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == _JSON
            and _NOT_PLAIN.isdisjoint(headers)
            and (self.cycle is None or self.cycle.response_complete)
        )

    def on_body(self, body: bytes) -> None:
        """Parser callback: a piece of the body has come."""
        if self._body is not None:
            self._body.append(body)
        elif not self._waiting:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Parser callback: a hot call is complete, or the usual way goes on."""
        if self._body is not None:
            body, self._body, self._waiting = b"".join(self._body), None, True
            if self._body_timer is not None:
                self._body_timer.cancel()
                self._body_timer = None
            path, request_id = self._call
            self.handler.handle(path, body, request_id, partial(self._reply, request_id))
        elif not self._waiting:
            super().on_message_complete()

    def _reply(self, request_id: str, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._waiting = False
        if self.transport.is_closing():
            return
        further = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        if self._last:
            further += "connection: close\r\n"
        head = f"{further}x-request-id: {request_id}\r\ncontent-length: {len(content)}\r\n\r\n".encode(
            "latin-1"
        )
        self.transport.write(_STATUS[status] + head + content)
        self.server_state.total_requests += 1
        if self._last:
            self.transport.close()
        else:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Timer: nothing has come for a while."""
        if not self._waiting:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server drains: close once no answer is outstanding."""
        if self._waiting or self._body is not None:
            self._last = True
        else:
            super().shutdown()


def _passes(name: bytes, value: bytes) -> bool:
    """Whether Serve may see a header of the caller. Of a strange request id it would fail."""
    return name.replace(b"_", b"-") not in _OF_SERVE and (name != b"x-request-id" or value.isascii())
