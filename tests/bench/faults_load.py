"""Too much: three times what a service can answer, and tables that must not be in memory twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from app.models.build import build_model
from app.recipe import Serve
from app.serving.rollout.state_dir import StateDir
from app.serving.service import running, store_folder
from app.terminal.console import say
from tests.bench.faults_change import Bars, bar
from tests.bench.serving_load import Answered, Target, answered, moments, wrk
from tests.bench.serving_systems import free_port
from tests.bundles import bundle_of
from tests.tiny import tiny_dataset
from tests.traffic import Traffic

TIMES, CONNECTIONS = 3, 2000
IN_TIME_S, REFUSED_MS, NORMAL_S, GROWTH = 2.0, 50.0, 10.0, 1.05
ITEMS, USERS, LISTS, CANDIDATES = 3000, 500, 499, 1000
GIB = 1 << 30


def overload(folder: Path, seconds: float) -> tuple[Bars, dict[str, Any]]:
    """Three times the capacity for so long, at random moments; then half of it."""
    dataset = tiny_dataset(folder / "dataset", users=USERS, items=ITEMS, events=8000)
    bundle_of(
        build_model("mlp", {"hidden": [256, 128]}, dataset).eval(), dataset, folder / "bundle", name="mlp"
    )
    target = _target(folder, free_port())
    settings = Serve(port=target.port, min_replicas=1, max_replicas=1)
    with running(folder / "bundle", settings):
        (pid,) = _replicas(folder / "bundle", settings)
        wrk(target, 64, 3)
        capacity = wrk(target, 64, max(3.0, seconds / 3))["requests_per_s"]
        say(f"capacity: {capacity:,.0f} requests/s")
        calm = _arrived(target, capacity / 2, min(NORMAL_S, seconds))
        filled: list[int] = []  # once queues and caches are full
        timer = threading.Timer(seconds / 3, lambda: filled.append(private(pid)))
        timer.start()
        answers = _arrived(target, TIMES * capacity, seconds)
        growth = private(pid) / filled[0]
        after = _arrived(target, capacity / 2, min(1.5 * NORMAL_S, 2 * seconds))
    statuses = Counter(answer.status for answer in answers)
    say(f"at {TIMES} x capacity: {dict(statuses)}")
    in_time = sum(answer.status == 200 and answer.seconds <= IN_TIME_S for answer in answers) / seconds
    refused = [answer.seconds * 1e3 for answer in answers if answer.status == 429] or [0.0]
    strange = sum(count for status, count in statuses.items() if status not in (200, 429))
    p99, normal = float(np.percentile(refused, 99)), _normal_after(calm, after)
    bars = [
        bar("overload_in_time", in_time / capacity, at_least=0.9),
        bar("overload_neither_answered_nor_refused_failed", strange, at_most=0),
        bar("overload_refused_p99_ms", p99, at_most=REFUSED_MS),
        bar("overload_normal_again_s", normal, at_most=NORMAL_S),
        bar("overload_memory_growth", growth, at_most=GROWTH),
    ]
    figures = {
        "capacity": round(capacity, 1),
        "arrivals": len(answers),
        "statuses": dict(statuses),
        "answered_ms": _percentiles([answer for answer in answers if answer.status == 200]),
        "refused_ms": _percentiles([answer for answer in answers if answer.status == 429]),
        "calm_ms": _percentiles(calm),
        "after_ms": _percentiles(after),
        "p95_ms_by_second": {
            name: [round(1e3 * p95, 1) for p95 in _p95s(some)]
            for name, some in (("calm", calm), ("after", after))
        },
    }
    return bars, figures


def tables(folder: Path, gib: float) -> tuple[Bars, dict[str, Any]]:
    """Private memory of two replicas whose item rows take so much, over that of one with next to none."""
    rows = round(gib * GIB) // (257 * 4)  # 256 values and a bias
    memory = {}
    for name, items in (("empty", 60), ("large", rows)):
        dataset = tiny_dataset(folder / f"{name}-data", users=USERS, items=items, events=4000, content=False)
        model = build_model("mlp", {"width": 8, "hidden": [256, 16], "heads": 0}, dataset)
        bundle_of(model.eval(), dataset, folder / name, name="mlp")
        memory[name] = _touched(folder / name, items)
        say(f"{name}: replicas of {', '.join(f'{value / 2**20:,.0f}' for value in memory[name])} MiB")
    size = sum(file.stat().st_size for file in (folder / "large" / "rows").rglob("*"))
    added = (max(memory["large"]) - min(memory["empty"])) / size
    return [bar("tables_private_share", added, at_most=0.1)], {
        "rows_mib": round(size / 2**20),
        "private_mib": {
            name: [round(value / 2**20, 1) for value in values] for name, values in memory.items()
        },
    }


def _touched(bundle: Path, items: int) -> list[int]:
    """Private memory of two replicas that were asked for as many candidates as there are items, twice."""
    settings = Serve(port=free_port(), min_replicas=2, max_replicas=2)
    users = [f"u{row}" for row in range(1, USERS + 1)]
    names = np.random.default_rng(0).permutation(items) + 1
    with running(bundle, settings) as url:
        for start in range(0, min(items, 64 * CANDIDATES), CANDIDATES):
            chunk = [f"i{row}" for row in names[start : start + CANDIDATES]]
            with Traffic(url, users, chunk, connections=4, pause_s=0) as traffic:
                traffic.until(40)
        return [private(pid) for pid in _replicas(bundle, settings)]


def private(pid: int) -> int:
    """Bytes that belong to a process alone. Pages of files, which the system may drop, do not count."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def _replicas(bundle: Path, settings: Serve) -> list[int]:
    state_dir = StateDir(store_folder(bundle, settings))
    return [snapshot.pid for snapshot in state_dir.snapshots() if psutil.pid_exists(snapshot.pid)]


def _target(folder: Path, port: int) -> Target:
    """Users and items with ids of one length, as wrk wants them."""
    rng, items = np.random.default_rng(0), np.arange(1000, ITEMS)
    drawn = (rng.choice(items, CANDIDATES, replace=False) for _ in range(LISTS))
    (folder / "lists").write_text("\n".join(json.dumps([f"i{row}" for row in rows]) for rows in drawn))
    (folder / "users").write_text("\n".join(f"u{row}" for row in range(100, USERS)))
    return Target(port, "/v1/rank", folder / "users", folder / "lists")


def _arrived(target: Target, rate: float, seconds: float) -> list[Answered]:
    return answered(target.port, target.requests(), moments(rate, seconds), CONNECTIONS)


def _normal_after(calm: Sequence[Answered], after: Sequence[Answered]) -> float:
    """Seconds until every second is as good as the worst one before: no refusal, no higher p95.

    Chance alone has one of the last five of 15 seconds that are all alike be worse than ten before
    it, in one run of five: `p95_ms_by_second` tells such a second from a queue.
    """
    usual = max(_p95s(calm))
    bad = [second for second, p95 in enumerate(_p95s(after)) if p95 > usual]
    refused = [int(answer.due) for answer in after if answer.status != 200]
    return float(max([-1, *bad, *refused]) + 1)


def _p95s(answers: Sequence[Answered]) -> list[float]:
    """By second; the last one, which is not whole, is left out."""
    last = int(max(answer.due for answer in answers))
    return [
        float(np.percentile([answer.seconds for answer in answers if int(answer.due) == second] or [0.0], 95))
        for second in range(last)
    ]


def _percentiles(answers: Sequence[Answered]) -> dict[str, float]:
    seconds = [answer.seconds for answer in answers] or [0.0]
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1e3, 1) for p in (50, 95, 99)}
