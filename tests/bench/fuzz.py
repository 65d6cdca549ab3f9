"""Fuzzed requests through HAProxy: no 5xx, no hang, memory flat, and good requests go on meanwhile."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import httpx
import psutil

from app.ray.processes import of_run
from app.serving.rollout import admin
from app.serving.rollout.state_dir import StateDir
from app.terminal.console import say
from tests.bench.faults_change import ITEMS, USERS, Bars, Site, bar
from tests.bench.faults_load import private
from tests.bench.fuzz_requests import LAST, SLOW_KINDS, Case, Fuzzer, Slow

QUICK, SLOW = 24, 16  # connections
PATIENCE_S = 15.0  # for an answer or the end of the connection
QUIET_S = 0.3  # then a sender whose request may not be whole ends it
SLOW_SHARE = 500  # one request in so many is slow or without end
GROWTH = 1.02
SHOWN = 20
ALIVE = b'{"live":true}'
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def fuzz(site: Site, requests: int, seed: int = 0) -> tuple[Bars, dict[str, Any]]:
    """Send so many, while the site's own good requests go on.

    Memory: the private memory of the replica and of HAProxy at the end, over that after a fifth of
    the requests, by when each kind of request came often. What caches hold does not count: no two
    requests are alike, so they fill without end, up to limits that the recipe sets.
    """
    admin.scale(site.service, 1)  # another replica is no growth
    own, failed = site.traffic.pause_s, site.traffic.failed
    site.traffic.pause_s = 0.1
    users, items = ([f"{kind}{row}" for row in range(1, n + 1)] for kind, n in (("u", USERS), ("i", ITEMS)))
    start = time.monotonic()
    run = Run(site.service.url, Fuzzer(seed, users, items))
    memory = {"before": memory_of(site)}
    asyncio.run(run.send(requests // 5))
    memory["after a fifth"] = memory_of(site)
    asyncio.run(run.send(requests - requests // 5, least=len(SLOW_KINDS)))
    memory["at the end"] = memory_of(site)
    site.traffic.until(site.traffic.total + 8)  # it still answers
    site.traffic.pause_s, lost = own, site.traffic.failed - failed
    admin.scale(site.service, 0)
    growth = memory["at the end"]["counted"] / memory["after a fifth"]["counted"]
    say(f"{run.sent} fuzzed requests in {time.monotonic() - start:.0f} s: {run.summary()}")
    bars = [
        bar("fuzz_5xx_failed", run.faults, at_most=0),
        bar("fuzz_hanging_failed", run.hangs, at_most=0),
        bar("fuzz_good_failed", lost, at_most=0),
        bar("fuzz_memory_growth", growth, at_most=GROWTH),
    ]
    return bars, {
        "requests": run.sent,
        "seconds": round(time.monotonic() - start, 1),
        "statuses": {
            level: dict(sorted(of_level.items())) for level, of_level in sorted(run.statuses.items())
        },
        "slowest_ms": round(1e3 * run.slowest_s),
        "private_mib": memory,
        "failures": run.failures,
    }


def memory_of(site: Site) -> dict[str, float]:
    """Private MiB of the replica and of HAProxy, of which an older one may still drain, less caches."""
    (replica,) = StateDir(Path(site.service.store)).snapshots()
    started = {}
    for pid in of_run(site.service.mark):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.name() == "haproxy" and process.status() != psutil.STATUS_ZOMBIE:
                started[process.create_time()] = pid
    pids = {"replica": replica.pid, "haproxy": started[max(started)]}
    mib = {name: round(private(pid) / 2**20, 2) for name, pid in pids.items()}
    caches = caches_mib(site.service.url)
    return {**mib, "caches": caches, "counted": round(sum(mib.values()) - caches, 2)}


def caches_mib(url: str) -> float:
    """What a service says that its caches take."""
    sizes = re.findall(r"^rayrec_cache_bytes\{.*\} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return round(sum(map(float, sizes)) / 2**20, 2)


class Run:
    """What was sent and what became of it: statuses by level, 0 where the server closed without an answer."""

    def __init__(self, url: str, fuzzer: Fuzzer) -> None:
        address = urlsplit(url)
        self.host, self.port = str(address.hostname), int(address.port or 80)
        self.fuzzer = fuzzer
        self.statuses: dict[str, Counter[int]] = {}
        self.sent = self.faults = self.hangs = 0
        self.slowest_s = 0.0  # of those that are sent at once
        self.failures: list[str] = []

    async def send(self, requests: int, least: int = 0) -> None:
        """So many more, `least` slow ones at least."""
        slow = max(least, requests // SLOW_SHARE)
        quick = (self.fuzzer.draw() for _ in range(requests - slow))
        kinds = islice(cycle(SLOW_KINDS), slow)
        await asyncio.gather(
            *(self._quick(quick) for _ in range(QUICK)), *(self._slow(kinds) for _ in range(SLOW))
        )

    def summary(self) -> str:
        """Statuses of all levels together."""
        total: Counter[int] = sum(self.statuses.values(), Counter())
        return ", ".join(f"{status or 'closed'}: {count}" for status, count in sorted(total.items()))

    async def _quick(self, cases: Iterator[Case]) -> None:
        line = Line(self.host, self.port)
        for case in cases:
            start = time.perf_counter()
            await self._settle(
                case, line, line.ask(case.content) if case.framed else line.send_raw(case.content)
            )
            self.slowest_s = max(self.slowest_s, time.perf_counter() - start)
        line.close()

    async def _slow(self, kinds: Iterator[Slow]) -> None:
        line = Line(self.host, self.port)
        for kind in kinds:
            await self._settle(Case("slow", kind.start, False), line, line.drip(kind))
            line.close()

    async def _settle(self, case: Case, line: Line, talk: Awaitable[list[int]]) -> None:
        self.sent += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                statuses = await talk
        except TimeoutError:
            line.close()
            self.hangs += 1
            self._fail("no answer", case)
            return
        self.statuses.setdefault(case.level, Counter()).update(statuses or [0])
        if any(status >= 500 for status in statuses):
            self.faults += 1
            self._fail(str(max(statuses)), case)

    def _fail(self, what: str, case: Case) -> None:
        if len(self.failures) < SHOWN:
            self.failures.append(f"{what}: {case.level} {case.content[:600]!r}")


class Line:
    """Connections to a server, one at a time. Each method gives the statuses of what was answered."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, content: bytes) -> list[int]:
        """Send a request whose end is known, over the connection of the last one where it stays."""
        if self._writer is None or self._reader.at_eof():
            await self._open()
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        self._write(content)
        while not answer.complete:
            piece = await self._read()
            if not piece:
                self.close()
                return answer.statuses(parser)
            parser.feed_data(piece)
        if not parser.should_keep_alive():
            self.close()
        return answer.statuses(parser)

    async def send_raw(self, content: bytes) -> list[int]:
        """Send anything over a connection of its own, until the server closes it.

        The server may wait for more: the sender then ends its side, once nothing came for a while.
        """
        self.close()
        await self._open()
        self._write(content + LAST)
        answered = await self._read_all(QUIET_S)
        assert self._writer is not None
        with suppress(OSError):
            self._writer.write_eof()
        answered += await self._read_all()
        self.close()
        last = answered.endswith(ALIVE)  # the answer to LAST
        statuses = [int(status) for status in _STATUS.findall(answered)]
        return statuses[:-1] if last else statuses

    async def drip(self, slow: Slow) -> list[int]:
        """Send slowly or without end, until the server closes the connection."""
        await self._open()
        sending = asyncio.create_task(self._send_on(slow))
        try:
            return [int(status) for status in _STATUS.findall(await self._read_all())]
        finally:
            sending.cancel()

    async def _send_on(self, slow: Slow) -> None:
        assert self._writer is not None
        with suppress(OSError):  # closed: whoever reads sees it
            self._writer.write(slow.start)
            while True:
                self._writer.write(slow.piece)
                await self._writer.drain()
                await asyncio.sleep(slow.pause_s)

    def close(self) -> None:
        """Close the connection; another is opened when it is needed."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._writer = None

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self.host, self.port)

    def _write(self, content: bytes) -> None:
        assert self._writer is not None
        if not self._writer.is_closing():
            self._writer.write(content)

    async def _read(self) -> bytes:
        with suppress(OSError):
            return await self._reader.read(65536)
        return b""

    async def _read_all(self, quiet_s: float | None = None) -> bytes:
        """Until the server closes the connection, or sends nothing for so long."""
        content = b""
        with suppress(TimeoutError):
            while piece := await asyncio.wait_for(self._read(), quiet_s):
                content += piece
        return content


class _Answer:
    def __init__(self) -> None:
        self.complete = False

    def on_message_complete(self) -> None:
        self.complete = True

    def statuses(self, parser: Any) -> list[int]:
        return [parser.get_status_code()] if self.complete else []
