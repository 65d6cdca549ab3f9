"""Starts Ray without its chatter, or joins the cluster that a job runs in."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from app.errors import MachineError, RayRecError
from app.ray import haproxy, processes
from app.terminal.console import say

OBJECT_STORE_BYTES = 512 << 20
VITAL = ("gcs_server", "raylet")
ALIVE_S = 1.0  # between two checks that they live
STARTS = 3  # tries to start a local node
_LATE = re.compile("timed? ?out", re.IGNORECASE)  # what Ray says when its 30 seconds are over
_shared: list[ExitStack] = []


@contextmanager
def ray_session(*, verbose: bool | None = None) -> Iterator[None]:
    """Ray for the block: the running one, the job's cluster, or a local node of its own.

    A local node has at least 4 logical CPUs, so that a worker group never starves the tasks
    beside it. It ends with the block, or with the `shared_session` around it. `verbose` shows
    Ray's own log; None asks the environment (RAYREC_VERBOSE).

    Raises:
        MachineError: the machine is too busy for a local node to start.
        RayRecError: the local node died; nothing is left of it.
    """
    with ExitStack() as stack:
        owner = _shared[-1] if _shared else stack
        owner.enter_context(_running(bool(os.environ.get("RAYREC_VERBOSE")) if verbose is None else verbose))
        yield


@contextmanager
def shared_session() -> Iterator[None]:
    """Let all sessions in the block use one node: started by the first, if any, ended with the block."""
    with ExitStack() as stack:
        _shared.append(stack)
        try:
            yield
        finally:
            _shared.pop()


@contextmanager
def _running(verbose: bool) -> Iterator[None]:
    _set_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    level = logging.INFO if verbose else logging.ERROR
    joined = os.environ.get("RAY_ADDRESS", "") not in ("", "local")
    node: AbstractContextManager[dict[str, Any]] = nullcontext({}) if joined else _local_node()
    logs: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level, "configure_logging": True}
    with node as options:
        if joined:
            ray.init(**logs)
        else:
            _start(lambda: ray.init(address="local", **logs, **options))
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(level)
    if not verbose:
        # Ray prints the ends of its own actors on stdout, where --json promises one object alone.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        with nullcontext() if joined else _alive():
            yield
    finally:
        if not joined and dead_part():  # the others wait for it, and so would a shutdown in good order
            processes.end_run(processes.run_mark(), patience_s=0)
        ray.shutdown()
        if not joined:
            processes.end_run(processes.run_mark())
            haproxy.forget()


def _start(start: Callable[[], object]) -> None:
    """Start a local node, again where the machine is too busy for the time that Ray gives it.

    Raises:
        MachineError: it never came up in time.
    """
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            start()
            return
        except Exception as error:
            if not _LATE.search(str(error)):
                raise
            late = error
        ray.shutdown()
        processes.end_run(processes.run_mark(), patience_s=0)  # what has come up of the node
        if attempt < STARTS:
            say(f"the machine is too busy for Ray to start in time; trying again ({attempt + 1} of {STARTS})")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    raise MachineError(
        f"Ray did not start within its 30 seconds, {STARTS} times (load {load:.1f} on {cores} cores)",
        remedy="end other work on this machine or wait until it has less to do, then start again",
    ) from late


def dead_part() -> str:
    """Name of the local node's vital process that has died; "" while all live or it is not ours."""
    import ray

    node = ray._private.worker._global_node
    dead: list[str] = [name for name, _ in node.dead_processes()] if node is not None else []
    return next((name for name in dead if name in VITAL), "")


@contextmanager
def _alive() -> Iterator[None]:
    """End the block with an error when the node dies meanwhile: its calls into Ray would wait for ever.

    Where SIGINT is ignored, as under `nohup ... &`, it stays so for all others.
    """
    main, ended = threading.main_thread(), threading.Event()

    def watch() -> None:
        while not ended.wait(ALIVE_S):
            if dead_part():
                signal.pthread_kill(main.ident or 0, signal.SIGINT)  # wakes whatever it waits for
                return

    watcher = threading.Thread(target=watch, name="ray-alive", daemon=True)
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is main:  # the only one that can be woken
        if before == signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt_if_dead)
        watcher.start()
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if part := dead_part():
            raise RayRecError(f"{part} has died, and Ray with it", remedy="start again") from error
        raise
    finally:
        ended.set()
        if watcher.ident:
            watcher.join()
            signal.signal(signal.SIGINT, before)


def _interrupt_if_dead(*_: object) -> None:
    if dead_part():
        raise KeyboardInterrupt


def _set_environment() -> None:
    for name, value in haproxy.variables().items():
        # Ray reads this one when it is imported: set later, its processes would not agree on it.
        if name == "RAY_AUTH_MODE" and "ray" in sys.modules and name not in os.environ:
            say("Ray was imported before RayRec, so its token authentication stays off")
            continue
        os.environ.setdefault(name, value)


@contextmanager
def _local_node() -> Iterator[dict[str, Any]]:
    """Options of a node that starts within the block, marked as this driver's."""
    processes.end_dead_runs()
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "0":
        os.environ.update(haproxy.environment())
        os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] = str(haproxy.free_port())
    with processes.marked():
        yield {
            "num_cpus": max(4, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
