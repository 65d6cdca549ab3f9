"""Scores a sample of live requests by a second version too, after the live answer went out."""

from __future__ import annotations

import math
import random
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.events import HistoryEvent
from app.serving.versions.stats import BOUNDS, Comparison

WAITING = 8  # comparisons at most; more requests are not compared
GAP_S = 0.1  # where none was compared for so long, the next request is, however little traffic there is
BEST = 10
Ranking = RankRequest | RecommendRequest
Array = npt.NDArray[Any]


class Shadow:
    """Compares a sample of requests in a thread; offered on one event loop.

    Args:
        every: one of so many requests is compared, on average.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._last = 0.0
        self._waiting = threading.BoundedSemaphore(WAITING)
        self._thread = ThreadPoolExecutor(1, "shadow")

    def offer(
        self, old: Ranker, new: Ranker, into: Comparison, request: Ranking, stored: Sequence[HistoryEvent]
    ) -> None:
        """Compare a request that was answered, if it is one of the sample."""
        now = time.monotonic()
        # By chance, because traffic has rhythms: each twentieth request may be the same few users'.
        sampled = random.random() * self.every < 1 or now - self._last > GAP_S
        if sampled and self._waiting.acquire(blocking=False):
            self._last = now
            self._thread.submit(self._run, old, new, into, request, stored)

    def _run(
        self, old: Ranker, new: Ranker, into: Comparison, request: Ranking, stored: Sequence[HistoryEvent]
    ) -> None:
        try:
            best = compare(old, new, into, request, stored)
            if best is not None:
                into.scores.add(best)
        finally:
            self._waiting.release()


def compare(
    old: Ranker, new: Ranker, into: Comparison, request: Ranking, stored: Sequence[HistoryEvent] = ()
) -> float | None:
    """Have both score a request and count how they differ.

    Agreement is Spearman's rank correlation of the candidates' scores; of a recommendation,
    where each version has candidates of its own, the share of the best ten in common.

    Returns:
        The new version's best score; None if either failed.
    """
    if isinstance(request, RankRequest):
        request = msgspec.structs.replace(request, k=None, explain=False)
    try:
        before, old_seconds = _timed(old, request, stored)
    except Exception:  # of the running version: it shows nothing about the new one
        return None
    into.count += 1
    try:
        after, new_seconds = _timed(new, request, stored)
    except Exception:  # whatever it is, the running version has answered
        into.errors += 1
        return None
    if not all(math.isfinite(scored.score) for scored in after.items):
        into.errors += 1
        return None
    into.old_times[bisect_left(BOUNDS, old_seconds)] += 1
    into.new_times[bisect_left(BOUNDS, new_seconds)] += 1
    common = _common(before, after)
    agreement = _correlation(before, after) if isinstance(request, RankRequest) else common
    if agreement is not None:
        into.judged += 1
        into.agreement += agreement
        into.common += common
    return after.items[0].score if after.items else None


def _timed(ranker: Ranker, request: Ranking, stored: Sequence[HistoryEvent]) -> tuple[Answer, float]:
    start = time.perf_counter()
    answer = ranker.answer([ranker.read(request, stored)])[0]
    return answer, time.perf_counter() - start


def _common(before: Answer, after: Answer) -> float:
    first, second = ({scored.item for scored in answer.items[:BEST]} for answer in (before, after))
    return len(first & second) / len(first) if first else 1.0


def _correlation(before: Answer, after: Answer) -> float | None:
    """None where all candidates have the same score in the running version."""
    scores = {scored.item: scored.score for scored in after.items}
    first = _ranks(np.array([scored.score for scored in before.items]))
    second = _ranks(np.array([scores[scored.item] for scored in before.items]))
    if np.ptp(first) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1]) if np.ptp(second) else 0.0


def _ranks(values: Array) -> Array:
    """Ranks, the mean rank for equal values."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[group])
