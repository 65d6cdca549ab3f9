"""Finished trials as points of quality, latency and bytes, and their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.space import Settings

LABELS = {"p95_ms": "p95 latency of 100 candidates, ms", "mb": "bundle, MB"}
COSTS = tuple(LABELS)


@dataclass(frozen=True)
class Point:
    """A finished trial: its settings and what they gave.

    Args:
        quality: `recipe.train.metric` on the validation part; more is better.
        p95_ms: latency of the serving runtime for one request of 100 candidates.
        bytes: size of the bundle.
        reused: whether it took its checkpoint from an earlier trial.
        p95_range: the 95 % interval of the latency; (): not known, as if it were exact.
    """

    trial: int
    settings: Settings
    quality: float
    p95_ms: float
    bytes: int
    reused: bool
    metric: str
    p95_range: tuple[float, ...] = ()

    @property
    def p95_low(self) -> float:
        """Lower end of the interval of the latency."""
        return self.p95_range[0] if self.p95_range else self.p95_ms

    @property
    def p95_high(self) -> float:
        """Upper end of the interval of the latency."""
        return self.p95_range[1] if self.p95_range else self.p95_ms

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


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by quality, best first.

    One point beats another if it is at least as good in all three and better in one; equal
    points beat each other in none and stay both. Latencies are measured: one is no worse than another where
    their intervals overlap, and better where they are apart. So a point that is faster by chance alone does
    not stay. Points are beaten by those that stay, because what overlaps twice may be apart.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.quality, p.bytes, p.p95_ms, p.trial)):
        if not any(beats(other, point) for other in kept):
            kept.append(point)
    return sorted(kept, key=lambda p: (-p.quality, p.p95_ms, p.bytes, p.trial))


def beats(point: Point, other: Point) -> bool:
    """Whether a point is at least as good as another in all three figures, and better in one."""
    if point.quality < other.quality or point.bytes > other.bytes or point.p95_low > other.p95_high:
        return False
    apart = point.p95_high < other.p95_low
    return point.quality > other.quality or point.bytes < other.bytes or apart
