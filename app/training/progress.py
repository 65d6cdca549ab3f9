"""Shows the progress of a training: reads the lines that its worker 0 appends to a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.terminal.console import Progress, progress, say
from app.training.hosts import PROGRESS

POLL_S = 0.2


@contextmanager
def showing_progress(folder: Path, epochs: int, label: str) -> Iterator[None]:
    """Show the progress of the run in `folder` while the block trains it."""
    start = (folder / PROGRESS).stat().st_size if (folder / PROGRESS).exists() else 0
    stop = threading.Event()
    with progress(label, epochs) as bar:
        thread = threading.Thread(
            target=_follow, args=(folder / PROGRESS, start, bar, stop), name="progress", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(path: Path, position: int, bar: Progress, stop: threading.Event) -> None:
    """Show the lines of `path` from byte `position` on as they come, the last ones when `stop` is set."""
    ending = False
    while not ending:
        ending = stop.wait(POLL_S)
        if not path.exists():
            continue
        with path.open("rb") as stream:
            stream.seek(position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                position += len(line)
                show(json.loads(line), bar)


def show(line: dict[str, Any], bar: Progress) -> None:
    """Show one line of the progress file to a person."""
    if line["event"] == "start":
        bar.advance(line["done"] // line["steps"] - bar.done)
        if line["resumed_from"]:
            say(f"resumed from epoch {line['resumed_from']}")
        elif line["resumed_from"] == 0:
            say("started again: the attempt before had no checkpoint yet")
    elif line["event"] == "step":
        epoch, step = divmod(line["done"], line["steps"])
        bar.advance(0, f"epoch {epoch + 1} {step / line['steps']:4.0%} {thousands(line['rate'])} samples/s")
    else:
        metric = line["metric"]
        figure = f", {metric} {line[metric]:.4f}" if metric in line else ""
        say(f"epoch {line['epoch']}: loss {line['loss']:.4f}{figure}, {thousands(line['rate'])} samples/s")
        bar.advance(line["epoch"] - bar.done, figure.lstrip(", "))


def thousands(rate: float) -> str:
    """A rate in a few characters: 45k, or 950."""
    return f"{rate / 1000:.0f}k" if rate >= 10_000 else f"{rate:.0f}"
