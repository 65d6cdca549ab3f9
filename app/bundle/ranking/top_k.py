"""The best k of many scores, the same whatever the machine: ties have a fixed order."""

from __future__ import annotations

import numpy as np

from app.bundle.format.layout import Array


def best(scores: Array, k: int, prior: Array) -> Array:
    """Positions of the k highest of `scores` (N,), best first.

    Of equal scores the higher `prior` (N,) comes first, then the lower position. Positions
    at minus infinity never come, so there may be fewer than k.
    """
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, np.int64)
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)
    level = level[np.argsort(-prior[level].astype(np.int64), kind="stable")][: k - len(above)]
    chosen = np.concatenate([above, level])
    chosen = chosen[np.lexsort((chosen, -prior[chosen].astype(np.int64), -scores[chosen]))]
    kept: Array = chosen[scores[chosen] > -np.inf]
    return kept
