"""Ends a node: exactly the processes that it started, and its folder.

`ray stop` would end every Ray process on the machine by name. Here the node's processes are
the descendants of its root, which as a child subreaper also inherits orphans; where the root
was killed before, those recorded when the node became ready.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterable

import psutil

from cluster import state
from cluster.errors import ClusterError

GRACE_S = 5.0
ROUNDS = 5  # the first asks, the others kill; a process may have children until it is gone


def end(node: state.Node) -> int:
    """End all processes of the node, remove its folder, forget it; returns how many there were.

    Raises:
        ClusterError: some would not end.
    """
    root = state.process(node.pid, node.created)
    if root:
        # Stopped, it neither cleans up by itself nor exits while its descendants end.
        root.send_signal(signal.SIGSTOP)
    known = {p for pid, created in node.pids if (p := state.process(pid, created))}
    ended: set[psutil.Process] = set()
    for round_ in range(ROUNDS):
        living = {p for p in {*known, *descendants(root)} if _alive(p)}
        if not living:
            break
        ended |= living
        _signal(living, signal.SIGTERM if round_ == 0 else signal.SIGKILL)
    if root:
        ended.add(root)
        _signal({root}, signal.SIGKILL)
    if left := [p.pid for p in ended if _alive(p)]:
        raise ClusterError(f"processes {left} would not end", "end them by `kill -9` and try again")
    shutil.rmtree(node.folder, ignore_errors=True)
    state.forget()
    return len(ended)


def descendants(root: psutil.Process | None) -> list[psutil.Process]:
    """All processes below the root."""
    try:
        return list(root.children(recursive=True)) if root else []
    except psutil.NoSuchProcess:
        return []


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    """Signal and wait until all are gone; a stopped parent reaps nobody, so a zombie counts as gone."""
    for each in processes:
        try:
            each.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + GRACE_S
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)


def _alive(each: psutil.Process) -> bool:
    try:
        return bool(each.is_running() and each.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
