"""Starts Ray quietly, or joins the cluster that a job runs in."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from app.errors import RayRecError
from app.ray import haproxy, processes
from app.terminal.console import say

# Why each: auth, because core Ray listens on every interface; no telemetry; the title that a
# process of Ray gives itself must not overwrite its environment, whose mark tells whose it is;
# Ray's own metrics, which nobody collects here, take memory ever more; Ray Train answers a report
# once per health check; a replica that ends waits only until HAProxy left it (30 s by default); a
# busy machine needs more than 5 s to start HAProxy, whose line per request nobody reads, and whose
# death Serve sees after three checks, by default 10 s apart; a client that is silent for long is
# let go, and a request whose replica died is sent to another; replicas tell their load every 10 s
# by default, too late for a rush; Ray lowers its workers' priority, which starves a replica beside
# any other load; malloc gives each of a replica's many threads an arena that grows on its own; the
# rest keeps Ray's chatter out of the user's terminal.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "SPT_NOENV": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "75",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "RAY_worker_niceness": "0",
    "MALLOC_ARENA_MAX": "2",
    "RAY_TQDM": "0",
}
OBJECT_STORE_BYTES = 512 << 20
VITAL = ("gcs_server", "raylet")
ALIVE_S = 1.0  # between looks whether they live
_shared: list[ExitStack] = []


@contextmanager
def ray_session(*, verbose: bool | None = None) -> Iterator[None]:
    """Ray for the block: the running one, the job's cluster, or a local node of its own.

    A local node has at least 4 logical CPUs, so that a worker group never starves the tasks
    beside it. It ends with the block, or with the `shared_session` around it. `verbose` shows
    Ray's own log; None asks the environment (RAYREC_VERBOSE).

    Raises:
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
    with node as place:
        ray.init(
            address=None if joined else "local",
            log_to_driver=verbose,
            logging_level=level,
            configure_logging=True,
            **place,
        )
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(level)
    if not verbose:
        # Ray tells on stdout of its own actors' ends; there --json promises one object alone.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        with nullcontext() if joined else _alive():
            yield
    finally:
        if not joined and dead_part():  # the others wait for it, and so would a farewell to them
            processes.end_run(processes.run_mark(), patience_s=0)
        ray.shutdown()
        if not joined:
            processes.end_run(processes.run_mark())
            haproxy.forget()


def dead_part() -> str:
    """What of the local node has died without which Ray does nothing; "" while it lives, or is another's."""
    import ray

    node = ray._private.worker._global_node
    dead: list[str] = [name for name, _ in node.dead_processes()] if node is not None else []
    return next((name for name in dead if name in VITAL), "")


@contextmanager
def _alive() -> Iterator[None]:
    """End the block with an error when the node dies under it: its calls of Ray would wait for ever."""
    main, ended = threading.main_thread(), threading.Event()

    def watch() -> None:
        while not ended.wait(ALIVE_S):
            if dead_part():
                signal.pthread_kill(main.ident or 0, signal.SIGINT)  # wakes whatever it waits for
                return

    watcher = threading.Thread(target=watch, name="ray-alive", daemon=True)
    if threading.current_thread() is main:  # the only one that can be woken
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


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
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
    with processes.marked():
        yield {
            "num_cpus": max(4, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
