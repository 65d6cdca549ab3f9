"""Budgets such as "p95_ms<=8, mb<=20": what a chosen trial may cost, or must reach."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import RecipeError
from tuning.front import COSTS, Point

_LIMIT = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Limit:
    """A condition on a figure: at most `bound` for a cost, at least `bound` for the quality."""

    name: str
    bound: float

    def excess(self, point: Point) -> float:
        """By what share of the bound the point misses the limit; 0 where it keeps it."""
        value = point.figure(self.name)
        over = value - self.bound if self.name in COSTS else self.bound - value
        return max(0.0, over / abs(self.bound) if self.bound else over)


def parse(text: str, metric: str) -> list[Limit]:
    """The limits of a budget; no text is no limit.

    Args:
        metric: name of the quality, e.g. "ndcg@10", which a budget may bound from below.

    Raises:
        RecipeError: a condition that cannot be read, with what may be written.
    """
    limits = [_limit(part, metric) for part in text.split(",") if part.strip()]
    names = [limit.name for limit in limits]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"{twice} is bounded twice", where="budget", remedy="keep one of the two")
    return limits


def _limit(text: str, metric: str) -> Limit:
    match = _LIMIT.fullmatch(text)
    remedy = f'write e.g. "p95_ms<=8, mb<=20" or "{metric}>=0.1"'
    if match is None:
        raise RecipeError(f"{text.strip()!r} is no condition", where="budget", remedy=remedy)
    name, sign, number = match.groups()
    if name not in (*COSTS, metric):
        known = ", ".join((*COSTS, metric))
        raise RecipeError(f"unknown figure {name!r}", where="budget", remedy=f"choose among {known}")
    if (sign == "<=") != (name in COSTS):
        wanted = "<=" if name in COSTS else ">="
        raise RecipeError(
            f"{text.strip()!r} has the wrong sign", where="budget", remedy=f"write {name}{wanted}"
        )
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise RecipeError(f"{number!r} is no number", where="budget", remedy=remedy)
    return Limit(name, bound)


def choose(points: Sequence[Point], limits: Sequence[Limit]) -> tuple[Point, bool]:
    """The best quality within the limits and True, else the nearest point and False.

    Of equals the smaller and then the faster counts. Nearest is the point whose worst excess,
    as a share of its limit, is least.
    """

    def best_first(point: Point) -> tuple[float, float, float]:
        return -point.quality, point.bytes, point.p95_ms

    within = [p for p in points if all(limit.excess(p) == 0 for limit in limits)]
    if within:
        return min(within, key=best_first), True
    return min(points, key=lambda p: (max(limit.excess(p) for limit in limits), *best_first(p))), False
