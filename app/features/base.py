"""The feature protocol: fit on the training part, transform anywhere.

A feature turns one attribute column into one array. Its state is plain data (JSON values
and numpy arrays), so the same code runs over a whole column offline and for one request
online, with equal results bit for bit. Adding a kind is adding one file to `app/features/kinds`:
a frozen dataclass whose fields are the keys of its recipe entry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Any]  # JSON values and numpy arrays


@dataclass(frozen=True)
class Unusable:
    """A value that cannot be read, and counts as missing.

    Args:
        reason: why, in a few words.
        value: as it came.
    """

    reason: str
    value: str


@dataclass(frozen=True)
class Feature(ABC):
    """One attribute column in, one array out; a kind is the subclass in a file of its name.

    Fields of a subclass are the settings of a recipe entry. Their `metadata` holds a `description`
    and limits such as `ge`, which pydantic reads when it validates a recipe (its documentation, page
    "Dataclasses"); the serving runtime, which has no pydantic, builds the class as it is.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    # What the cells of the column are: "number" columns are compared as numbers, "category" columns have
    # few distinct values, "text" columns are prose, too long for filters, "vector" columns are for models
    # alone.
    cells: ClassVar[Literal["number", "category", "text", "vector"]] = "text"

    column: str = field(metadata={"description": "the attribute column"})

    def need(self) -> None:  # noqa: B027 - most kinds need nothing
        """Check that what `prepared` works with is there.

        Raises:
            MachineError: a package is not installed; names the command that installs it.
        """

    def prepared(self, column: Array) -> Array:
        """Do once, offline, what takes long: (N,) values -> (N,) values for `fit` and `transform`.

        A value that cannot be read becomes Unusable. A request does not come this way: what it brings is
        transformed as it is, so that a service opens no file that a request names.

        Raises:
            MachineError: a package that is needed is not installed.
        """
        return column

    def problem(self, value: Any, state: State) -> str:
        """Why a value, though not missing, counts as missing, in a few words; "" where it does not."""
        return value.reason if isinstance(value, Unusable) else ""

    @abstractmethod
    def fit(self, column: Array) -> State:
        """Learn from the training values, an object array (N,) with None where missing; N may be 0.

        The state of a category holds its number of rows, row 0 counted, as "cardinality".
        """

    @abstractmethod
    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, width) float32, finite; or (N,) int32 for categories, 0 unknown."""


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, not a number, or empty text."""
    return value is None or value == "" or (isinstance(value, float | np.floating) and math.isnan(value))


def as_text(value: Any) -> str:
    """A cell as text, "" where missing; 5, 5.0 and "5" are alike, since files disagree on types."""
    if isinstance(value, str):
        return value
    if isinstance(value, Unusable):
        return value.value
    if isinstance(value, list | tuple | np.ndarray):
        return " ".join(as_text(part) for part in value)
    if is_missing(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
