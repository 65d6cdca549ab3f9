"""Runs work on Ray: a map over splits by Ray Data, and tasks with a bound on how many run.

Errors come back as values, so that a user's mistake is raised here as itself, without Ray's
account of it, and nothing is tried again in vain.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import RayRecError, disk_errors
from app.terminal.console import progress

Json = dict[str, Any]
_BLOCKS = 4096  # of Ray Data, each with its own account


@dataclass(frozen=True)
class Failed:
    """An error that travels from a task to the driver as a value."""

    error: RayRecError


def cores() -> int:
    """Tasks at a time: the real cores here, or the CPUs of the cluster."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    total = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return max(1, min(total, os.cpu_count() or 1) if len(nodes) == 1 else total)


def _guarded(work: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> Any:
    try:
        with disk_errors(folder):
            return work(*arguments)
    except RayRecError as error:
        return Failed(error)


def run_all(
    work: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    description: str,
    folder: str,
    *,
    gpus: int = 0,
) -> Iterator[tuple[int, Any]]:
    """(number, `work(*call)`) of all calls as they end; at most one a core runs at a time.

    Args:
        work: a function that Ray can send to its workers.
        calls: its arguments, call by call.
        description: for the progress bar; empty shows none.
        folder: where the work writes, named by errors of the disk.
        gpus: that each call takes; where the cluster has none, the calls run without.

    Raises:
        RayRecError: the first that a task raised.
    """
    import ray

    if gpus and "GPU" not in ray.cluster_resources():  # type: ignore[no-untyped-call]
        gpus = 0  # Ray would wait for one for ever; the work says it better
    task = ray.remote(num_cpus=1, num_gpus=gpus)(_guarded)
    running: dict[Any, int] = {}
    waiting = iter(enumerate(calls))
    with progress(description, len(calls)) if description else nullcontext() as bar:
        while True:
            for number, call in itertools.islice(waiting, cores() - len(running)):
                running[task.remote(work, call, folder)] = number
            if not running:
                return
            done = ray.wait(list(running), num_returns=1)[0][0]
            yield running.pop(done), _unwrap(ray.get(done))
            if bar:
                bar.advance()


def _unwrap(result: Any) -> Any:
    if isinstance(result, Failed):
        raise result.error
    return result


def map_splits(
    work: Callable[..., Json], splits: Sequence[Any], shared: tuple[Any, ...], description: str, folder: str
) -> list[Json]:
    """`work(split, *shared)` of every split through Ray Data; its small reports, unordered.

    A task reads and handles its split as a whole, so rows never travel through the object store.
    `description` and `folder` are as in `run_all`.

    Raises:
        RayRecError: the first that a task raised.
    """
    import ray.data

    _quiet()

    def handle(batch: Any) -> Any:
        results = [_guarded(work, (splits[int(n)], *shared), folder) for n in batch["item"]]
        return {"report": np.array([_encode(result) for result in results], dtype=object)}

    numbers = ray.data.from_items(list(range(len(splits))), override_num_blocks=len(splits))
    pool = ray.data.TaskPoolStrategy(size=min(cores(), len(splits)))
    mapped = numbers.map_batches(handle, batch_size=1, compute=pool, num_cpus=1)
    reports = []
    with progress(description, len(splits)) as bar:
        for row in mapped.iter_rows():
            reports.append(_decode(row["report"]))
            bar.advance()
    return reports


class _Actor:
    """The work that `maker` makes, once in each process of the pool."""

    def __init__(self, maker: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> None:
        self.folder, self.work = folder, _guarded(maker, arguments, folder)

    def __call__(self, batch: Any) -> Any:
        if isinstance(self.work, Failed):
            reports = [self.work for _ in batch["item"]]
        else:
            reports = [_guarded(self.work, (int(number),), self.folder) for number in batch["item"]]
        return {"report": np.array([_encode(report) for report in reports], dtype=object)}


def map_in_actors(
    maker: Callable[..., Callable[[int], Json]],
    arguments: tuple[Any, ...],
    numbers: Sequence[int],
    folder: str,
) -> Iterator[Json]:
    """`work(number)` of every number through Ray Data, as they end; `maker` makes `work` once a process.

    Raises:
        RayRecError: the first that `maker(*arguments)` or its work raised.
    """
    import ray.data

    _quiet()
    entries = ray.data.from_items(list(numbers), override_num_blocks=min(len(numbers), _BLOCKS))
    pool = ray.data.ActorPoolStrategy(size=min(cores(), len(numbers)))
    constructor = (maker, arguments, folder)
    mapped = entries.map_batches(
        _Actor, fn_constructor_args=constructor, batch_size=1, compute=pool, num_cpus=1
    )
    for row in mapped.iter_rows():
        yield _decode(row["report"])


def _quiet() -> None:
    """Ray Data sets its loggers up when first imported, after the session chose a level."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _encode(result: Json | Failed) -> str:
    if isinstance(result, Failed):
        e = result.error
        return json.dumps({"error": type(e).__name__, "what": e.what, "where": e.where, "remedy": e.remedy})
    return json.dumps(result)


def _decode(text: str) -> Json:
    report: Json = json.loads(text)
    if "error" in report:
        import app.errors

        kind = getattr(app.errors, report["error"])
        raise kind(report["what"], where=report["where"], remedy=report["remedy"])
    return report
