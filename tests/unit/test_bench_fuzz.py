"""The fuzzer's own parts: what it draws, and that it notices what it looks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httptools
import msgspec
import pytest

from app.bundle.request.json_lines import read_line
from app.bundle.request.requests import FeedbackRequest, RankRequest, RecommendRequest, SimilarRequest
from app.recipe import Serve
from app.serving.feedback.validation import check_feedback
from tests.bench import fuzz
from tests.bench.fuzz_requests import LAST, TOKENS, Case, Fuzzer, encoded

USERS, ITEMS = ["u1", "u2"], [f"i{row}" for row in range(1, 31)]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Parsed:
    def __init__(self) -> None:
        self.messages = 0

    def on_message_complete(self) -> None:
        self.messages += 1


def test_the_same_seed_draws_the_same_requests_of_every_level() -> None:
    first, same, other = (Fuzzer(seed, USERS, ITEMS) for seed in (1, 1, 2))
    drawn = [first.draw() for _ in range(500)]
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


BODIES = {
    "/v1/rank": RankRequest,
    "/v1/recommend": RecommendRequest,
    "/v1/similar": SimilarRequest,
    "/v1/feedback": FeedbackRequest,
}


def test_a_good_request_is_one_that_its_call_takes() -> None:
    fuzzer, paths = Fuzzer(4, USERS, ITEMS), set()
    for _ in range(300):
        path, body = fuzzer.good()
        paths.add(path)
        if path == "/v1/batch_rank":
            assert read_line(encoded(body)).user == body["user"]
        else:
            msgspec.json.decode(encoded(body), type=BODIES[path])
    assert paths == {*BODIES, "/v1/batch_rank"}


def test_a_token_is_written_as_it_is_and_every_other_text_as_json() -> None:
    assert encoded({"user": "u1", "k": TOKENS[0]}) == b'{"user": "u1", "k": 1e999}'
    assert encoded(["a", TOKENS[-1]]) == b'["a", {"a":1,"a":2}]'


def _stored(case: Case) -> bool:
    """Whether a case is feedback that a service stores."""
    head, _, body = case.content.partition(b"\r\n\r\n")
    if not head.startswith(b"POST /v1/feedback "):
        return False
    try:
        check_feedback(msgspec.json.decode(body, type=FeedbackRequest), Serve())
    except Exception:
        return False
    return True


def test_some_feedback_of_a_changed_structure_can_be_stored_and_most_cannot() -> None:
    """So that a run of 2,000 meets a 202 at this level, whatever the machine does."""
    fuzzer = Fuzzer(0, [f"u{row}" for row in range(1, 501)], [f"i{row}" for row in range(1, 201)])
    changed = [case for case in (fuzzer.draw() for _ in range(2000)) if case.level == "structure"]
    stored = sum(map(_stored, changed))
    assert 3 <= stored < len(changed) / 20


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
    assert {status for of_level in closing.statuses.values() for status in of_level} == {0}
