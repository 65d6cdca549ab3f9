"""Points of a search and the Pareto front over quality, latency and bytes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.files import replacing
from tuning.space import Settings

COSTS = ("p95_ms", "mb")


@dataclass(frozen=True)
class Point:
    """A finished trial: its settings and what they gave.

    Args:
        quality: `recipe.train.metric` on the validation part; more is better.
        p95_ms: latency of the serving runtime for one request of 100 candidates.
        bytes: size of the bundle.
        reused: whether it took its checkpoint from an earlier trial.
    """

    trial: int
    settings: Settings
    quality: float
    p95_ms: float
    bytes: int
    reused: bool
    metric: str

    @property
    def mb(self) -> float:
        """Size of the bundle in 10^6 bytes."""
        return self.bytes / 1e6

    def figure(self, name: str) -> float:
        """p95_ms, mb, or the quality under its own name."""
        return {"p95_ms": self.p95_ms, "mb": self.mb, self.metric: self.quality}[name]

    def figures(self) -> dict[str, float]:
        """The quality, p95_ms and mb, by name."""
        return {name: self.figure(name) for name in (self.metric, *COSTS)}


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by quality, best first.

    One point beats another if it is at least as good in all three and better in one; equal
    points beat each other in none and stay both.
    """
    if not points:
        return []
    costs = np.array([(-p.quality, p.p95_ms, p.bytes) for p in points])
    no_worse = (costs[:, None] <= costs[None]).all(2)
    better = (costs[:, None] < costs[None]).any(2)
    kept = [points[i] for i in np.flatnonzero(~(no_worse & better).any(0)).tolist()]
    return sorted(kept, key=lambda p: (-p.quality, p.p95_ms, p.bytes, p.trial))


def write_csv(points: Sequence[Point], baselines: Mapping[str, float], metric: str, path: Path) -> None:
    """One row a point: trial, figures, and every setting in a column of its own; then the baselines.

    A baseline has its name for a trial, and its quality alone.
    """
    names = sorted({name for p in points for name in p.settings})
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", metric, *COSTS, "bytes", "reused", *names])
        for p in points:
            cells = [_cell(p.settings.get(name, "")) for name in names]
            writer.writerow([p.trial, *p.figures().values(), p.bytes, int(p.reused), *cells])
        for name, quality in baselines.items():
            writer.writerow([name, quality, *[""] * (len(COSTS) + 2 + len(names))])


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
