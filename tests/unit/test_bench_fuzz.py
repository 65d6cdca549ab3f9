"""The fuzzer's own parts: what it draws, and that it notices what it looks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httptools
import pytest

from tests.bench import fuzz
from tests.bench.fuzz_requests import LAST, Fuzzer

USERS, ITEMS = ["u1", "u2"], [f"i{row}" for row in range(1, 31)]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Parsed:
    def __init__(self) -> None:
        self.messages = 0

    def on_message_complete(self) -> None:
        self.messages += 1


def test_the_same_seed_draws_the_same_requests_of_every_level() -> None:
    one, same, other = (Fuzzer(seed, USERS, ITEMS) for seed in (1, 1, 2))
    drawn = [one.draw() for _ in range(500)]
    assert drawn == [same.draw() for _ in range(500)]
    assert drawn != [other.draw() for _ in range(500)]
    assert {case.level for case in drawn} == {"good", "bytes", "structure", "headers", "line", "framing"}


def test_what_is_said_to_be_framed_is_one_request() -> None:
    fuzzer = Fuzzer(3, USERS, ITEMS)
    framed = [case for case in (fuzzer.draw() for _ in range(1000)) if case.framed]
    assert len(framed) > 500
    for case in framed:
        parsed = Parsed()
        httptools.HttpRequestParser(parsed).feed_data(case.content)
        assert parsed.messages == 1


def run_against(talk: Talk, requests: int) -> fuzz.Run:
    async def send() -> fuzz.Run:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            run = fuzz.Run(f"http://127.0.0.1:{port}", Fuzzer(0, USERS, ITEMS))
            await run.send(requests)
        return run

    return asyncio.run(send())


async def _faulty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65536)
    writer.write(OK.replace(b"200 OK", b"500 Oh"))
    writer.close()


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass
    await asyncio.sleep(5)


async def _closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(LAST[-4:])
    writer.close()


def test_faults_and_hangs_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = run_against(_faulty, 20)
    assert (faulty.sent, faulty.faults, faulty.hangs) == (20, 20, 0)
    assert all(text.startswith("500: ") for text in faulty.failures)
    monkeypatch.setattr(fuzz, "PATIENCE_S", 0.2)
    monkeypatch.setattr(fuzz, "QUIET_S", 0.05)
    silent = run_against(_silent, 20)
    assert (silent.sent, silent.faults, silent.hangs) == (20, 0, 20)


def test_a_closed_connection_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "QUIET_S", 0.05)
    closing = run_against(_closing, 20)
    assert (closing.sent, closing.faults, closing.hangs) == (20, 0, 0)
    assert {status for found in closing.statuses.values() for status in found} == {0}
