"""POST /v1/batch_rank: JSON lines in, JSON lines out, both streamed, of any number.

A few lines at a time are read, scored with whatever else the replica scores, and answered in
their order. What waits is bounded: once the reader of the answers is slow, no more lines are
read. So a sender of many lines must read answers meanwhile.
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
from app.serving.http.calls import BATCH_RANK, NDJSON, RANK, RECOMMEND
from app.serving.http.guard import media_of, request_id
from app.serving.http.problems import Problem, from_error
from app.serving.metrics import Metrics
from app.serving.scoring.call import Call
from app.serving.scoring.scoring import Scoring, cost_of

PATH = BATCH_RANK.path
WINDOW = 1024  # candidates scored in one go: an interactive call waits for about as many
LEAST = 16  # candidates that any line counts for, a broken one too
SLICE = 1 << 14  # bytes cut into lines in one go
Numbered = list[tuple[int, bytes | None]]


class Line(Call):
    """A line that waits for its answer; `content` is that answer or a problem document."""

    __slots__ = ("content", "number")

    def __init__(self, number: int, request_id: str, window: Window) -> None:
        super().__init__(PATH, request_id, window.line_answered, window.on_answer)
        self.number, self.content = number, b""

    def fail(self, error: Exception) -> None:
        """Answer with the problem document of an error, which names the line; once, as Call does."""
        if not self.answered:
            problem = from_error(error, self.request_id)
            self.answer_json(problem.document(self.request_id, self.number), problem.status)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        if not self.answered:
            self.content = content
        super()._send(status, content, headers)


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
        self._requests: list[tuple[Line, RankRequest | RecommendRequest]] = []
        self._unanswered = 0
        self._all_answered = asyncio.Event()

    def add(self, number: int, text: bytes | None, request_id: str, limit: int) -> None:
        """Take a line; a broken one is answered at once."""
        line = Line(number, request_id, self)
        self.lines.append(line)
        self._unanswered += 1
        self.cost += LEAST
        try:
            if text is None:
                raise Problem(413, f"a line may have at most {limit} bytes; split the request")
            request = read_line(text)
        except Exception as error:
            line.fail(error)
            return
        self.cost += max(0, cost_of(request) - LEAST)
        self._requests.append((line, request))

    async def answers(self) -> bytes:
        """Have the lines scored; their answers, each with its newline."""
        self._all_answered.clear()  # the broken ones are
        for line, request in self._requests:
            endpoint = RANK if isinstance(request, RankRequest) else RECOMMEND
            line.started = time.perf_counter()
            self.scoring[endpoint.path].add(line, request)
        # Other calls have their turn even where all lines were broken.
        await (self._all_answered.wait() if self._unanswered else asyncio.sleep(0))
        content = b"".join(line.content + b"\n" for line in self.lines)
        self.lines, self._requests = [], []  # a line and its window refer to each other: neither would go
        return content

    def on_answer(self, call: Call, status: int) -> None:
        """Count the answer to a line; see Call."""
        self.metrics.bulk_lines[status] += 1
        if call.variant is not None:
            call.variant.stats.answered(time.perf_counter() - call.started, status >= 500)

    def line_answered(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """Note that a line has its answer, which the line itself keeps."""
        self._unanswered -= 1
        if not self._unanswered:
            self._all_answered.set()


class Bulk:
    """Answers batches of lines; `streams` are under way now.

    Args:
        scoring: of interactive calls, by path, which the lines go through as well.
        metrics: of the replica.
        settings: the recipe's [serve] section.
    """

    def __init__(self, scoring: Mapping[str, Scoring], metrics: Metrics, settings: Serve) -> None:
        self.scoring, self.metrics, self.settings = scoring, metrics, settings
        self.streams = 0
        self._lock = asyncio.Lock()  # one window at a time, however many streams there are

    def response(self, request: Request) -> StreamingResponse:
        """The answer to a batch, which reads it by and by.

        Raises:
            Problem: not sent as JSON lines (415); as many streams as allowed are under way (429).
        """
        if media_of(request) != NDJSON or "content-encoding" in request.headers:
            raise Problem(415, f"send plain JSON lines with the header Content-Type: {NDJSON}")
        if self.streams >= self.settings.max_bulk_streams:
            text = f"{self.streams} batches are under way here; wait as Retry-After says"
            raise Problem(
                429, text, headers={"Retry-After": "1", "Connection": "close"}
            )  # the body is not read
        return _Duplex(self, request)

    async def answers(self, request: Request) -> AsyncIterator[bytes]:
        """The answers, some lines at a time; what ends the batch early is a problem as its last line."""
        lines, name = Lines(self.settings.max_body_bytes), request_id(request)
        try:
            async for arrived in self._arriving(request, lines):
                for window in self._windows(arrived, name):
                    async with self._lock:
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
                if whole := lines.feed(piece[start : start + SLICE]):
                    yield whole
                    last = now()
                else:
                    await asyncio.sleep(0)
        yield lines.end()

    async def _piece(self, stream: AsyncIterator[bytes], last: float) -> bytes | None:
        """What comes next, or None at the end. Bytes that make no line do not keep the batch alive."""
        limit = self.settings.request_timeout_s
        late = Problem(408, f"no whole line came for {limit:g} s")
        if asyncio.get_running_loop().time() > last + limit:
            raise late  # a time-out alone would not end a sender so fast that nothing is waited for
        try:
            async with asyncio.timeout_at(last + limit):
                return await anext(stream, None)
        except TimeoutError:
            raise late from None

    def _windows(self, numbered: Iterable[tuple[int, bytes | None]], name: str) -> Iterator[Window]:
        window = Window(self.scoring, self.metrics)
        for number, text in numbered:
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
        super().__init__(bulk.answers(request), headers={"Connection": "close"}, media_type=NDJSON)
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
