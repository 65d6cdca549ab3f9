"""POST /v1/batch_rank: JSON lines in, JSON lines out, both streamed, of any number.

A few lines at a time are read, scored with whatever else the replica scores, and answered in
their order. What waits is bounded: once the reader of the answers is slow, no more lines are
read. So whoever sends many lines must read answers meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.bundle.request.json_lines import Lines, read_line
from app.bundle.request.requests import RankRequest, RecommendRequest
from app.recipe import Serve
from app.serving.http.guard import request_id
from app.serving.http.problems import Problem, from_error
from app.serving.metrics import Metrics
from app.serving.scoring.scoring import ALL_ITEMS, Call, Scoring

PATH = "/v1/batch_rank"
NDJSON = "application/x-ndjson"
WINDOW = 1024  # candidates scored in one go: an interactive call waits for about as many
LEAST = 16  # candidates that any line counts for, a broken one too
SLICE = 1 << 14  # bytes cut into lines in one go
Numbered = list[tuple[int, bytes | None]]


class Line(Call):
    """A line that waits for its answer; `content` is that answer or a problem document."""

    __slots__ = ("content", "number")

    def __init__(self, number: int, request_id: str, window: Window) -> None:
        super().__init__(PATH, request_id, window.answered, window.closed)
        self.number, self.content = number, b""

    def answer_json(self, content: bytes, status: int = 200) -> None:
        """See Call."""
        self.content = content
        super().answer_json(content, status)

    def fail(self, error: Exception) -> None:
        """Answer with the problem document of an error, which names the line."""
        problem = from_error(error, self.request_id)
        self.answer_json(problem.document(self.request_id, self.number), problem.status)


class Window:
    """Some lines that are scored together.

    Args:
        scoring: by path.
        metrics: of the replica.
    """

    def __init__(self, scoring: Mapping[str, Scoring], metrics: Metrics) -> None:
        self.scoring, self.metrics = scoring, metrics
        self.cost = 0
        self.lines: list[Line] = []
        self._asked: list[tuple[Line, RankRequest | RecommendRequest]] = []
        self._left = 0
        self._all_answered = asyncio.Event()

    def add(self, number: int, text: bytes | None, request_id: str, limit: int) -> None:
        """Take a line; a broken one is answered at once."""
        line = Line(number, request_id, self)
        self.lines.append(line)
        self._left += 1
        self.cost += LEAST
        try:
            if text is None:
                raise Problem(413, f"a line may have at most {limit} bytes; split the request")
            request = read_line(text)
        except Exception as error:
            line.fail(error)
            return
        cost = len(request.items) if isinstance(request, RankRequest) else ALL_ITEMS
        self.cost += max(0, cost - LEAST)
        self._asked.append((line, request))

    async def answers(self) -> bytes:
        """Have the lines scored; their answers, each with its newline."""
        self._all_answered.clear()  # the broken ones are
        for line, request in self._asked:
            path = "/v1/rank" if isinstance(request, RankRequest) else "/v1/recommend"
            line.started = time.perf_counter()
            self.scoring[path].add(line, request)
        # Others have their turn even where all lines were broken.
        await (self._all_answered.wait() if self._left else asyncio.sleep(0))
        content = b"".join(line.content + b"\n" for line in self.lines)
        self.lines, self._asked = [], []  # a line and its window name each other: neither would go
        return content

    def closed(self, call: Call, status: int) -> None:
        """See Call."""
        self.metrics.bulk_lines[status] += 1
        if call.variant is not None:
            call.variant.stats.answered(time.perf_counter() - call.started, status >= 500)

    def answered(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """See Call: the line itself keeps the answer."""
        self._left -= 1
        if not self._left:
            self._all_answered.set()


class Bulk:
    """Answers batches; `streams` are under way now.

    Args:
        scoring: of interactive calls, by path, which the lines go through as well.
        metrics: of the replica.
        settings: the recipe's [serve] section.
    """

    def __init__(self, scoring: Mapping[str, Scoring], metrics: Metrics, settings: Serve) -> None:
        self.scoring, self.metrics, self.settings = scoring, metrics, settings
        self.streams = 0
        self._turn = asyncio.Lock()  # one window at a time, however many streams there are

    def response(self, request: Request) -> StreamingResponse:
        """The answer to a batch, which reads it by and by.

        Raises:
            Problem: not sent as JSON lines (415); as many streams as allowed are under way (429).
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != NDJSON or "content-encoding" in request.headers:
            raise Problem(415, f"send plain JSON lines with the header Content-Type: {NDJSON}")
        if self.streams >= self.settings.max_bulk_streams:
            text = f"{self.streams} batches are under way here; wait as Retry-After says"
            raise Problem(429, text, headers={"Retry-After": "1", "Connection": "close"})  # nobody reads it
        return _Duplex(self, request)

    async def lines(self, request: Request) -> AsyncIterator[bytes]:
        """The answers, some lines at a time; what ends the batch early is a problem as its last line."""
        lines, name = Lines(self.settings.max_body_bytes), request_id(request)
        try:
            async for found in self._arriving(request, lines):
                for window in self._windows(found, name):
                    async with self._turn:
                        content = await window.answers()
                    yield content
        except ClientDisconnect:
            raise
        except Exception as error:
            number = min(lines.number, self.settings.max_bulk_lines) + 1
            yield from_error(error, name).document(name, number) + b"\n"

    async def _arriving(self, request: Request, lines: Lines) -> AsyncIterator[Numbered]:
        """Lines as they come: none is waited for while another could be answered."""
        stream, now = request.stream(), asyncio.get_running_loop().time
        last = now()
        while (piece := await self._piece(stream, last)) is not None:
            for start in range(0, len(piece), SLICE):
                if found := lines.feed(piece[start : start + SLICE]):
                    yield found
                    last = now()
                else:
                    await asyncio.sleep(0)
        yield lines.end()

    async def _piece(self, stream: AsyncIterator[bytes], last: float) -> bytes | None:
        """What comes next, or None at the end. Bytes that make no line do not keep the batch alive."""
        limit = self.settings.request_timeout_s
        late = Problem(408, f"no whole line came for {limit:g} s")
        if asyncio.get_running_loop().time() > last + limit:
            raise late  # a time-out alone would not meet one who sends so fast that nothing is waited for
        try:
            async with asyncio.timeout_at(last + limit):
                return await anext(stream, None)
        except TimeoutError:
            raise late from None

    def _windows(self, found: Iterable[tuple[int, bytes | None]], name: str) -> Iterator[Window]:
        window = Window(self.scoring, self.metrics)
        for number, text in found:
            if number > self.settings.max_bulk_lines:
                if window.lines:
                    yield window
                raise Problem(413, f"at most {self.settings.max_bulk_lines} lines a batch; split it")
            window.add(number, text, name, self.settings.max_body_bytes)
            if window.cost >= WINDOW:
                yield window
                window = Window(self.scoring, self.metrics)
        if window.lines:
            yield window


class _Duplex(StreamingResponse):
    """Sends answers while the request still comes in, which its base would read in vain.

    The connection is closed afterwards, because the sender of a batch that ended early goes on.
    """

    def __init__(self, bulk: Bulk, request: Request) -> None:
        super().__init__(bulk.lines(request), headers={"Connection": "close"}, media_type=NDJSON)
        self.bulk = bulk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all; a reader that takes nothing for long is left."""
        limit, start, status = self.bulk.settings.request_timeout_s, time.perf_counter(), 200

        async def patient(message: Any) -> None:
            async with asyncio.timeout(limit):
                await send(message)

        self.bulk.streams += 1
        try:
            await self.stream_response(patient)
        except (ClientDisconnect, TimeoutError):
            status = 499
        finally:
            self.bulk.streams -= 1
            self.bulk.metrics.answered(PATH, status, time.perf_counter() - start)
