"""How fast a bundle ranks on this machine: the runtime alone, without HTTP."""

from __future__ import annotations

import time

import numpy as np

from app.bundle.request.requests import Context, RankRequest
from app.bundle.runtime import Ranker

WARM_UP = 20


def measure(
    ranker: Ranker, *, candidates: int = 100, batch: int = 1, calls: int = 300, seed: int = 0
) -> dict[str, float]:
    """Latency and throughput of `ranker.rank` over made-up requests of known users and items.

    Args:
        candidates: per request, at most as many as there are items.
        batch: requests scored together in one call.
        calls: timed calls, after a warm-up.

    Returns:
        p50_ms and p95_ms of a call, and requests_per_s.
    """
    pool = made_up_requests(ranker, candidates, max(batch, 64), seed)
    elapsed = np.empty(WARM_UP + calls)
    for call in range(WARM_UP + calls):
        requests = [pool[(call * batch + i) % len(pool)] for i in range(batch)]
        start = time.perf_counter()
        ranker.rank(requests)
        elapsed[call] = time.perf_counter() - start
    timed = elapsed[WARM_UP:]
    return {
        "p50_ms": float(np.percentile(timed, 50) * 1e3),
        "p95_ms": float(np.percentile(timed, 95) * 1e3),
        "requests_per_s": float(batch * calls / timed.sum()),
    }


def made_up_requests(ranker: Ranker, candidates: int, count: int, seed: int = 0) -> list[RankRequest]:
    """Requests of known users for known items, at most as many candidates as there are items."""
    rng = np.random.default_rng(seed)
    return [_request(ranker, candidates, rng) for _ in range(count)]


def _request(ranker: Ranker, candidates: int, rng: np.random.Generator) -> RankRequest:
    known = len(ranker.items) - 1
    chosen = rng.choice(known, min(candidates, known), replace=False) + 1
    user = ranker.users[int(rng.integers(1, len(ranker.users)))] if len(ranker.users) > 1 else "nobody"
    return RankRequest(user=user, items=[ranker.items[int(i)] for i in chosen], context=Context(1.6e9))
