"""What a model is shown of users at a moment: their recent events and the context, as a batch.

The training sampler, the evaluation and the tests build batches here, so that all see a user alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from app.data.dataset import Array, Dataset, Part
from app.events import WHOLE_PAST
from app.features.context import ages, gaps
from app.models.base import Batch, History, Reads

RecentEvents = tuple[Array, Array, Array]  # item, event, time; each (B, L), the most recent last


def recent_of(
    dataset: Dataset,
    users: Array,
    parts: Sequence[Part],
    reads: Reads = "recent",
    until: Array | None = None,
    without: Array | None = None,
) -> RecentEvents:
    """The events of users (B,) over `parts` that a model is shown; unknown users (row 0) have none.

    Args:
        dataset: has the events.
        users: rows of users.
        parts: whose events count.
        reads: see Model.reads. "recent": L is `features.history`; else that of the longest history, 1 at
            least.
        until: (B,) microseconds: only events before this moment; None: all.
        without: (B,) microseconds: events of this moment are left out; None: none are.
    """
    known = users[:, None] > 0  # the rows of user 0 are those of many people
    if reads == "recent":
        columns = dataset.recent(users, *parts, until=until, without=without)
    else:
        counts = sum((part.indptr[users + 1] - part.indptr[users] for part in parts), start=users * 0)
        length = int(min(WHOLE_PAST, max(1, (counts * (users > 0)).max(initial=0))))
        columns = dataset.recent(users, *parts, length=length, until=until, without=without)
    item, event, time = (np.where(known, column, 0) for column in columns)
    return distinct((item, event, time)) if reads == "all" else (item, event, time)


def distinct(recent: RecentEvents) -> RecentEvents:
    """Each item of a row once, where it came last; L becomes the most items of a row, 1 at least."""
    backwards = recent[0][:, ::-1]
    order = np.argsort(backwards, 1, kind="stable")
    ascending = np.take_along_axis(backwards, order, 1)
    first = ascending > 0
    first[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    last = np.zeros_like(first)
    np.put_along_axis(last, order, first, 1)
    kept = last[:, ::-1]
    length = max(1, int(kept.sum(1).max(initial=0)))
    packed = np.argsort(kept, 1, kind="stable")[:, -length:]  # what is left out comes first
    item, event, time = (np.take_along_axis(column * kept, packed, 1) for column in recent)
    return item, event, time


def history_of(recent: RecentEvents, *, with_gaps: bool = True) -> History:
    """Model input of recent events, with their ages at the last of them and the gaps between them."""
    item, event, time = recent
    return History(
        item=torch.from_numpy(item.astype(np.int64)),
        event=torch.from_numpy(event.astype(np.int64)),
        age=torch.from_numpy(ages(time)),
        gap=torch.from_numpy(gaps(time if with_gaps else time[:, :0])),
    )


def context_of(dataset: Dataset, recent: RecentEvents, now: Array) -> torch.Tensor:
    """Context features (B, T) of the moments `now` (B,), after the recent events."""
    return torch.from_numpy(dataset.schema.moments(now, recent[2]))


def batch_of(
    dataset: Dataset,
    users: Array,
    recent: RecentEvents,
    now: Array,
    items: Array,
    label: Array | None = None,
    *,
    with_gaps: bool = True,
) -> Batch:
    """A batch of B requests.

    Args:
        users: (B,) rows of users.
        recent: their events before the request.
        now: (B,) microseconds.
        items: (B, C) rows of candidates.
        label: (B, C) float32; None: zeros.
        with_gaps: False leaves the gaps out, which takes a third less time.
    """
    return Batch(
        user=torch.from_numpy(users.astype(np.int64)),
        item=torch.from_numpy(items.astype(np.int64)),
        history=history_of(recent, with_gaps=with_gaps),
        context=context_of(dataset, recent, now),
        label=torch.zeros(items.shape) if label is None else torch.from_numpy(label),
    )
