"""What a version of the model did, as sums: they add up over replicas and differ over time."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, TypeVar

import msgspec

# Finer than the buckets of /metrics, because versions are compared by them: 0.5 ms to 9.4 s.
BOUNDS = tuple(0.0005 * 1.2**step for step in range(55))
T = TypeVar("T", bound=msgspec.Struct)


def _buckets() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


class Scores(msgspec.Struct):
    """Best scores of answers: how many, their sum and the sum of their squares."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def add(self, score: float) -> None:
        """Count one more best score."""
        self.count += 1
        self.sum += score
        self.squares += score * score

    @property
    def mean(self) -> float:
        """The mean of the scores; 0 without any."""
        return self.sum / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """Their standard deviation; 0 without any."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2)) if self.count else 0.0


class VersionStats(msgspec.Struct):
    """The answers of a version: how many, faults of ours, times until answered, best scores."""

    requests: int = 0
    errors: int = 0
    times: list[int] = msgspec.field(default_factory=_buckets)
    scores: Scores = msgspec.field(default_factory=Scores)

    def answered(self, seconds: float, fault: bool) -> None:
        """Count one answer of the version."""
        self.requests += 1
        self.errors += fault
        self.times[bisect_left(BOUNDS, seconds)] += 1


class Comparison(msgspec.Struct):
    """Requests scored by the running version and by a new one.

    `judged` of them show how far both agree; `agreement` and `common` are sums of rank
    correlations (-1 to 1) and of shares of the best ten (0 to 1). `scores` are the new one's.
    """

    count: int = 0
    errors: int = 0
    judged: int = 0
    agreement: float = 0.0
    common: float = 0.0
    old_times: list[int] = msgspec.field(default_factory=_buckets)
    new_times: list[int] = msgspec.field(default_factory=_buckets)
    scores: Scores = msgspec.field(default_factory=Scores)


def plus(first: T, second: T, sign: int = 1) -> T:
    """The sum of two structures field by field; their difference with sign -1."""
    pairs = zip(msgspec.structs.astuple(first), msgspec.structs.astuple(second), strict=True)
    return type(first)(*(_plus(a, b, sign) for a, b in pairs))


def _plus(first: Any, second: Any, sign: int) -> Any:
    if isinstance(first, msgspec.Struct):
        return plus(first, second, sign)
    if isinstance(first, list):
        return [a + sign * b for a, b in zip(first, second, strict=True)]
    return first + sign * second


def quantile_ms(times: list[int], share: float) -> float:
    """Milliseconds within which `share` of the answers came, to a fifth; 0 without any."""
    wanted, passed = share * sum(times), 0
    if not wanted:
        return 0.0
    for bound, count in zip(BOUNDS, times, strict=False):
        passed += count
        if passed >= wanted:
            return 1e3 * bound
    return 1e3 * BOUNDS[-1]
