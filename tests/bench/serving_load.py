"""Load for a ranking server: wrk, which sends the next request when it has an answer, and Poisson arrivals.

Poisson arrivals come whether the server keeps up or not, as people do. A latency counts from
the moment at which its request was due, so that a server that stalls is charged for all that
came meanwhile (Tene 2013, "How NOT to Measure Latency").
"""

from __future__ import annotations

import gc
import json
import select
import shutil
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

import httptools
import numpy as np

SCRIPT = Path(__file__).parent / "serving_peers" / "rank.lua"
CONNECTIONS = 256  # of the Poisson arrivals at most; what exceeds them waits
OPENED_BEFORE = 64  # so that opening them is not measured
PATIENCE_S = 10.0
_numbers = count(0, 1_000_003)  # where a run begins in the pairs of users and lists
Figures = dict[str, float]


class Target(NamedTuple):
    """Where requests go and what they are: users and lists are files; see rank.lua."""

    port: int
    path: str
    users: Path
    lists: Path
    opening: str = ""
    closing: str = ""
    field: str = "items"

    def requests(self) -> Iterator[bytes]:
        """`bodies` as HTTP."""
        return (post(self.path, body) for body in self.bodies())

    def bodies(self) -> Iterator[bytes]:
        """Bodies without end, ever new."""
        users, lists = self.users.read_text().split("\n"), self.lists.read_text().split("\n")
        form = f'{self.opening}{{"user":"%s","{self.field}":%s}}{self.closing}'
        numbers = count(next(_numbers))
        return ((form % (users[n % len(users)], lists[n % len(lists)])).encode() for n in numbers)


def post(path: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def wrk(target: Target, connections: int, seconds: float) -> Figures:
    """As many requests as so many connections get answered, each with one at a time.

    Returns:
        requests_per_s, well answered; p50_ms, p95_ms, p99_ms; failed.

    Raises:
        SystemExit: wrk is not installed, or no request was answered well.
    """
    binary = shutil.which("wrk")
    if binary is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    command = [binary, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(SCRIPT)]
    command += ["--timeout", "10s", f"http://127.0.0.1:{target.port}{target.path}", "--"]
    command += [str(target.users), str(target.lists), target.field, target.opening, target.closing]
    command += [str(next(_numbers))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = json.loads(output.rpartition("RESULT ")[2])
    if not counts["answered"]:
        raise SystemExit(f"{target.path} with {connections} connections: {output}")
    return {"requests_per_s": counts.pop("answered") / counts.pop("microseconds") * 1e6, **counts}


def poisson(target: Target, rate: float, seconds: float, seed: int = 0) -> Figures:
    """As `arrivals`, at random moments, `rate` of them a second."""
    return {"rate": rate, **arrivals(target, moments(rate, seconds, seed))}


def arrivals(target: Target, due: list[float]) -> Figures:
    """Latencies in ms of requests that are due at so many seconds from now, in order.

    Returns:
        p50_ms, p95_ms, p99_ms; failed, requests without a good answer; late_ms, how late this
        program itself sent at its 99th percentile, which the latencies include.
    """
    answers = answered(target.port, target.requests(), due, CONNECTIONS)
    latencies = [answer.seconds for answer in answers if answer.status]
    if not latencies:
        raise SystemExit(f"{target.path}: no request was answered")
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]) * 1000
    late = float(np.percentile([answer.late for answer in answers], 99)) * 1000
    failed = sum(answer.status != 200 for answer in answers)
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "failed": failed, "late_ms": late}


def answered(port: int, requests: Iterator[bytes], due: list[float], connections: int) -> list[Answered]:
    """What became of requests that are due at so many seconds from now, in order of their answers.

    Args:
        port: of a server at loopback.
        requests: as they go over the wire, as many as are due at least.
        due: ascending.
        connections: at most; what exceeds them waits.
    """
    run = _Arrivals(port, requests, connections)
    gc.collect()
    gc.disable()  # it stops this program for 250 ms, and then sends all that was due meanwhile at once
    try:
        return run.run(due)
    finally:
        gc.enable()


def moments(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Random moments, `rate` of them a second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    return gaps.cumsum().tolist()  # type: ignore[no-any-return]


class Answered(NamedTuple):
    """A request: when it was due, how long its answer took from then, and its status, 0 for none.

    `late`: seconds of it until this program itself sent it.
    """

    due: float
    seconds: float
    status: int
    late: float


class _Sent(NamedTuple):
    due: float  # by the clock
    request: bytes
    late: float


class _Connection:
    """A connection with one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parser = httptools.HttpResponseParser(self)
        self.asked = _Sent(0.0, b"", 0.0)
        self.answered = 0  # requests
        self.complete = self.stays = False

    def ask(self, sent: _Sent) -> None:
        self.asked, self.complete = sent, False
        with suppress(ConnectionError):  # seen when the answer is awaited
            self.socket.sendall(sent.request)

    def receive(self) -> bool:
        """Read what has come; False where the server has closed the connection."""
        try:
            content = self.socket.recv(1 << 16)
        except ConnectionError:
            return False
        if content:
            self.parser.feed_data(content)
        return bool(content)

    def on_message_complete(self) -> None:
        """Parser callback."""
        self.complete, self.stays = True, self.parser.should_keep_alive()
        self.answered += 1


class _Arrivals:
    """One loop that costs less than asyncio; its timeouts are exact to microseconds."""

    def __init__(self, port: int, requests: Iterator[bytes], connections: int) -> None:
        self.port, self.requests, self.connections = port, requests, connections
        self.free = deque(_Connection(port) for _ in range(OPENED_BEFORE))
        self.busy: dict[int, _Connection] = {}  # by file number
        self.poll = select.epoll()  # of those, however many
        self.waiting: deque[_Sent] = deque()
        self.answers: list[Answered] = []
        self.start = 0.0

    def run(self, due: list[float]) -> list[Answered]:
        todo, self.start = deque(due), time.perf_counter()
        deadline = self.start + due[-1] + PATIENCE_S
        while (todo or self.busy) and (now := time.perf_counter()) <= deadline:
            while todo and self.start + todo[0] <= now:
                moment = self.start + todo.popleft()
                self._send(_Sent(moment, next(self.requests), now - moment))
            wait = self.start + todo[0] - time.perf_counter() if todo else 0.1
            ready, _, _ = select.select([self.poll], (), (), max(0.0, wait))  # epoll's own are coarse
            for number, _ in self.poll.poll(0) if ready else ():
                self._receive(number)
        self._close()
        return self.answers

    def _send(self, sent: _Sent) -> None:
        if self.free:
            connection = self.free.popleft()
        elif len(self.busy) < self.connections:
            connection = _Connection(self.port)
        else:
            self.waiting.append(sent)
            return
        connection.ask(sent)
        number = connection.socket.fileno()
        self.busy[number] = connection
        self.poll.register(number, select.EPOLLIN)

    def _receive(self, number: int) -> None:
        connection = self.busy[number]
        open_ = connection.receive()
        if open_ and not connection.complete:
            return
        del self.busy[number]
        self.poll.unregister(number)
        if connection.complete:
            self._answered(connection.asked, connection.parser.get_status_code())
        elif connection.answered:  # closed while it was idle, so the request was not looked at
            self.waiting.appendleft(connection.asked)
        else:
            self._answered(connection.asked, 0)
        if open_ and connection.stays:
            self.free.append(connection)
        else:
            connection.socket.close()
        if self.waiting:
            self._send(self.waiting.popleft())

    def _answered(self, sent: _Sent, status: int) -> None:
        seconds = time.perf_counter() - sent.due
        self.answers.append(Answered(sent.due - self.start, seconds, status, sent.late))

    def _close(self) -> None:
        for sent in (*(busy.asked for busy in self.busy.values()), *self.waiting):
            self._answered(sent, 0)  # not in time
        for connection in (*self.free, *self.busy.values()):
            connection.socket.close()
        self.poll.close()
