"""What a model is shown of users at a moment: their recent events and the context, as a batch.

The training sampler, the evaluation and the tests build batches here, so that all see a user alike.
"""

from __future__ import annotations

from collections.abc import Sequence

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
