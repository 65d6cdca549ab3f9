"""The area under the ROC curve of scores beside labels, overall and within users, by arrays alone."""

from __future__ import annotations

import numpy as np

from app.data.dataset import Array
from app.evaluation.metrics import Floats


def placements(scores: Array, label: Array) -> Floats:
    """(N,) for each positive the share of negatives below it, for each negative that of positives above it.

    Ties count half. The area under the curve is the mean over the positives, and over the negatives; NaN
    where there is none of the other kind.
    """
    positive = label > 0
    placed: Floats = np.full(len(scores), np.nan)
    for own, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * scores[~own])
        if len(others):
            below = np.searchsorted(others, sign * scores[own], side="left")
            up_to = np.searchsorted(others, sign * scores[own], side="right")
            placed[own] = (below + up_to) / 2 / len(others)
    return placed


def area_within(owner: Array, scores: Array, label: Array, users: int) -> Floats:
    """(users,) the area under the curve of each user's own events, ties counting half.

    It is NaN where a user has one label only.

    Args:
        owner: (N,) the user of each event, from 0.
    """
    order = np.lexsort((scores, owner))
    sorted_owner, sorted_scores = owner[order], scores[order]
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(sorted_owner) != 0) | (np.diff(sorted_scores) != 0)
    tied = np.cumsum(new) - 1  # the group of equal scores of a user that each event belongs to
    sizes = np.bincount(tied)
    before = np.cumsum(sizes) - sizes
    rank = before[tied] + (sizes[tied] + 1) / 2 - np.searchsorted(sorted_owner, sorted_owner)
    positive = label[order] > 0
    count = np.bincount(owner, minlength=users).astype(float)
    positives = np.bincount(sorted_owner, positive, users)
    ranks = np.bincount(sorted_owner, rank * positive, users)
    pairs = positives * (count - positives)
    area: Floats = np.full(users, np.nan)
    np.divide(ranks - positives * (positives + 1) / 2, pairs, out=area, where=pairs > 0)
    return area
