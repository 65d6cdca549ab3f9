"""The feature protocol: fit on the training part, transform anywhere.

A feature turns one attribute column into one array. Its state is plain data (JSON values
and numpy arrays), so the same code runs over a whole column offline and for one request
online, with equal results bit for bit. Adding a feature kind is adding one file.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Any]  # JSON values and numpy arrays


class Feature(Protocol):
    """One column in, one array out."""

    def fit(self, column: Array) -> State:
        """Learn from the training values, an object array with None where missing."""
        ...

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, width) float32, or (N,) int32 for categories."""
        ...
