"""`rayrec serve` as a process: kill -9 of it or of Ray, a new start at once on the same port, Ctrl-C.

The last start is from no replica, with a second model from an address.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil

from app.bundle.runtime import Ranker
from app.processes import of_run, run_mark
from app.recipe import Serve
from app.serving.address import check_port
from tests.bundles import bundle_of, random_model
from tests.tiny import tiny_dataset


def start(bundle: Path, port: int, *options: str) -> tuple[subprocess.Popen[str], str]:
    """The process, and its mark once it serves."""
    command = [sys.executable, "-m", "app", "serve", str(bundle), "--port", str(port), *options]
    # Of its own session, so that a Ctrl-C for its group does not reach the tests.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("try: curl "):
            return process, run_mark(process.pid)
    raise AssertionError("".join(said))


def test_kill_9_of_it_or_of_ray_then_a_start_at_once_then_ctrl_c(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    dataset = tiny_dataset(tmp_path / "dataset", users=20, items=20, events=300)
    bundle_of(random_model("mlp", dataset), dataset, tmp_path / "bundle")
    bundle_of(random_model("bilinear", dataset), dataset, tmp_path / "news")
    marks = []
    try:
        killed, mark = start(tmp_path / "bundle", port)
        marks.append(mark)
        below = psutil.Process(killed.pid).children(recursive=True)
        assert len(below) > 5
        assert {one.pid for one in below} <= set(of_run(mark))  # whatever titles they gave themselves
        killed.kill()
        killed.communicate()
        assert of_run(mark)  # the fault happened: Ray or HAProxy outlived their driver

        robbed, mark = start(tmp_path / "bundle", port)
        marks.append(mark)
        assert of_run(marks[0]) == []
        [raylet] = [p for p in psutil.Process(robbed.pid).children() if p.name() == "raylet"]
        raylet.kill()
        _, said = robbed.communicate(timeout=60)
        assert (robbed.returncode, of_run(mark)) == (2, [])
        assert "raylet has died" in said and "Traceback" not in said

        further = ("--model", f"news={(tmp_path / 'news').as_uri()}")
        copies = ("--set", f"serve.cache_dir={tmp_path / 'copies'}")
        # The question whether it is ready is the call that wakes it.
        none = ("--set", "serve.min_replicas=0")
        served, mark = start(tmp_path / "bundle", port, "--cpus", "2", *further, *copies, *none)
        marks.append(mark)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/recommend", json={"user": "u1", "k": 3})
        assert len(answer.json()["items"]) == 3
        assert not (tmp_path / "copies").exists()
        body = {"user": "u1", "items": ["i1", "i2"]}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/models/news/rank", json=body)
        assert answer.json()["version"] == Ranker.open(tmp_path / "news").version
        assert (tmp_path / "copies").exists()

        os.killpg(served.pid, signal.SIGINT)  # as a terminal does
        _, said = served.communicate(timeout=60)
        assert served.returncode == 130
        assert "Traceback" not in said
        assert of_run(mark) == []
        check_port(Serve(port=port))
    finally:
        for mark in marks:
            for pid in of_run(mark):
                os.kill(pid, signal.SIGKILL)
