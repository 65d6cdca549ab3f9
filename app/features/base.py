"""The feature protocol: fit on the training part, transform anywhere.

A feature turns one attribute column into one array. Its state is plain data (JSON values
and numpy arrays), so the same code runs over a whole column offline and for one request
online, with equal results bit for bit. A feature is a frozen dataclass whose fields are the
keys of its recipe entry; adding a kind is adding one file.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Any]  # JSON values and numpy arrays


class Feature(Protocol):
    """One column in, one array out.

    Implementations are frozen dataclasses: fields are settings, `kind` names the recipe's kind.
    """

    kind: ClassVar[str]

    @property
    def column(self) -> str:
        """Name of the attribute column."""
        ...

    def fit(self, column: Array) -> State:
        """Learn from the training values, an object array (N,) with None where missing; N may be 0."""
        ...

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, width) float32, finite; or (N,) int32 for categories, 0 unknown."""
        ...


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, not a number, or empty text."""
    return value is None or value == "" or (isinstance(value, float | np.floating) and math.isnan(value))


def as_text(value: Any) -> str:
    """A cell as text, "" where missing; 5, 5.0 and "5" are alike, since files disagree on types."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return " ".join(as_text(part) for part in value)
    if is_missing(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
