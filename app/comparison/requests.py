"""Random requests, as a service gets them and as a model sees them."""

from __future__ import annotations

import numpy as np

from app.bundle.export.from_dataset import last_time
from app.bundle.request.requests import Context, RankRequest
from app.data.dataset import Array, Dataset
from app.events import HistoryEvent
from app.models.base import Batch, Reads
from app.models.batch import RecentEvents, batch_of, distinct

HOUR = 3_600_000_000  # microseconds
PAUSE = 48  # hours between two events of a history, at most


def random_requests(
    dataset: Dataset, reads: Reads, count: int, candidates: int, seed: int = 0
) -> tuple[list[RankRequest], Batch]:
    """Requests of users with candidates and histories, and the batch that a model scores for them.

    Histories have up to twice as many events as `features.history`, or none. Users and candidates may be
    unknown ones, row 0.

    Args:
        dataset: whose ids they are of.
        reads: how much of a history the model is shown.
        count: requests, B.
        candidates: C, at most as many as there are items; no item stands twice in a request.
        seed: of what is drawn.
    """
    rng, schema = np.random.default_rng(seed), dataset.schema
    size = min(candidates, schema.items)
    users = rng.integers(0, schema.users, count)
    items = np.stack([rng.choice(schema.items, size, replace=False) for _ in range(count)])
    # Logs without times count from 0: the moment is late enough for every history to fit before it.
    now = max(last_time(dataset), 2 * schema.history * PAUSE * HOUR) // HOUR * HOUR + HOUR
    history = _histories(rng, dataset, count, now)
    names = np.array(["stranger", *list(dataset.users)[1:]], object)[users]
    ids = np.array(["unknown", *list(dataset.items)[1:]], object)
    requests = [
        RankRequest(user, list(ids[row]), history=_events(dataset, ids, events), context=Context(now / 1e6))
        for user, row, *events in zip(names, items, *history, strict=True)
    ]
    return requests, batch_of(dataset, users, _shown(dataset, reads, history), np.full(count, now), items)


def _histories(rng: np.random.Generator, dataset: Dataset, count: int, now: int) -> RecentEvents:
    """Events (B, 2 * history) of random numbers, hours apart, the most recent last."""
    schema = dataset.schema
    shape = count, 2 * schema.history
    length = rng.integers(0, shape[1] + 1, count)
    filled = np.arange(shape[1], 0, -1) <= length[:, None]
    item = rng.integers(1, max(2, schema.items), shape) * filled
    event = rng.integers(1, len(schema.events), shape) * filled
    hours = np.cumsum(rng.integers(1, PAUSE, shape)[:, ::-1], 1)[:, ::-1]
    return item, event, (now - hours * HOUR) * filled


def _events(dataset: Dataset, ids: Array, columns: list[Array]) -> list[HistoryEvent]:
    kinds = dataset.schema.events
    return [
        HistoryEvent(ids[item], kinds[event], time / 1e6)
        for item, event, time in zip(*columns, strict=True)
        if item
    ]


def _shown(dataset: Dataset, reads: Reads, history: RecentEvents) -> RecentEvents:
    """What a model that reads so much is shown of histories."""
    item, event, time = history
    time = time if dataset.schema.timed else np.zeros_like(time)
    if reads == "recent":
        item, event, time = (column[:, -dataset.schema.history :] for column in (item, event, time))
    return distinct((item, event, time)) if reads == "all" else (item, event, time)
