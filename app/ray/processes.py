"""Ends what a killed run left behind, and nothing else.

Every process of a local Ray node inherits a mark in its environment that names the driver
which started it, by pid and start time. A process whose driver lives no more is left over;
neither a name nor a port is ever the reason to end one. Linux alone has /proc, so elsewhere
these functions find nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "RAYREC_RUN"
PATIENCE_S = 5.0


def run_mark(pid: int | None = None) -> str:
    """The mark of a driver (this process unless told), or "" when no such process lives."""
    pid = os.getpid() if pid is None else pid
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{pid}-{fields[19]}"


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
    return [pid for pid, found in _marked_processes() if found == mark]


def end_dead_runs() -> list[int]:
    """Kill the processes whose driver is dead; returns their pids once they are gone."""
    left = [pid for pid, mark in _marked_processes() if run_mark(int(mark.split("-")[0])) != mark]
    _kill(left)
    return left


def end_run(mark: str, patience_s: float = PATIENCE_S) -> list[int]:
    """Wait for the processes of a run to end by themselves, then kill what is left."""
    deadline = time.monotonic() + patience_s
    while of_run(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = of_run(mark)
    _kill(left)
    return left


def _marked_processes() -> Iterator[tuple[int, str]]:
    prefix = f"{MARK}=".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or it is another user's
            continue
        for variable in variables:
            if variable.startswith(prefix) and int(folder.name) != os.getpid():
                yield int(folder.name), variable[len(prefix) :].decode()


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + PATIENCE_S
    while any(run_mark(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
