"""`rayrec serve` as a process: kill -9 of it or of Ray, a new start at once on the same port, Ctrl-C.

The last start is from no replica, with a second model from an address.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from app.bundle.runtime import Ranker
from app.ray.processes import of_run, run_mark
from app.recipe import Serve
from app.serving.listen import API_KEY, check_port
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset

KEY = "a key that nobody else is to know"


def start(bundle: Path, port: int, *options: str, ignoring: str = "") -> tuple[subprocess.Popen[str], str]:
    """The process, and its mark once it serves; `ignoring` a signal, as a shell has it start."""
    command = [sys.executable, "-m", "app", "serve", str(bundle), "--port", str(port), *options]
    if ignoring:
        command = ["sh", "-c", f'trap "" {ignoring}; exec "$@"', "sh", *command]
    # Of its own session, so that a Ctrl-C for its group does not reach the tests.
    env = {**os.environ, API_KEY: KEY}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    printed = []
    for line in process.stderr:
        printed.append(line)
        if line.startswith("try: curl "):
            return process, run_mark(process.pid)
    raise AssertionError("".join(printed))


@dataclass
class Starts:
    """The folder and the port that all starts share, one after the other, and their marks."""

    folder: Path
    port: int
    marks: list[str] = field(default_factory=list)

    def start(self, *options: str, ignoring: str = "") -> subprocess.Popen[str]:
        process, mark = start(self.folder / "bundle", self.port, *options, ignoring=ignoring)
        self.marks.append(mark)
        return process


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        starts = Starts(tmp_path_factory.mktemp("foreground"), int(probe.getsockname()[1]))
    dataset = tiny_dataset(starts.folder / "dataset", users=20, items=20, events=300)
    bundle_of(random_model("mlp", dataset), dataset, starts.folder / "bundle")
    bundle_of(random_model("bilinear", dataset), dataset, starts.folder / "news")
    return starts


@pytest.fixture
def starts(service: Starts) -> Iterator[Starts]:
    """Nothing of one test is left to the next, so that a failure stays alone."""
    yield service
    for mark in service.marks:
        for pid in of_run(mark):
            os.kill(pid, signal.SIGKILL)


def unmarked(driver: int, mark: str) -> set[int]:
    """Processes below `driver` without its mark, in two looks.

    One that just begins or has just ended has no environment to be read.
    """
    looks = []
    for _ in range(2):
        children = psutil.Process(driver).children(recursive=True)
        assert len(children) > 5
        marked = set(of_run(mark))
        looks.append({child for child in children if child.pid not in marked and lives(child)})
    return {child.pid for child in looks[0] & looks[1]}


def knowing(driver: int, secret: str) -> list[str]:
    """Names of the processes below `driver` in whose environment a text stands."""
    names = []
    for child in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error, OSError):
            if secret.encode() in Path(f"/proc/{child.pid}/environ").read_bytes():
                names.append(child.name())
    return names


def lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_after_kill_9_of_it_or_of_ray_it_starts_at_once(starts: Starts) -> None:
    killed = starts.start()
    assert not unmarked(killed.pid, starts.marks[-1])  # whatever titles they gave themselves
    assert knowing(killed.pid, KEY) == []
    assert httpx.get(f"http://127.0.0.1:{starts.port}/v1/popular").status_code == 401
    answer = httpx.get(f"http://127.0.0.1:{starts.port}/v1/popular", headers={"X-API-Key": KEY})
    assert answer.status_code == 200
    killed.kill()
    killed.communicate()
    assert of_run(starts.marks[-1])  # the fault happened: Ray or HAProxy outlived their driver

    robbed = starts.start(ignoring="INT")  # as `nohup rayrec serve ... &` in a script
    assert of_run(starts.marks[-2]) == []
    robbed.send_signal(signal.SIGINT)
    assert httpx.get(f"http://127.0.0.1:{starts.port}/v2/health/ready").status_code == 200
    [raylet] = [p for p in psutil.Process(robbed.pid).children() if p.name() == "raylet"]
    raylet.kill()
    _, printed = robbed.communicate(timeout=60)
    assert (robbed.returncode, of_run(starts.marks[-1])) == (2, [])
    assert "raylet has died" in printed and "Traceback" not in printed


def test_from_no_replica_with_a_second_model_until_ctrl_c(starts: Starts) -> None:
    copies = starts.folder / "copies"
    further = ("--model", f"news={(starts.folder / 'news').as_uri()}", "--set", f"serve.cache_dir={copies}")
    # The question whether it is ready is the call that wakes it.
    served = starts.start("--cpus", "2", *further, "--set", "serve.min_replicas=0")
    url = f"http://127.0.0.1:{starts.port}/v1"
    headers = {"X-API-Key": KEY}
    answer = httpx.post(f"{url}/recommend", json={"user": "u1", "k": 3}, headers=headers)
    assert len(answer.json()["items"]) == 3
    assert not copies.exists()
    answer = httpx.post(
        f"{url}/models/news/rank", json={"user": "u1", "items": ["i1", "i2"]}, headers=headers
    )
    assert answer.json()["version"] == Ranker.open(starts.folder / "news").version
    assert copies.exists()

    os.killpg(served.pid, signal.SIGINT)  # as a terminal does
    _, printed = served.communicate(timeout=60)
    assert served.returncode == 130
    assert "Traceback" not in printed
    assert of_run(starts.marks[-1]) == []
    check_port(Serve(port=starts.port))
