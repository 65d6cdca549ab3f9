"""Ranking requests under way while something happens to a service: every failure is kept."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import httptools

FAILURES = 20  # that are kept as text


class Traffic:
    """Sends requests over keep-alive connections for the block, each waiting for its answer.

    `answers` counts versions of good answers, `failed` what was not answered with a 200 at once,
    `lost` what was not when it was sent once more.

    Args:
        url: of the service.
        users, items: each request ranks all items for the next user.
        connections: at a time.
        pause_s: of a connection between an answer and the next request.
    """

    def __init__(
        self,
        url: str,
        users: Sequence[str],
        items: Sequence[str],
        connections: int = 4,
        pause_s: float = 0.005,
    ) -> None:
        address = urlsplit(url)
        self.host, self.port = str(address.hostname), int(address.port or 80)
        self.users, self.items = itertools.cycle(users), list(items)
        self.connections, self.pause_s = connections, pause_s
        self.answers: Counter[str] = Counter()
        self.failed, self.lost, self.failures = 0, 0, [""][:0]
        self.slowest_s = 0.0
        self._ended = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    @property
    def total(self) -> int:
        """Requests sent and settled."""
        return self.answers.total() + self.lost

    def until(self, requests: int) -> None:
        """Wait until so many are settled."""
        while self.total < requests and self._thread.is_alive():
            time.sleep(0.05)

    async def _run(self) -> None:
        await asyncio.gather(*(self._connection() for _ in range(self.connections)))

    async def _connection(self) -> None:
        connection = _Connection(self.host, self.port)
        while not self._ended:
            start, request = time.perf_counter(), self._request()
            if not await self._sent(connection, request):
                self.failed += 1
                self.lost += not await self._sent(connection, request)
            self.slowest_s = max(self.slowest_s, time.perf_counter() - start)
            await asyncio.sleep(self.pause_s)
        connection.close()

    async def _sent(self, connection: _Connection, request: bytes) -> bool:
        """Whether a request was answered well."""
        try:
            async with asyncio.timeout(30):
                status, body = await connection.ask(request)
            if status != 200:
                raise OSError(f"{status} {body[:200]!r}")
            self.answers[json.loads(body)["version"]] += 1
        except (OSError, EOFError, TimeoutError) as error:
            connection.close()
            if len(self.failures) < FAILURES:
                self.failures.append(f"{type(error).__name__}: {error}")
            return False
        return True

    def _request(self) -> bytes:
        body = json.dumps({"user": next(self.users), "items": self.items}).encode()
        head = f"POST /v1/rank HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


class _Connection:
    """A keep-alive connection, opened when it is needed."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._writer is None or self._reader.at_eof():  # the server may close one that is idle
            self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        self._writer.write(request)
        status, body, stays = await _answer(self._reader)
        if not stays:
            self.close()
        return status, body

    def close(self) -> None:
        """Close it; it can be used again."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class _Response:
    """One answer, as the parser reports its parts."""

    def __init__(self) -> None:
        self.body, self.complete, self.stays = b"", False, True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"connection" and value.lower() == b"close":
            self.stays = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    response = _Response()
    parser: Any = httptools.HttpResponseParser(response)
    while not response.complete:
        data = await reader.read(65536)
        if not data:
            raise EOFError("the connection was closed")
        parser.feed_data(data)
    return parser.get_status_code(), response.body, response.stays
