"""The items that compete with the targets of a request."""

from __future__ import annotations

import numpy as np

from app.data.dataset import Array, Part
from app.evaluation.requests import Requests

ROUNDS = 32  # times that a draw is repeated; a user who has seen almost every item gets fewer negatives


def seen_of(requests: Requests, chosen: slice) -> tuple[Array, Array]:
    """Earlier events of the users of some requests: rows within the block and items, both (S,)."""
    users = requests.user[chosen]
    rows, items = zip(*(_events_of(part, users) for part in requests.past), strict=True)
    return np.concatenate(rows), np.concatenate(items)


def _events_of(part: Part, users: Array) -> tuple[Array, Array]:
    known = users > 0
    starts = np.where(known, part.indptr[users], 0)
    counts = np.where(known, part.indptr[users + 1], 0) - starts
    rows = np.repeat(np.arange(len(users)), counts)
    events = np.arange(len(rows)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return rows, np.asarray(part.item[events]).astype(np.int64)


def excluded_of(requests: Requests, chosen: slice, targets: Array) -> tuple[Array, Array]:
    """The seen items that are not ranked, as `seen_of`.

    Where a target itself was seen before, nothing of that request is excluded: if only the targets
    were left among the seen items, a model that ranks seen items first would look perfect.
    """
    rows, items = seen_of(requests, chosen)
    again = np.zeros(len(targets), bool)
    again[rows[_among(rows, items, targets)]] = True
    kept = ~again[rows]
    return rows[kept], items[kept]


def listed_of(requests: Requests, chosen: slice, targets: Array) -> Array:
    """(B, W) negatives listed beside the target events of each request, pooled.

    0 is no candidate: padding, an item that training does not know, a repetition, a target.
    """
    assert requests.part.negatives is not None
    events = requests.padded(chosen, requests.row)
    pooled = np.asarray(requests.part.negatives[np.maximum(events, 0)]).astype(np.int64)
    pooled = np.where(events[:, :, None] >= 0, pooled, 0).reshape(len(events), -1)
    return _distinct(pooled, targets)


def sampled_of(
    requests: Requests, chosen: slice, targets: Array, items: int, count: int, rng: np.random.Generator
) -> Array:
    """(B, count) distinct items that the user has not met, drawn uniformly; 0 where there are no others.

    Args:
        items: rows of items, the unknown one included.
    """
    rows, met = seen_of(requests, chosen)
    taken = np.unique(rows * items + met)
    drawn = np.zeros((len(targets), count), np.int64)
    for _ in range(ROUNDS):
        open_ = drawn == 0
        if not open_.any() or items < 2:
            break
        drawn[open_] = rng.integers(1, items, int(open_.sum()))
        keys = np.arange(len(drawn))[:, None] * items + drawn
        drawn = _distinct(np.where(np.isin(keys, taken), 0, drawn), targets)
    return drawn


def _distinct(items: Array, targets: Array) -> Array:
    """Each row sorted, with repetitions and targets set to 0."""
    items = np.sort(items, 1)
    items[:, 1:][items[:, 1:] == items[:, :-1]] = 0
    rows = np.repeat(np.arange(len(items)), items.shape[1])
    return np.where(_among(rows, items.ravel(), targets).reshape(items.shape), 0, items)


def _among(rows: Array, items: Array, targets: Array) -> Array:
    """(S,) whether item s is a target of row s."""
    size = int(max(items.max(initial=0), targets.max(initial=0))) + 1
    real = targets > 0
    keys = np.nonzero(real)[0] * size + targets[real]
    return np.isin(rows * size + items, keys)
