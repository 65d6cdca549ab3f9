"""Where the training loop runs: in this process, or in a worker of Ray Train.

A host knows its device and its place among the workers, keeps checkpoints, and tells
whoever watches how far it is, by lines of JSON in a file of the run folder.
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
    """The loop's view of where it runs."""

    rank: int
    world: int
    device: torch.device
    folder: Path

    def latest(self) -> Path | None:
        """The last checkpoint of this run, if there is one."""
        ...

    def report(self, figures: Figures, write: Write, *, epoch_ends: bool) -> None:
        """Keep a checkpoint; every worker calls it, worker 0 writes."""
        ...

    def agree(self, wanted: bool) -> bool:
        """What worker 0 wants."""
        ...

    def tell(self, **line: Any) -> None:
        """Worker 0 appends a line to the progress file."""
        ...


class LocalHost:
    """This process: checkpoints are folders that replace each other.

    Args:
        folder: of the run; checkpoints and progress go there.
        report: called with the figures of each epoch; what it raises ends the training.
    """

    rank, world = 0, 1

    def __init__(
        self, folder: Path, device: torch.device, report: Callable[[Figures], None] | None = None
    ) -> None:
        self.folder, self.device, self._report = folder, device, report

    def latest(self) -> Path | None:
        """The checkpoint that was renamed last."""
        found = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        return found[-1] if found else None

    def report(self, figures: Figures, write: Write, *, epoch_ends: bool) -> None:
        """Write aside, rename, drop the older."""
        older = self.latest()
        number = int(older.name.split("-")[1]) + 1 if older else 1
        aside = self.folder / "unfinished"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write(aside)
        aside.rename(self.folder / f"checkpoint-{number}")
        if older:
            shutil.rmtree(older)
        if epoch_ends and self._report:
            self._report(figures)

    def agree(self, wanted: bool) -> bool:
        """There is nobody else."""
        return wanted

    def tell(self, **line: Any) -> None:
        """Append a line."""
        append(self.folder, line)


class RayHost:
    """A worker of Ray Train; use it inside the training function only."""

    def __init__(self, folder: Path) -> None:
        import ray.train
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.folder, self.device = folder, get_device()
        here = context.get_local_world_size()
        # Ray leaves a worker one thread; the workers of a machine share its cores instead.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))

    def latest(self) -> Path | None:
        """The last checkpoint that Ray Train has of this run."""
        import ray.train

        found = ray.train.get_checkpoint()
        return Path(found.path) if found else None

    def report(self, figures: Figures, write: Write, *, epoch_ends: bool) -> None:
        """Through ray.train.report, which copies the folder to the run's storage."""
        import ray.train

        if self.rank:
            ray.train.report(figures)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def agree(self, wanted: bool) -> bool:
        """Worker 0's wish, sent to all."""
        if self.world == 1:
            return wanted
        flag = torch.tensor([int(wanted)], device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def tell(self, **line: Any) -> None:
        """Append a line, from worker 0."""
        if self.rank == 0:
            append(self.folder, line)


def restarted(host: Host) -> bool:
    """Whether an earlier attempt of the run ended before its first checkpoint."""
    return host.latest() is None and (host.folder / PROGRESS).exists()


def append(folder: Path, line: Figures) -> None:
    """Add a line to the progress file of a run; whole, because it is one write."""
    with (folder / PROGRESS).open("a") as stream:
        stream.write(json.dumps({"pid": os.getpid(), **line}) + "\n")
