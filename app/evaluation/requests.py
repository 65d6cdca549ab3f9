"""Requests: what a user asks for at a moment, and what a model is shown of the user then.

`history_of`, `context_of` and `batch_of` turn a user's recent events into model input; the
training sampler and the evaluation share them, so that both see a user alike.
`Requests` lists whom a part of the data set lets us ask, and for what.

Protocol: one request a user, at the time of the first event to predict, with all that is
known before the part. Its targets are the distinct items of the user's positive events in
the part. What training never saw counts against the model, as it would for a user: an
unknown item (row 0) is a target that no ranking holds; each event on one counts, since two
of them cannot be told apart. Unknown users (row 0) cannot be told apart either: their events
of one moment, such as those of a basket, are one request with no history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from app.data.dataset import Array, Dataset, Part
from app.features.context import age, context
from app.models.base import Batch, History

RecentEvents = tuple[Array, Array, Array]  # item, event, time; each (B, L), the most recent last


def recent_of(dataset: Dataset, users: Array, parts: Sequence[Part]) -> RecentEvents:
    """The last L events of users (B,) over `parts`; unknown users (row 0) have none."""
    item, event, time = dataset.recent(users, *parts)
    known = users[:, None] > 0  # the rows of user 0 are those of many people
    return np.where(known, item, 0), np.where(known, event, 0), np.where(known, time, 0)


def history_of(recent: RecentEvents, now: Array) -> History:
    """Model input of recent events, with their ages at `now` (B,) microseconds."""
    item, event, time = recent
    return History(
        item=torch.from_numpy(item.astype(np.int64)),
        event=torch.from_numpy(event.astype(np.int64)),
        age=torch.from_numpy(age(now[:, None], time)),
    )


def context_of(dataset: Dataset, recent: RecentEvents, now: Array) -> torch.Tensor:
    """Context features (B, T) of the moments `now` (B,), after the recent events."""
    return torch.from_numpy(context(dataset.schema.context, now, recent[2][:, -1]))


def batch_of(
    dataset: Dataset,
    users: Array,
    recent: RecentEvents,
    now: Array,
    items: Array,
    label: Array | None = None,
) -> Batch:
    """A batch of B requests.

    Args:
        users: (B,) rows of users.
        recent: their events before the request.
        now: (B,) microseconds.
        items: (B, C) rows of candidates.
        label: (B, C) float32; None: zeros.
    """
    return Batch(
        user=torch.from_numpy(users.astype(np.int64)),
        item=torch.from_numpy(items.astype(np.int64)),
        history=history_of(recent, now),
        context=context_of(dataset, recent, now),
        label=torch.zeros(items.shape) if label is None else torch.from_numpy(label),
    )


@dataclass(frozen=True)
class Requests:
    """U requests with T targets in all.

    Targets of request u are those from indptr[u] to indptr[u + 1]; `row` (T,) is the event in
    `part` that each was found in, and `target` its item, 0 where training does not know it.
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

        A request is never made before the events it may use: a random split has profiles
        that reach beyond the event to predict, and their ages would all be 0.
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
