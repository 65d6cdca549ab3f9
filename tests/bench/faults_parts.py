"""Sudden death of each kind of process that a service consists of, one after another.

The service goes on, or ends by itself and can be started again at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from app.ray import processes
from app.terminal.console import say
from tests.bench.faults_change import Bars, bar
from tests.bench.faults_kill import ready, service

STEADY_S = 5.0  # of answers, after which it goes on
LIMIT_S = 30.0
SHORT = ("gcs_server", "haproxy", "raylet")


def parts(bundle: Path, short: bool) -> tuple[Bars, dict[str, Any]]:
    """Kill each kind of process of a service of its own; seconds until it works again, or has ended."""
    store = bundle.with_name("parts.store")
    with service(bundle, store) as (driver, _):
        kinds = SHORT if short else tuple(sorted(_by_kind(driver)))
    seconds: dict[str, float] = {}
    ended: list[str] = []
    for kind in kinds:
        with service(bundle, store) as (driver, port):
            begun = time.monotonic()
            for pid in _by_kind(driver)[kind]:
                os.kill(pid, signal.SIGKILL)
            works = _goes_on(driver, port)
            seconds[kind] = round(time.monotonic() - begun - STEADY_S * works, 1)
            if not works:
                ended.append(kind)
        say(f"{kind} killed: {'works again' if works else 'has ended'} after {seconds[kind]} s")
    with service(bundle, store):  # whatever was killed last, it starts again
        pass
    figures = {"seconds": seconds, "ended": ended}
    return [bar("parts_s", max(seconds.values()), at_most=LIMIT_S)], figures


def _goes_on(driver: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it answers for some time on end; False once it has ended and left nothing behind."""
    mark = processes.run_mark(driver.pid)
    deadline, since = time.monotonic() + 2 * LIMIT_S, time.monotonic()
    while time.monotonic() < deadline:
        if driver.poll() is not None:
            if left := processes.of_run(mark):
                raise SystemExit(f"the service ended and left {len(left)} processes behind")
            return False
        if not ready(port):
            since = time.monotonic()
        elif time.monotonic() - since > STEADY_S:
            return True
        time.sleep(0.05)
    raise SystemExit("the service neither answers nor ends")


def _by_kind(driver: subprocess.Popen[bytes]) -> dict[str, list[int]]:
    """Pids of a service's processes by the name of their program, or the title they gave themselves."""
    pids: dict[str, list[int]] = {}
    for pid in processes.of_run(processes.run_mark(driver.pid)):
        with suppress(psutil.Error, IndexError):  # it ended meanwhile
            words = psutil.Process(pid).cmdline()
            program = words[0].rpartition("/")[2]
            script = next((word for word in words[1:] if word.endswith(".py")), "")
            name = script.rpartition("/")[2] if program.startswith("python") else program
            name = name.split(".")[0]  # an actor's title ends with what it does now
            pids.setdefault(name, []).append(pid)
    return pids
