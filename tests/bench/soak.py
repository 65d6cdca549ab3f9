"""Ten minutes at half of what a service can answer: `python -m tests.bench.soak` (`make bench-soak`).

Rankings, recommendations, similar items and feedback of many users, at random moments. Writes
runs/bench/soak.json and .md; ends with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from app.ray import processes
from app.recipe import Serve
from app.serving.service import running
from app.terminal.console import say
from tests.bench.faults import publish, result_of
from tests.bench.faults_change import Bars, bar
from tests.bench.faults_load import CONNECTIONS, private
from tests.bench.fuzz import caches_mib
from tests.bench.serving_load import Answered, Target, answered, moments, post, wrk
from tests.bench.serving_systems import free_port
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

USERS, ITEMS, CANDIDATES = 2000, 500, 100
RECOMMEND, SIMILAR, FEEDBACK = 0.2, 0.05, 0.05  # shares; the rest ranks
GROWTH, FLAT = 1.01, 1.5


def mixed(seed: int) -> Iterator[bytes]:
    """Requests without end."""
    draw = random.Random(seed)
    items = [f"i{row}" for row in range(1, ITEMS + 1)]
    while True:
        user, kind = f"u{draw.randrange(1, USERS + 1)}", draw.random()
        if kind < FEEDBACK:
            event = {"user": user, "item": draw.choice(items), "event": "view"}
            path, content = "/v1/feedback", {"events": [event]}
        elif kind < FEEDBACK + SIMILAR:
            path, content = "/v1/similar", {"item": draw.choice(items), "k": 10}
        elif kind < FEEDBACK + SIMILAR + RECOMMEND:
            path, content = "/v1/recommend", {"user": user, "k": 20}
        else:
            path, content = "/v1/rank", {"user": user, "items": draw.sample(items, CANDIDATES)}
        yield post(path, json.dumps(content).encode())


def capacity(port: int, folder: Path) -> float:
    """Requests/s of the mix that a service answers: closed loop for rankings, then what the mix costs."""
    draw = random.Random(0)
    names = [f"i{row}" for row in range(100, ITEMS)]  # ids of one length, as wrk wants them
    (folder / "lists").write_text("\n".join(json.dumps(draw.sample(names, CANDIDATES)) for _ in range(499)))
    (folder / "users").write_text("\n".join(f"u{row}" for row in range(1000, USERS)))
    target = Target(port, "/v1/rank", folder / "users", folder / "lists")
    wrk(target, 16, 3)
    rate = wrk(target, 16, 5)["requests_per_s"]
    while True:  # the mix costs more than rankings, and its sender shares the cores
        answers = answered(port, mixed(1), moments(rate, 5), CONNECTIONS)
        if np.percentile([answer.seconds for answer in answers], 95) < 0.1 and not _failed(answers):
            return rate
        rate *= 0.85


def soak(minutes: float, rate: float | None = None) -> tuple[Bars, dict[str, Any]]:
    """All of it: a service, then minute by minute `rate` requests/s, half its capacity by default."""
    with tempfile.TemporaryDirectory(prefix="rayrec-soak-") as name:
        rate, turns = _turns(Path(name), minutes, rate)
    failed = sum(turn["failed"] for turn in turns)
    totals = [sum(turn["memory_mib"].values()) for turn in turns]
    p99 = [turn["p99_ms"] for turn in turns[1:]]
    return [
        bar("soak_failed", failed, at_most=0),
        bar("soak_memory_growth", max(totals[1:]) / totals[0], at_most=GROWTH),
        bar("soak_p99_growth", max(p99) / statistics.median(p99), at_most=FLAT),
    ], {"minutes": minutes, "requests_per_s": round(rate), "turns": turns}


def _turns(folder: Path, minutes: float, rate: float | None) -> tuple[float, list[dict[str, Any]]]:
    dataset = tiny_dataset(folder / "dataset", users=USERS, items=ITEMS, events=40_000)
    bundle_of(random_model("two_tower", dataset), dataset, folder / "bundle", precision="int8")
    settings = Serve(port=free_port(), min_replicas=1, max_replicas=1)
    with running(folder / "bundle", settings):
        rate = rate or capacity(settings.port, folder) / 2
        say(f"{rate:,.0f} requests/s")
        parts = [60.0] * int(minutes) if minutes >= 2 else [30 * minutes] * 2
        return rate, [_turn(settings.port, rate, seconds, turn) for turn, seconds in enumerate(parts)]


def _turn(port: int, rate: float, seconds: float, number: int) -> dict[str, Any]:
    answers = answered(port, mixed(number), moments(rate, seconds, number), CONNECTIONS)
    p50, p99 = np.percentile([answer.seconds for answer in answers], [50, 99]) * 1e3
    memory, caches = _memory(), caches_mib(f"http://127.0.0.1:{port}")
    turn = {
        "requests": len(answers),
        "failed": _failed(answers),
        "statuses": dict(Counter(answer.status for answer in answers)),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "sent_late_ms": round(max(answer.late for answer in answers) * 1e3, 1),
        "memory_mib": memory,
        "of_it_caches_mib": caches,
    }
    say(f"part {number + 1}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, {sum(memory.values()):,.1f} MiB")
    return turn


def _failed(answers: list[Answered]) -> int:
    return sum(answer.status not in (200, 202) for answer in answers)


def _memory() -> dict[str, float]:
    """Private MiB of each process of the service, by name."""
    memory: dict[str, float] = {}
    for pid in processes.of_run(processes.run_mark()):
        try:
            name = psutil.Process(pid).cmdline()[0].rpartition("/")[2] or str(pid)
            memory[name] = round(memory.get(name, 0.0) + private(pid) / 2**20, 1)
        except (psutil.Error, OSError, IndexError):
            continue  # it ended meanwhile
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no service is left behind
    publish(result_of("soak", *soak(minutes)))


if __name__ == "__main__":
    main()
