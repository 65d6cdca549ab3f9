"""Numbers: missing values filled, then one normalised float a value.

    none      the value
    standard  (value - mean) / standard deviation
    minmax    the training range to [0, 1]; values beyond it are clipped
    log       sign * log(1 + |value|), then standard
    quantile  share of training values below (ties count half), in [0, 1]

Text that spells a number counts as one. NaN, infinities, text that is no number and numbers
too large for float32 count as missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from app.features.base import Array, Feature, State

LARGEST = float(np.finfo(np.float32).max)
KNOTS = 1000  # of the quantile curve


@dataclass(frozen=True)
class Number(Feature):
    """A numeric column as one normalised float."""

    cells: ClassVar[Literal["number", "category", "text"]] = "number"

    normalise: Literal["none", "standard", "minmax", "log", "quantile"] = field(
        default="standard",
        metadata={"description": "how values are scaled, by figures of the training part"},
    )
    missing: Literal["median", "constant", "category"] = field(
        default="median",
        metadata={
            "description": "what fills missing values; category: the median, and a second float is 1 there"
        },
    )
    fill: float = field(default=0.0, metadata={"description": "the value that missing = 'constant' fills in"})

    def fit(self, column: Array) -> State:
        """Median, centre and scale, or quantile curve, of the values present."""
        values = _numbers(column)
        values = values[~np.isnan(values)]
        fill = self.fill if self.missing == "constant" or not len(values) else float(np.median(values))
        return {"fill": fill, **_FIT[self.normalise](values)}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, 1) float32, or (N, 2) with the indicator."""
        values = _numbers(column)
        absent = np.isnan(values)
        values = np.where(absent, state["fill"], values)
        with np.errstate(over="ignore"):  # clipped below
            values = self._normalised(values, state)
        parts = [np.clip(values, -LARGEST, LARGEST)] + [absent] * (self.missing == "category")
        return np.stack(parts, 1).astype(np.float32)

    def _normalised(self, values: Array, state: State) -> Array:
        if "knots" in state:
            return _curve(values, state["knots"], state["ranks"])
        values = _log(values) if self.normalise == "log" else values
        values = (values - state["centre"]) / state["scale"]
        return np.clip(values, 0.0, 1.0) if self.normalise == "minmax" else values


def _numbers(column: Array) -> Array:
    return np.fromiter((_number(value) for value in column), np.float64, len(column))


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan
    return number if -LARGEST <= number <= LARGEST else np.nan


def _log(values: Array) -> Array:
    return np.sign(values) * np.log1p(np.abs(values))


def _unchanged(values: Array) -> State:
    return {"centre": 0.0, "scale": 1.0}


def _standard(values: Array) -> State:
    if not len(values):
        return _unchanged(values)
    centre, scale = float(values.mean()), float(values.std())
    # The deviation of a constant column is rounding noise, not a scale.
    steady = scale <= 1e-9 * max(float(np.abs(values).max()), 1e-30)
    return {"centre": centre, "scale": 1.0 if steady else scale}


def _minmax(values: Array) -> State:
    if not len(values):
        return _unchanged(values)
    low, high = float(values.min()), float(values.max())
    return {"centre": low, "scale": high - low if high > low else 1.0}


def _quantile(values: Array) -> State:
    if not len(values):
        return _unchanged(values)
    knots, counts = np.unique(values, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(values)
    kept = np.unique(np.linspace(0, len(knots) - 1, KNOTS).astype(np.int64))
    return {"knots": knots[kept], "ranks": ranks[kept]}


def _curve(values: Array, knots: Array, ranks: Array) -> Array:
    """Piecewise linear, flat beyond the ends; by hand, so that one value equals many bit for bit."""
    if len(knots) == 1:
        return np.where(values == knots[0], ranks[0], np.where(values < knots[0], 0.0, 1.0))
    values = np.clip(values, knots[0], knots[-1])
    left = np.clip(np.searchsorted(knots, values, "right") - 1, 0, len(knots) - 2)
    share = (values - knots[left]) / (knots[left + 1] - knots[left])
    return np.asarray(ranks[left] + share * (ranks[left + 1] - ranks[left]))


_FIT: dict[str, Callable[[Array], State]] = {
    "none": _unchanged,
    "standard": _standard,
    "minmax": _minmax,
    "log": lambda values: _standard(_log(values)),
    "quantile": _quantile,
}
