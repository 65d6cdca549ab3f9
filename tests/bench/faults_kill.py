"""Sudden death: of a replica under load, and of the whole service while it takes feedback."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.bundle.request.requests import RankRequest
from app.client import Client
from app.errors import RayRecError
from app.events import Event
from app.ray import processes
from app.serving.rollout import admin
from app.serving.rollout.state import Snapshot
from app.serving.rollout.state_dir import StateDir
from app.stores.schema import FILE
from app.terminal.console import say
from tests.bench.faults_change import Bars, Site, bar
from tests.bench.serving_systems import free_port

UNRETRIED, CAPACITY_S = 0.999, 15.0
FEEDERS, START_S = 4, 60.0


def replica(site: Site, requests: int, kills: int = 3) -> tuple[Bars, dict[str, Any]]:
    """Kill one of two replicas, several times, under at least so many requests in all."""
    admin.scale(site.service, 2)
    state_dir = StateDir(Path(site.service.store))
    _until(lambda: len(_working(state_dir)) == 2, 60)
    sent, failed, lost = site.traffic.total, site.traffic.failed, site.traffic.lost
    seconds = []
    for count in range(kills):
        site.traffic.until(sent + requests * count // kills)
        victim = _working(state_dir)[0]
        start = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        _until(lambda: not processes.run_mark(victim.pid), 10)  # noqa: B023  it is used at once
        _until(lambda: len([s for s in _working(state_dir) if s.replica != victim.replica]) == 2, 120)  # noqa: B023
        seconds.append(round(time.monotonic() - start, 1))
        say(f"replica {count + 1} of {kills} killed: two work again after {seconds[-1]} s")
    site.traffic.until(sent + requests)
    sent, failed = site.traffic.total - sent, site.traffic.failed - failed
    lost, share = site.traffic.lost - lost, 1 - failed / sent
    admin.scale(site.service, 0)
    return [
        bar("kill_answered_at_once", share, at_least=UNRETRIED),
        bar("kill_retried_failed", lost, at_most=0),
        bar("kill_capacity_s", max(seconds), at_most=CAPACITY_S),
    ], {"requests": sent, "failed": failed, "seconds": seconds, "failures": site.traffic.failures}


def _working(state_dir: StateDir) -> list[Snapshot]:
    """Replicas that live and answered requests just now."""
    return [
        snapshot
        for snapshot in state_dir.snapshots()
        if processes.run_mark(snapshot.pid)
        and any(state.recent.requests for state in snapshot.versions.values())
    ]


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"did not happen within {seconds:g} s")
        time.sleep(0.05)


def feedback(bundle: Path, rounds: int) -> tuple[Bars, dict[str, Any]]:
    """Kill all processes of a service that takes feedback, many times; acknowledged events must stay."""
    store = bundle.with_name("killed.store")
    draw, counter = random.Random(0), itertools.count(1)
    acknowledged: list[int] = []
    lost: set[int] = set()
    starts, killed, changed = [], [], 0
    for count in range(rounds):
        began = time.monotonic()
        with service(bundle, store) as (driver, port):
            starts.append(round(time.monotonic() - began, 1))
            with Client(f"http://127.0.0.1:{port}") as client:
                changed += _answer_changes(client, f"u{count % 400 + 1}")
            ended = threading.Event()
            feeders = [
                threading.Thread(target=_feed, args=(port, counter, acknowledged, ended))
                for _ in range(FEEDERS)
            ]
            for feeder in feeders:
                feeder.start()
            time.sleep(draw.uniform(0.2, 1.5))
            killed.append(_kill(driver))
            ended.set()
            for feeder in feeders:
                feeder.join()
        lost = set(acknowledged) - _stored(store)
        say(f"service {count + 1} of {rounds} killed: {len(acknowledged)} events, {len(lost)} lost")
    return [
        bar("feedback_changed", changed, at_least=rounds),
        bar("feedback_lost", len(lost), at_most=0),
    ], {"acknowledged": len(acknowledged), "seconds_to_start": starts, "processes_killed": killed}


@contextmanager
def service(bundle: Path, store: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`rayrec serve` as a user starts it, once it answers; it ends what a killed one left behind."""
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", str(bundle), "--port", str(port)]
    command += ["--set", f"serve.store={json.dumps(str(store))}"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: ready(port) or driver.poll() is not None, START_S)
        if driver.poll() is not None:
            raise SystemExit(f"the service ended with {driver.returncode} instead of starting")
        yield driver, port
    finally:
        _kill(driver)


def ready(port: int) -> bool:
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            return bool(client.ready()["ready"])
    except RayRecError:  # it does not answer yet
        return False


def _kill(driver: subprocess.Popen[bytes]) -> int:
    """Kill a service with all its processes at once; returns how many these were."""
    pids = [*processes.of_run(processes.run_mark(driver.pid)), driver.pid] if driver.poll() is None else []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    driver.wait()
    return len(pids)


def _feed(port: int, counter: Iterator[int], acknowledged: list[int], ended: threading.Event) -> None:
    """Send events until the service is killed; each has a number as its value."""
    with Client(f"http://127.0.0.1:{port}") as client, suppress(RayRecError):
        while not ended.is_set():
            number = next(counter)
            client.feedback([Event(f"u{number % 400 + 1}", f"i{number % 100 + 1}", "view", value=number)])
            acknowledged.append(number)


def _answer_changes(client: Client, user: str) -> bool:
    """Whether an event changes the very next answer."""
    request = RankRequest(user, [f"i{row}" for row in range(1, 101)])
    before = client.rank(request)
    client.feedback([Event(user, "i7", "view", value=0)])
    return client.rank(request).items != before.items


def _stored(store: Path) -> set[int]:
    """Values of the events that are on disk."""
    with sqlite3.connect(store / FILE) as database:
        return {int(row[0]) for row in database.execute("SELECT value FROM events WHERE value > 0")}
