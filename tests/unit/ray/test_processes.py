"""What a killed run left behind is ended, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys

from app.ray import processes

DRIVER = """
import subprocess, sys, time
from app.ray.processes import marked
with marked():
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_left_is_ended_and_nothing_else() -> None:
    dead, alive = (subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE) for _ in range(2))
    try:
        children = []
        for driver in (dead, alive):
            assert driver.stdout is not None
            lines = sorted(int(driver.stdout.readline()) for _ in range(2))
            children.append(lines[1])  # the other line is the child's 1: it has begun
            assert processes.of_run(processes.run_mark(driver.pid)) == [lines[1]]
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert processes.end_dead_runs() == [children[0]]
        assert processes.run_mark(children[0]) == ""
        assert processes.run_mark(children[1])
        assert processes.end_dead_runs() == []
    finally:
        mark = processes.run_mark(alive.pid)
        for driver in (dead, alive):
            driver.kill()
            driver.wait()
            assert driver.stdout is not None
            driver.stdout.close()
        processes.PATIENCE_S, patience = 0.0, processes.PATIENCE_S
        processes.end_run(mark)
        processes.PATIENCE_S = patience


def test_a_mark_lives_as_long_as_its_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = processes.run_mark(process.pid)
    assert processes.lives(mark)
    pid, _, created = mark.partition("-")
    assert not processes.lives(f"{pid}-{float(created) - 60:.2f}")  # an earlier process of this pid
    process.communicate(b"\n")
    assert not processes.lives(mark)
    assert not processes.lives("")
