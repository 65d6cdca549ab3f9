"""Stops a trial whose training is behind: asynchronous successive halving over several objectives.

After a third and a ninth of the epochs, as a rung, a trial is put beside those that came there before it
(Li et al. 2020, "A system for massively parallel hyperparameter tuning"). They are ranked by non-dominated
sorting of quality, latency and bytes (Schmucker et al. 2021, "Multi-objective asynchronous successive
halving"), so a small and fast model goes on although its quality is low. Latency and bytes do not depend on
the weights: they are measured before the training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from app.files import locked
from app.training.hosts import Figures
from tuning.points import Point, pareto_front

FACTOR = 3  # a rung lets through one of so many, beside all that no other beats
RUNGS = 2


class Stopped(Exception):
    """A trial ended before its last epoch; `point` is what it had reached."""

    def __init__(self, point: Point, epoch: int) -> None:
        super().__init__(f"stopped after epoch {epoch}")
        self.point, self.epoch = point, epoch


def rungs(epochs: int) -> list[int]:
    """The epochs after which a trial of so many is judged; none where it is too short for that."""
    return sorted({-(-epochs // FACTOR**k) for k in range(1, RUNGS + 1) if epochs >= FACTOR**k})


class Halving:
    """Called with the figures of each epoch of a trial; raises Stopped where it is to end.

    Args:
        path: file of what all trials reached at each rung, a line each.
        point: costs and settings of this trial; its quality is not known yet.
        epochs: that it is to be trained for.
    """

    def __init__(self, path: Path, point: Point, epochs: int) -> None:
        self.path, self.point = path, replace(point, quality=float("-inf"))
        self.left = rungs(epochs)

    def __call__(self, figures: Figures) -> None:
        """Judge the trial where it has come to its next rung."""
        quality = figures.get(self.point.metric)
        if quality is not None and quality > self.point.quality:
            self.point = replace(self.point, quality=float(quality))
        epoch = int(figures["epoch"])
        if not self.left or epoch < self.left[0] or quality is None:
            return
        rung = self.left.pop(0)
        if not goes_on(self._recorded(rung), self.point):
            raise Stopped(self.point, epoch)

    def _recorded(self, rung: int) -> list[Point]:
        """Put this trial down at a rung; returns all other trials that came there."""
        own = json.dumps(self.point.settings, sort_keys=True)
        with locked(self.path.with_suffix(".lock")):
            lines = self.path.read_text().splitlines() if self.path.is_file() else []
            with self.path.open("a") as stream:
                stream.write(json.dumps([rung, own, asdict(self.point)]) + "\n")
        entries = [json.loads(line) for line in lines]
        # A trial that was cut off and runs again has left a line of its own.
        others = {settings: point for at, settings, point in entries if at == rung and settings != own}
        return [_point(content) for content in others.values()]


def goes_on(others: Sequence[Point], point: Point) -> bool:
    """Whether fewer than one in FACTOR of the trials of a rung lie on fronts before that of a trial."""
    remaining, before = [*others, point], 0
    while point not in (layer := pareto_front(remaining)):
        before += len(layer)
        remaining = [other for other in remaining if other not in layer]
    return before < (len(others) + 1) / FACTOR


def _point(content: Figures) -> Point:
    return Point(**{**content, "p95_range": tuple(content["p95_range"])})
