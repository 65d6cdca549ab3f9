"""A node that does not start in time is started again, then the machine is named; workers are not heard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import ray

from app.errors import MachineError
from app.ray import haproxy, processes, session

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to"
WARNING_WORKER = """
import warnings
from app.ray.session import ray_session
with ray_session():
    import ray
    @ray.remote
    def warn():
        import sys
        warnings.warn("a warning of a library", RuntimeWarning)
        print("a line of a library", file=sys.stderr)
        return "warned"
    print(ray.get(warn.remote()))
"""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has Ray's start fail with the given messages in turn, then succeed; returns what happened, in order."""

    def fail(*messages: str) -> list[str]:
        happened: list[str] = []
        left = list(messages)

        def init(**_: Any) -> None:
            happened.append("start")
            if left:
                raise Exception(left.pop(0))

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray, "shutdown", lambda: happened.append("shut down"))
        monkeypatch.setattr(processes, "end_run", lambda *_, **__: happened.append("processes ended"))
        monkeypatch.setattr(session, "dead_part", lambda: "")
        # A node that other tests use stays as it is.
        monkeypatch.setattr(session, "_local_node", lambda: nullcontext({}))
        monkeypatch.setattr(haproxy, "forget", lambda: None)
        return happened

    return fail


def test_a_node_that_is_late_is_started_again(
    starts: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    happened = starts(LATE, "Timed out waiting for file gcs_server_port")
    with session.ray_session():
        assert happened == [*["start", "shut down", "processes ended"] * 2, "start"]
    assert "too busy for Ray to start in time; trying again (3 of 3)" in capsys.readouterr().err


def test_a_machine_that_stays_too_busy_is_named(
    starts: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = starts(*[LATE] * 9)
    monkeypatch.setattr("os.getloadavg", lambda: (23.4, 20.0, 9.0))
    late = r"30 seconds, 3 times \(load 23.4 on \d+ cores\)"
    with pytest.raises(MachineError, match=late) as caught, session.ray_session():
        pass
    assert "wait until it has less to do" in caught.value.remedy
    assert happened == ["start", "shut down", "processes ended"] * 3  # nothing is left of the last one either


def test_what_is_no_matter_of_time_is_not_tried_again(starts: Callable[..., list[str]]) -> None:
    happened = starts("no such option")
    with pytest.raises(Exception, match="no such option"), session.ray_session():
        pass
    assert happened == ["start"]


def test_warnings_in_workers_do_not_reach_the_screen() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WARNING_WORKER], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "warned\n"
    assert done.stderr == ""
