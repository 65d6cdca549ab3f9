"""Where the next seconds of a search are spent: on training, or on another form of what is trained.

Each kind of trial has a rate: how often one of it found a point that no earlier trial beats, for each second
that it took. Recent trials count more, because the forms of a checkpoint are soon used up and a sampler gets
better. A kind is drawn in proportion to its rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FADES = 0.8  # weight of a trial among those of its kind, for each later one
LEAST = 0.25  # chance of a kind, however poor it was: forms of few checkpoints are a narrow search


@dataclass
class Kind:
    """What trials of a kind gained and took, faded."""

    gains: float = 0.0
    seconds: float = 0.0
    trials: int = 0

    def add(self, gained: bool, seconds: float) -> None:
        """Take in a trial."""
        self.gains = FADES * self.gains + gained
        self.seconds = FADES * self.seconds + max(seconds, 1e-3)
        self.trials += 1

    @property
    def rate(self) -> float:
        """Gains a second; as if half a gain more had been seen, so that none is hopeless."""
        return (self.gains + 0.5) / self.seconds


@dataclass
class Effort:
    """The trials of a search by kind, and the front that they found."""

    trained: Kind = field(default_factory=Kind)
    reused: Kind = field(default_factory=Kind)
    _front: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, costs: Sequence[float], seconds: float, *, reused: bool) -> None:
        """Take in a trial with its costs, of which less is better."""
        point = tuple(costs)
        beaten = point in self._front or is_beaten(point, self._front)
        if not beaten:
            self._front = [other for other in self._front if not is_beaten(other, [point])] + [point]
        (self.reused if reused else self.trained).add(not beaten, seconds)

    def chance_of_reuse(self) -> float:
        """The chance with which the next trial takes a checkpoint that is there already."""
        if not self.trained.trials:
            return 0.0
        if not self.reused.trials:
            return 1.0
        share = self.reused.rate / (self.reused.rate + self.trained.rate)
        return min(1 - LEAST, max(LEAST, share))


def is_beaten(point: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    """Whether another point is at no cost worse, and at one better."""
    own = tuple(point)
    return any(
        tuple(other) != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in others
    )
