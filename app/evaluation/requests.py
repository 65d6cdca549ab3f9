"""Requests: for which users a part of the data set can be evaluated, when, and what they should get.

Protocol: one request a user, at the time of the first event to predict, with all that is
known before the part. Its targets are the distinct items of the user's positive events in
the part. An item that training dropped (row 0) counts against the model, as it would for a
user: it is a target that no ranking holds. Each event on one counts, because nothing tells two
of them apart. Nor does anything tell unknown users (row 0) apart: their events of one moment,
such as those of a basket, are one request with no history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from app.data.dataset import Array, Dataset, Part
from app.models.base import Batch
from app.models.batch import batch_of, recent_of


@dataclass(frozen=True)
class Requests:
    """U requests with T targets in all.

    Targets of request u are those from indptr[u] to indptr[u + 1]; `row` (T,) is the event in
    `part` that each is, and `target` its item, 0 where training does not know it.
    """

    part: Part
    past: tuple[Part, ...]
    user: Array  # (U,) rows of users
    now: Array  # (U,) microseconds
    target: Array  # (T,) rows of items
    row: Array  # (T,)
    indptr: Array  # (U + 1,)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def owner(self) -> Array:
        """(T,) the request that each target belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))

    def padded(self, chosen: slice, values: Array) -> Array:
        """(B, widest) of a value a target, such as `target`, by request; -1 where there is none."""
        starts, counts = self.indptr[:-1][chosen], np.diff(self.indptr)[chosen]
        slots = np.arange(counts.max(initial=0))
        rows = np.minimum(starts[:, None] + slots, len(self.target) - 1)
        return np.where(slots < counts[:, None], values[rows], -1)

    def sample(self, count: int, seed: int) -> Requests:
        """At most `count` of the requests, drawn with `seed`; 0 keeps all."""
        if not 0 < count < len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        kept = np.isin(self.owner, chosen)
        return replace(
            self,
            user=self.user[chosen],
            now=self.now[chosen],
            target=self.target[kept],
            row=self.row[kept],
            indptr=np.concatenate([[0], np.cumsum(np.diff(self.indptr)[chosen])]),
        )

    def batch(self, dataset: Dataset, chosen: slice, items: Array) -> Batch:
        """Model input of some requests with candidates `items` (B, C).

        The time of a request is never before the events that it may use: a random split has
        histories that reach beyond the event to predict, and their ages would all be 0.
        """
        users = self.user[chosen]
        recent = recent_of(dataset, users, self.past)
        now = np.maximum(self.now[chosen], recent[2].max(1, initial=0))
        return batch_of(dataset, users, recent, now, items)


def requests_of(dataset: Dataset, part: str) -> Requests:
    """The requests of a part, "valid" or "test"; the past of test includes valid."""
    events, past = {
        "valid": (dataset.valid, (dataset.train,)),
        "test": (dataset.test, (dataset.train, dataset.valid) if len(dataset.valid) else (dataset.train,)),
    }[part]
    rows = np.flatnonzero(np.asarray(events.label) > 0)
    user, item, time = (np.asarray(column)[rows].astype(np.int64) for column in _columns(events))
    _, moment = np.unique(time, return_inverse=True)
    group = np.where(user > 0, user + len(user), moment)
    _, first, owner = np.unique(group, return_index=True, return_inverse=True)
    distinct = np.where(item > 0, item, dataset.schema.items + np.arange(len(item)))
    _, kept = np.unique(owner * (dataset.schema.items + len(item)) + distinct, return_index=True)
    return Requests(
        part=events,
        past=past,
        user=user[first],
        now=time[first],
        target=item[kept],
        row=rows[kept],
        indptr=np.searchsorted(owner[kept], np.arange(len(first) + 1)),
    )


def _columns(part: Part) -> tuple[Array, Array, Array]:
    return part.user, part.item, part.time
