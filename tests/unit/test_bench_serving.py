"""The serving benchmark's own parts: its load, its answers, its bars."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.bench import serving_load
from tests.bench import serving_report as report
from tests.bench.serving_load import Target, arrivals, wrk
from tests.bench.serving_peers.scorer import WEIGHTS, Scorer
from tests.bench.serving_systems import difference

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
opened: list[asyncio.StreamWriter] = []
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """Answers bodies; None closes the connection. One thread, so an answer that takes long stalls all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found = answer(await reader.readexactly(length))
            if found is None:
                writer.close()
                return
            writer.write(found)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # a client that goes away
    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "users").write_text("u1\nu2")
    (tmp_path / "lists").write_text('["a"]\n["b"]\n["c"]')
    return Target(0, "/rank", tmp_path / "users", tmp_path / "lists", "[", "]")


def test_bodies_return_only_after_all_pairs(target: Target) -> None:
    bodies = list(islice(target.bodies(), 12))
    assert len(set(bodies[:6])) == 6
    assert bodies[6:] == bodies[:6]
    [asked] = json.loads(bodies[0])
    assert set(asked) == {"user", "items"}


def test_a_stall_is_charged_to_all_that_came_meanwhile(target: Target) -> None:
    asked: list[bytes] = []

    def answer(body: bytes) -> bytes:
        asked.append(body)
        if len(asked) == 1:
            time.sleep(0.4)
        return OK

    with server(answer) as port:
        found = arrivals(target._replace(port=port), [0.0, 0.1, 0.2])
    assert len(asked) == 3
    # Latencies of at least 400, 300 and 200 ms, though the server was quick with two of them.
    assert found["p50_ms"] >= 299
    assert found["failed"] == 0


def test_connections_are_kept_and_bounded(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_load, "OPENED_BEFORE", 1)
    monkeypatch.setattr(serving_load, "CONNECTIONS", 2)
    opened.clear()
    with server(lambda _: OK) as port:
        found = arrivals(target._replace(port=port), [0.0] * 40)
    assert len(opened) == 2
    assert found["failed"] == 0


@pytest.mark.parametrize("bad", [ERROR, None])
def test_what_is_not_answered_well_has_failed(target: Target, bad: bytes | None) -> None:
    answers = [OK, bad, OK, bad]
    with server(lambda _: answers.pop()) as port:
        found = arrivals(target._replace(port=port), [0.0, 0.02, 0.04, 0.06])
    assert found["failed"] == 2


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_the_same_bodies(target: Target) -> None:
    bodies: set[bytes] = set()

    def answer(body: bytes) -> bytes:
        bodies.add(body)
        return OK

    with server(answer) as port:
        found = wrk(target._replace(port=port), 2, 1)
    assert bodies == set(islice(target.bodies(), 6))
    assert found["requests_per_s"] > 0


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_with_failures_is_no_figure(target: Target) -> None:
    with server(lambda _: ERROR) as port, pytest.raises(SystemExit, match="1 connections"):
        wrk(target._replace(port=port), 1, 1)


def test_the_scorer_of_the_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    shapes = {"0.weight": (5, 4), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,), "4.weight": (1, 3)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights |= {"4.bias": torch.randn(1), "users": torch.randn(3, 2), "items": torch.randn(5, 2)}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "users.txt").write_text("u1\nu2")
    (tmp_path / "items.txt").write_text("a\nb\nc\nd")
    monkeypatch.setenv(WEIGHTS, str(tmp_path))
    scorer = Scorer()
    asked = [("u1", ["a", "b", "c"]), ("u2", ["d"]), ("nobody", ["b", "e"])]
    together = scorer.rank(asked)
    torch.set_num_threads(threads)
    for one, answer in zip(asked, together, strict=True):
        [alone] = scorer.rank([one])
        assert [s["item"] for s in answer["items"]] == [s["item"] for s in alone["items"]]
        scores = [s["score"] for s in answer["items"]]
        assert scores == pytest.approx([s["score"] for s in alone["items"]], abs=1e-6)
        assert scores == sorted(scores, reverse=True)
    vector = torch.cat([weights["users"][2], weights["items"][4]])  # by hand: u2 and d
    first = (weights["0.weight"] @ vector + weights["0.bias"]).clamp(min=0)
    second = (weights["2.weight"] @ first + weights["2.bias"]).clamp(min=0)
    expected = float(weights["4.weight"] @ second + weights["4.bias"])
    assert together[1]["items"] == [{"item": "d", "score": pytest.approx(expected, abs=1e-5)}]


def test_difference_of_scores() -> None:
    assert difference({"a": 0.5, "b": 10.1}, {"a": 0.6, "b": 10.0}) == pytest.approx(0.1)
    assert difference({"a": 0.5}, {"a": 0.5, "b": 1.0}) == float("inf")


def turn(rates: dict[str, list[float]], p50: float = 1.0) -> report.Turn:
    closed = {
        path: {
            c: {"requests_per_s": rate, "p50_ms": p50}
            for c, rate in zip(("1", "16", "64"), found, strict=True)
        }
        for path, found in rates.items()
    }
    latencies = {"rate": 50.0, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "failed": 0.0, "late_ms": 0.4}
    return {
        "load_before": 0.1,
        "difference": 0.0,
        "closed": closed,
        "open": {"50": latencies, "80": latencies},
    }


def test_ratios_are_of_medians_and_of_the_faster_variant() -> None:
    systems = {
        "ours": report.medians([turn({"": [10, 40, x]}, p50=0.5) for x in (30, 60, 90)]),
        "fastapi": report.medians([turn({"/a": [10, 30, 30], "/b": [5, 10, 40]})]),
        "limit": report.medians([turn({"": [80, 240, 240]})]),
    }
    ratios = report.ratios(systems)
    assert ratios["fastapi"] == {"1": 1.0, "16": pytest.approx(4 / 3), "64": 1.5}
    held = {bar["name"]: bar["holds"] for bar in report.bars(systems)}
    assert held == {"fastapi_16": False, "fastapi_64": False, "p50_ratio_fastapi_1": True, "limit_64": True}
    figures = {"systems": systems, "model": "a model", "rounds": 3, "seconds": 5, "notes": ""}
    result = {"figures": figures, "ratios": ratios, "bars": report.bars(systems)}
    text = report.markdown(result)
    assert "| p50_ratio_fastapi_1 | 0.50 | at most 1.0 | yes |" in text
    assert "| ours | 10 (0.50) | 40 (0.50) | 60 (0.50) |" in text
    assert "/b 5, 10, 40" in text
