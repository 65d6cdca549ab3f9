"""Ends what a killed run left behind, and nothing else.

Every process of a local Ray node inherits a mark in its environment that names the driver
which started it, by pid and start time. A process whose driver lives no more is left over;
neither a name nor a port is ever the reason to end one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

# The name goes with the form of the mark: a version that writes another form must not take a driver for dead.
MARK = "RAYREC_DRIVER"
PATIENCE_S = 5.0
SAME_S = 2.0  # the clock may be set while a process runs; a pid does not come round so quickly


def run_mark(pid: int | None = None) -> str:
    """The mark of a driver (None: this process), or "" when no such process lives."""
    process = _living(os.getpid() if pid is None else pid)
    return f"{process.pid}-{process.create_time():.2f}" if process else ""


def lives(mark: str) -> bool:
    """Whether the driver of a mark lives."""
    pid, _, created = mark.partition("-")
    process = _living(int(pid)) if pid.isdigit() else None
    return process is not None and abs(process.create_time() - float(created)) < SAME_S


@contextmanager
def marked() -> Iterator[None]:
    """Processes started within the block, and their children, carry this driver's mark."""
    os.environ[MARK] = run_mark()
    try:
        yield
    finally:
        del os.environ[MARK]


def of_run(mark: str) -> list[int]:
    """Pids of the processes that carry `mark`."""
    return [process.pid for process, process_mark in _marked_processes() if process_mark == mark]


def end_dead_runs() -> list[int]:
    """Kill the processes whose driver is dead; returns their pids once they are gone."""
    return _kill([process for process, mark in _marked_processes() if not lives(mark)])


def end_run(mark: str, patience_s: float = PATIENCE_S) -> list[int]:
    """Wait for the processes of a run to end by themselves, then kill the rest; returns the pids of these."""
    deadline = time.monotonic() + patience_s
    while of_run(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return _kill([process for process, process_mark in _marked_processes() if process_mark == mark])


def _marked_processes() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it ended meanwhile, or it is another user's
            mark = process.environ().get(MARK)
            if mark and process.pid != os.getpid():
                yield process, mark


def _living(pid: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return process
    return None


def _kill(processes: list[psutil.Process]) -> list[int]:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while any(_living(process.pid) == process for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [process.pid for process in processes]
