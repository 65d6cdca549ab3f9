"""A local Ray node: start it and wait until it is ready.

`ray start --block` stays the parent of all that it starts. A temporary folder of its own keeps
the node out of /tmp/ray, where other sessions look for a cluster to join; ports that nobody
uses let it live beside theirs.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil

from cluster import api, ending, environment, state
from cluster.errors import ClusterError

READY_S = 90.0
OBJECT_STORE_BYTES = 512 << 20
PR_SET_CHILD_SUBREAPER = 36
PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


def up() -> state.Node:
    """Start a head node and wait until jobs can be submitted.

    Raises:
        ClusterError: one is up already, or Ray did not start (with the end of its output).
    """
    with state.locked():
        recorded = state.recorded()
        if recorded and state.process(recorded.pid, recorded.created):
            raise ClusterError(f"a cluster is up (pid {recorded.pid})", "`python -m cluster down` ends it")
        if recorded:
            ending.end(recorded)  # its root was killed; what it left is in the record
        # A short path: Unix sockets below it may have 107 bytes.
        node = _start(Path(tempfile.mkdtemp(prefix="rayrec-node-", dir="/tmp")))
        try:
            state.save(node)
            _wait_ready(node)
        except BaseException:
            ending.end(node)
            raise
        tree = ending.descendants(psutil.Process(node.pid))
        node = replace(node, pids=[(p.pid, p.create_time()) for p in tree])
        state.save(node)
        return node


def down() -> int:
    """End the node and all its processes; returns how many there were.

    Raises:
        ClusterError: no cluster is up, or a process would not end.
    """
    with state.locked():
        node = state.recorded()
        if node is None:
            raise ClusterError("no cluster is up", "nothing to take down")
        return ending.end(node)


def _start(folder: Path) -> state.Node:
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--disable-usage-stats", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
        # More CPUs than there are, so that a worker group never starves the tasks beside it.
        *(f"--num-cpus={max(4, os.cpu_count() or 1)}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        *("--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    with (folder / "up.log").open("wb") as log:
        started = subprocess.Popen(
            command,
            env=environment.of_node(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_become_subreaper if sys.platform == "linux" else None,
        )
    return state.Node(
        pid=started.pid,
        created=psutil.Process(started.pid).create_time(),
        address=f"127.0.0.1:{ports['port']}",
        dashboard=f"http://127.0.0.1:{ports['dashboard-port']}",
        folder=str(folder),
        pids=[],
    )


def _become_subreaper() -> None:
    # Kept over exec: orphans below `ray start` become its children and not those of init.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait_ready(node: state.Node) -> None:
    log = Path(node.folder) / "up.log"
    deadline = time.monotonic() + READY_S
    while not api.ready(node.dashboard):
        if state.process(node.pid, node.created) is None:
            raise ClusterError(f"Ray did not start:\n{_tail(log)}", "see above")
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray is not ready after {READY_S:.0f} s:\n{_tail(log)}", "try again")
        time.sleep(0.3)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are bound until there are enough, so that none repeats."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in sockets]
