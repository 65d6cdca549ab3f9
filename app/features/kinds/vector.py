"""Vectors that a column holds: floats about 1 in size, and a last float that says where there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from app.features.base import Array, Feature, State, Unusable, as_text, is_missing

LARGEST = 1e18  # of a vector's numbers: their squares are finite in float32 sums
_SEPARATORS = str.maketrans(dict.fromkeys(",;|[](){}\"'", " "))


@dataclass(frozen=True)
class Vector(Feature):
    """A column of vectors: lists of numbers, or text of numbers between blanks, commas, bars or brackets.

    The width is the one that most training values have. Vectors are centred, and scaled by one number for
    all of them, so that their directions stay. A value that is missing or unusable gives zeros, the mean
    vector, and 1 as the last float.
    """

    cells: ClassVar[Literal["number", "category", "text", "vector"]] = "vector"

    def prepared(self, column: Array) -> Array:
        """Vectors (N,): each an array (width,) float32, None or Unusable."""
        return _objects([parsed(value) for value in column])

    def problem(self, value: Any, state: State) -> str:
        """What is wrong with a vector: its numbers, or its width."""
        vector = parsed(value)
        if isinstance(vector, Unusable):
            return vector.reason
        if vector is None or len(vector) == state["width"]:
            return ""
        return f"another width than {state['width']}"

    def fit(self, column: Array) -> State:
        """The width, the mean vector, and the root of the mean squared distance to it over the width."""
        vectors = [v for v in self._vectors(column) if isinstance(v, np.ndarray)]
        widths = Counter(map(len, vectors))
        width = max(widths, key=lambda length: (widths[length], length), default=0)
        good = [v for v in vectors if len(v) == width]
        rows = np.array(good, np.float64).reshape(len(good), width)
        centre = rows.mean(0) if good else np.zeros(width)
        scale = float(np.sqrt(np.square(rows - centre).mean())) if rows.size else 0.0
        # The spread of vectors that are all alike is rounding noise, not a scale.
        steady = scale <= 1e-6 * max(float(np.abs(rows).max(initial=0)), 1e-12)
        return {"width": width, "centre": centre.astype(np.float32), "scale": 1.0 if steady else scale}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, width + 1) float32."""
        width = int(state["width"])
        dense = np.zeros((len(column), width + 1), np.float32)
        dense[:, width] = 1
        for row, vector in enumerate(self._vectors(column)):
            if isinstance(vector, np.ndarray) and len(vector) == width and width:
                dense[row, :width] = (vector - state["centre"]) / np.float32(state["scale"])
                dense[row, width] = 0
        return np.clip(dense, -LARGEST, LARGEST)

    def _vectors(self, column: Array) -> list[Array | Unusable | None]:
        return [parsed(value) for value in column]


def parsed(value: Any) -> Array | Unusable | None:
    """A cell as a vector (width,) float32; None where it is missing."""
    if isinstance(value, Unusable) or (isinstance(value, np.ndarray) and value.dtype == np.float32):
        return value
    if not isinstance(value, list | tuple | np.ndarray) and is_missing(value):
        return None
    listed = isinstance(value, list | tuple | np.ndarray)
    parts = value if listed else as_text(value).translate(_SEPARATORS).split()
    if not len(parts):
        return None
    try:
        numbers = np.array([float(part) for part in parts], np.float64)
    except (TypeError, ValueError, OverflowError):
        return Unusable("not all are numbers", as_text(value))
    if not np.isfinite(numbers).all():
        return Unusable("NaN or infinite", as_text(value))
    if np.abs(numbers).max() > LARGEST:
        return Unusable(f"a number beyond {LARGEST:g}", as_text(value))
    return numbers.astype(np.float32)


def _objects(cells: list[Any]) -> Array:
    array = np.empty(len(cells), object)
    array[:] = cells
    return array
