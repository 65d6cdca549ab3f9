"""The last events of known users, as memory-mapped arrays that all replicas share.

history/
  indptr.npy               (users + 1,): events of user row u are indptr[u]:indptr[u + 1]
  item.npy event.npy       rows of items and of event types, oldest first
  time.npy                 seconds where all times are whole seconds, else microseconds
  older.npy older_indptr.npy   items of users who have more events than the model looks at

Integers are as narrow as their values allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle.format.layout import Array, load_array
from app.errors import ArtifactError

FILES = ("indptr", "item", "event", "time", "older_indptr", "older")


@dataclass(frozen=True)
class Events:
    """Events of one user by time; rows of items and event types, and microseconds."""

    item: Array
    event: Array
    time: Array

    def __len__(self) -> int:
        return len(self.item)

    def where(self, kept: Array) -> Events:
        """The events that `kept`, a mask or positions, picks."""
        return Events(self.item[kept], self.event[kept], self.time[kept])

    def last(self, length: int) -> Events:
        """The last `length` events."""
        return self if len(self) <= length else self.where(np.arange(len(self) - length, len(self)))

    def distinct(self, length: int) -> Events:
        """Each item of the last `length` events once, where it came last."""
        last = len(self) - 1
        _, back = np.unique(self.item[max(0, last + 1 - length) :][::-1], return_index=True)
        return self if len(back) == len(self) else self.where(np.sort(last - back))

    def merge(self, later: Events) -> Events:
        """Both by time; an event that is in both, of the same type, counts once.

        A log that was trained on may hold feedback that is stored, too.
        """
        both = Events(
            np.concatenate([self.item, later.item]),
            np.concatenate([self.event, later.event]),
            np.concatenate([self.time, later.time]),
        )
        known = set(self._keys())
        new = [key not in known for key in later._keys()]
        both = both.where(np.array([True] * len(self) + new, bool))
        return both.where(np.argsort(both.time, kind="stable"))

    def _keys(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.item.tolist(), self.event.tolist(), self.time.tolist(), strict=True)


class Histories:
    """The last events of each known user, by the row of the user."""

    def __init__(self, **arrays: Array) -> None:
        self._arrays = arrays
        # The width says the unit: seconds fit into 32 bits, microseconds do not.
        self._unit = np.int64(1_000_000 if arrays["time"].dtype.itemsize <= 4 else 1)
        self._indptr, self._item, self._event, self._time = (
            arrays[name] for name in ("indptr", "item", "event", "time")
        )

    @classmethod
    def open(cls, folder: Path) -> Histories:
        """Map the files of a folder.

        Raises:
            ArtifactError: a file is missing, truncated or does not fit the others.
        """
        arrays = {name: load_array(folder / f"{name}.npy") for name in FILES}
        lengths = {len(arrays[name]) for name in ("item", "event", "time")}
        if lengths != {int(arrays["indptr"][-1])} or int(arrays["older_indptr"][-1]) != len(arrays["older"]):
            raise ArtifactError(
                "the arrays do not fit together", where=str(folder), remedy="export the bundle again"
            )
        return cls(**arrays)

    def events(self, user: int) -> Events:
        """The last events of a user."""
        start, end = self._indptr[user : user + 2].tolist()
        return Events(
            self._item[start:end], self._event[start:end], np.multiply(self._time[start:end], self._unit)
        )

    def recent_items(self, user: int) -> Array:
        """Items of the last events of a user."""
        start, end = self._indptr[user : user + 2].tolist()
        return self._item[start:end]

    def older_items(self, user: int) -> Array:
        """Items of a user's events before the last ones."""
        indptr = self._arrays["older_indptr"]
        return self._arrays["older"][int(indptr[user]) : int(indptr[user + 1])]
