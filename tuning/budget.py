"""Budgets such as "p95_ms<=8, mb<=20, ndcg@10>=0.98*best": what a chosen trial may cost, or must reach."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import RecipeError
from tuning.points import COSTS, Point

OF_BEST = "*best"
_LIMIT = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Limit:
    """A condition on a figure: at most `bound` for a cost, at least `bound` for the quality.

    A quality may be bounded by a share `of_best` of the best of all trials, which `choose` knows.
    """

    name: str
    bound: float
    of_best: bool = False

    def among(self, points: Sequence[Point]) -> Limit:
        """The limit with the number that its bound stands for among these points."""
        if not self.of_best:
            return self
        return Limit(self.name, self.bound * max(point.quality for point in points))

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
    if text.strip() and not text.strip(" ,"):
        raise RecipeError(f"{text!r} names no figure", where="budget", remedy=_remedy(metric))
    limits = [_limit(part, metric) for part in text.split(",") if part.strip()]
    names = [limit.name for limit in limits]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"{twice} is bounded twice", where="budget", remedy="keep one of the two")
    return limits


def _limit(text: str, metric: str) -> Limit:
    match = _LIMIT.fullmatch(text)
    remedy = _remedy(metric)
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
    of_best = number.endswith(OF_BEST) and name not in COSTS
    try:
        bound = float(number.removesuffix(OF_BEST) if of_best else number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise RecipeError(f"{number!r} is no number", where="budget", remedy=remedy)
    if of_best and not 0 < bound <= 1:
        raise RecipeError(f"no trial has {bound:g} times the best quality", where="budget", remedy=remedy)
    return Limit(name, bound, of_best)


def _remedy(metric: str) -> str:
    return f'write e.g. "p95_ms<=8, mb<=20", "{metric}>=0.1" or "{metric}>=0.98*best"'


def choose(points: Sequence[Point], limits: Sequence[Limit]) -> tuple[Point, bool]:
    """The best quality within the limits and True, else the nearest point and False.

    Where the quality alone is bounded, the smallest model that keeps it. Of equals the smaller and then the
    faster counts. Nearest is the point whose worst excess,
    as a share of its limit, is least.
    """

    def best_first(point: Point) -> tuple[float, float, float]:
        return -point.quality, point.bytes, point.p95_ms

    limits = [limit.among(points) for limit in limits]

    def smallest_first(point: Point) -> tuple[float, float, float]:
        return point.bytes, point.p95_ms, -point.quality

    within = [p for p in points if all(limit.excess(p) == 0 for limit in limits)]
    if within:
        quality_alone = bool(limits) and all(limit.name not in COSTS for limit in limits)
        return min(within, key=smallest_first if quality_alone else best_first), True
    return min(points, key=lambda p: (worst_excess(p, limits), *best_first(p))), False


def worst_excess(point: Point, limits: Sequence[Limit]) -> float:
    """By what share of its bound a point misses the limit that it misses most; 0: it keeps them all."""
    return max((limit.excess(point) for limit in limits), default=0.0)
