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
from app.models.base import Batch, Reads
from app.models.batch import RecentEvents, batch_of, recent_of

BLOCK = 1 << 12  # requests whose histories are looked at together


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
    moment: Array  # (U,) microseconds: the first event to predict, at which they are asked unless delayed
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
            moment=self.moment[chosen],
            target=self.target[kept],
            row=self.row[kept],
            indptr=np.concatenate([[0], np.cumsum(np.diff(self.indptr)[chosen])]),
        )

    def last(self, dataset: Dataset) -> Array:
        """(U,) microseconds: the last event of each user before the part; 0 where there is none."""
        time = np.zeros(len(self), np.int64)
        for start in range(0, len(self), BLOCK):
            chosen = slice(start, start + BLOCK)
            time[chosen] = self.recent(dataset, chosen)[2].max(1, initial=0)
        return time

    def delayed(self, dataset: Dataset, delay: int) -> Requests:
        """The same requests asked `delay` microseconds after each user's last event.

        Users without an event are asked when they were.
        """
        last = self.last(dataset)
        return replace(self, now=np.where(last > 0, last + delay, self.now))

    def recent(self, dataset: Dataset, chosen: slice, reads: Reads = "recent") -> RecentEvents:
        """What some requests know of their users, by `data.ties` without events of the targets' moment."""
        without = self.moment[chosen] if dataset.schema.tied else None
        return recent_of(dataset, self.user[chosen], self.past, reads, without=without)

    def batch(self, dataset: Dataset, chosen: slice, items: Array, reads: Reads = "recent") -> Batch:
        """Input of a model that reads so much of a past: some requests with candidates `items` (B, C).

        The time of a request is never before the events that it may use: a random split has
        histories that reach beyond the event to predict, and their ages would all be 0.
        """
        users, recent = self.user[chosen], self.recent(dataset, chosen, reads)
        now = np.maximum(self.now[chosen], recent[2].max(1, initial=0))
        return batch_of(dataset, users, recent, now, items)


def past_of(dataset: Dataset, part: str) -> tuple[Part, ...]:
    """The parts whose events are known when "valid" or "test" is predicted."""
    return (dataset.train, dataset.valid) if part == "test" and len(dataset.valid) else (dataset.train,)


def requests_of(dataset: Dataset, part: str) -> Requests:
    """The requests of a part, "valid" or "test"; the past of test includes valid."""
    events: Part = getattr(dataset, part)
    rows = np.flatnonzero(np.asarray(events.label) > 0)
    user, item, time = (np.asarray(column)[rows].astype(np.int64) for column in _columns(events))
    # Without times each event of an unknown user stands for itself, as if it were the only one of its moment.
    moments = time if dataset.schema.timed else np.arange(len(time))
    _, moment = np.unique(moments, return_inverse=True)
    group = np.where(user > 0, user + len(user), moment)
    _, first, owner = np.unique(group, return_index=True, return_inverse=True)
    distinct = np.where(item > 0, item, dataset.schema.items + np.arange(len(item)))
    _, kept = np.unique(owner * (dataset.schema.items + len(item)) + distinct, return_index=True)
    return Requests(
        part=events,
        past=past_of(dataset, part),
        user=user[first],
        now=time[first],
        moment=time[first],
        target=item[kept],
        row=rows[kept],
        indptr=np.searchsorted(owner[kept], np.arange(len(first) + 1)),
    )


def _columns(part: Part) -> tuple[Array, Array, Array]:
    return part.user, part.item, part.time
