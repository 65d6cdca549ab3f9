"""Where the training loop runs: in this process, or in a worker of Ray Train.

A host knows its device and its rank among the workers, keeps checkpoints, and logs the progress
as lines of JSON in a file of the run folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

PROGRESS = "progress.jsonl"
Write = Callable[[Path], None]
Figures = dict[str, Any]


class Host(Protocol):
    """The training loop's view of the process that it runs in."""

    rank: int
    world: int
    device: torch.device
    folder: Path

    def latest(self) -> Path | None:
        """The last checkpoint of this run, if there is one."""
        ...

    def checkpoint(self, figures: Figures, write: Write, *, epoch_ends: bool) -> None:
        """Keep a checkpoint, which `write` puts into a folder; every worker calls it, worker 0 writes."""
        ...

    def broadcast(self, value: bool) -> bool:
        """The value that worker 0 passed; every worker calls it."""
        ...

    def log(self, **line: Any) -> None:
        """Append a line to the progress file, from worker 0 alone."""
        ...


class LocalHost:
    """This process: checkpoints are folders that replace each other.

    Args:
        folder: of the run; checkpoints and progress go there.
        report: called with the figures of each epoch; an exception from it ends the training.
    """

    rank, world = 0, 1

    def __init__(
        self, folder: Path, device: torch.device, report: Callable[[Figures], None] | None = None
    ) -> None:
        self.folder, self.device, self._report = folder, device, report

    def latest(self) -> Path | None:
        """The checkpoint that was renamed last."""
        folders = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        return folders[-1] if folders else None

    def checkpoint(self, figures: Figures, write: Write, *, epoch_ends: bool) -> None:
        """Write the checkpoint beside the older one, rename it, and remove the older one."""
        older = self.latest()
        number = int(older.name.split("-")[1]) + 1 if older else 1
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write(unfinished)
        unfinished.rename(self.folder / f"checkpoint-{number}")
        if older:
            shutil.rmtree(older)
        if epoch_ends and self._report:
            self._report(figures)

    def broadcast(self, value: bool) -> bool:
        """The value itself: this process is the only worker."""
        return value

    def log(self, **line: Any) -> None:
        """Append a line to the progress file."""
        append(self.folder, line)


class RayHost:
    """A worker of Ray Train; use it inside the training function only."""

    def __init__(self, folder: Path) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.folder, self.device = folder, get_device()
        local_workers = context.get_local_world_size()
        # Ray leaves a worker one thread; the workers of a machine share its cores instead.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_workers))

    def latest(self) -> Path | None:
        """The last checkpoint that Ray Train has of this run."""
        import ray.train

        latest = ray.train.get_checkpoint()
        return Path(latest.path) if latest else None

    def checkpoint(self, figures: Figures, write: Write, *, epoch_ends: bool) -> None:
        """Report to Ray Train, which copies the folder to the run's storage."""
        import ray.train

        if self.rank:
            ray.train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def broadcast(self, value: bool) -> bool:
        """The value of worker 0, sent to all workers."""
        if self.world == 1:
            return value
        flag = torch.tensor([int(value)], device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def log(self, **line: Any) -> None:
        """Append a line to the progress file, if this is worker 0."""
        if self.rank == 0:
            append(self.folder, line)


def restarted(host: Host) -> bool:
    """Whether an earlier attempt of the run ended before its first checkpoint."""
    return host.latest() is None and (host.folder / PROGRESS).exists()


def append(folder: Path, line: Figures) -> None:
    """Add a line to the progress file of a run, in one write, so that a reader never sees half of it."""
    with (folder / PROGRESS).open("a") as stream:
        stream.write(json.dumps({"pid": os.getpid(), **line}) + "\n")
