"""A Redis of a test's own: Debian's redis-server on a free loopback port, ended with the block."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis


@contextmanager
def redis_server(folder: Path, *, cluster: bool = False) -> Iterator[str]:
    """Yields its URL; skips the test where redis-server is not installed.

    A cluster of one node, which has all slots, refuses what a larger one would: keys of several slots.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (Debian's package redis-server)")
    port, bus = _free_port(), _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    options = {"bind": "127.0.0.1", "port": port, "dir": folder, "appendonly": "yes", "appendfsync": "always"}
    if cluster:
        options |= {"cluster-enabled": "yes", "cluster-port": bus}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    process = subprocess.Popen([binary, *arguments, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        if cluster:
            _take_all_slots(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int) -> None:
    deadline = time.monotonic() + 10
    client = redis.Redis(port=port)
    while True:
        try:
            client.ping()
            client.close()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _take_all_slots(port: int) -> None:
    client = redis.Redis(port=port, decode_responses=True)
    client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
    deadline = time.monotonic() + 10
    while client.cluster("info")["cluster_state"] != "ok":
        assert time.monotonic() < deadline, "the cluster of one node does not start"
        time.sleep(0.02)
    client.close()
