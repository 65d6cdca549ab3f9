"""Which events of a user come before which."""

from __future__ import annotations

import numpy as np

from app.data.dataset import Array, Dataset


def row_type(rows: int) -> type[np.int32] | type[np.int64]:
    """The narrowest type that numbers so many rows; arrays of them live as long as the training."""
    return np.int32 if rows <= 1 << 31 else np.int64


def first_of_moment(user: Array, time: Array) -> Array:
    """(N,) for each event the first row of its user with the same time.

    Events of one moment, such as the lines of an invoice, do not come before each other.
    """
    new = np.ones(len(user), bool)
    new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    return np.maximum.accumulate(np.where(new, np.arange(len(user), dtype=row_type(len(user))), 0))


def histories_end(dataset: Dataset) -> Array:
    """(N,) for each training event the row that its history ends before.

    It is its own row, or the first one of its moment where events of a moment do not come before each other.
    """
    part = dataset.train
    if dataset.schema.tied:
        return first_of_moment(np.asarray(part.user), np.asarray(part.time))
    return np.arange(len(part), dtype=row_type(len(part)))
