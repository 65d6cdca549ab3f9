"""Ranking and probability metrics, vectorised over requests; pure functions of arrays.

Notation: T targets belong to U requests by `owner` (T,), sorted. `rank` counts from 1 and is
infinite where a target is never ranked. A target that is missed counts in every denominator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.data.dataset import Array

Floats = npt.NDArray[np.float64]
AT_K = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")
BINS = 15


def break_ties(owner: Array, higher: Array, equal: Array, rng: np.random.Generator) -> Floats:
    """Ranks (T,) of targets: ties fall as in a random order of the tied candidates.

    The tied targets of a request get distinct ranks, drawn uniformly among those of all candidates
    that tie with them; so a scorer that scores all items alike ranks at random.

    Args:
        higher, equal: candidates above each target, and tied with it, itself included.
    """
    rank = np.where(equal > 0, higher + 1 + np.floor(rng.random(len(equal)) * equal), np.inf)
    # Targets tie with one another exactly if as many candidates are above both.
    ranked = np.flatnonzero(equal > 0)
    order = ranked[np.lexsort((higher[ranked], owner[ranked]))]
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(owner[order]) != 0) | (np.diff(higher[order]) != 0)
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        tied = order[start : start + size]
        rank[tied] = higher[tied] + 1 + rng.choice(int(equal[tied[0]]), int(size), replace=False)
    return rank


def at_k(owner: Array, rank: Floats, requests: int, ks: Sequence[int]) -> dict[str, Floats]:
    """AT_K metrics at each k as "name@k", each (U,): one value a request.

    recall: targets in the first k over all targets. precision: the same over k. hit_rate: 1
    if any. ndcg: gain 1, discount log2(1 + rank), over the best order of min(k, targets).
    mrr: one over the first target's rank, 0 beyond k. map: mean over min(k, targets) of the
    precision at each target in the first k.
    """
    order = np.lexsort((rank, owner))
    rank, owner = rank[order], owner[order]
    targets = np.bincount(owner, minlength=requests)
    nth = np.arange(len(owner)) - np.searchsorted(owner, owner) + 1  # nth best target of its request
    figures: dict[str, Floats] = {}
    for k in ks:
        hit = rank <= k
        hits = _sum(owner, hit, requests)
        best = np.maximum(np.minimum(targets, k), 1)
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[best - 1]
        figures |= {
            f"recall@{k}": hits / np.maximum(targets, 1),
            f"precision@{k}": hits / k,
            f"hit_rate@{k}": (hits > 0).astype(float),
            f"ndcg@{k}": _sum(owner, hit / np.log2(1 + rank), requests) / ideal,
            f"mrr@{k}": _sum(owner, (hit & (nth == 1)) / rank, requests),
            f"map@{k}": _sum(owner, np.where(hit, nth / rank, 0), requests) / best,
        }
    return figures


def auc(owner: Array, higher: Array, equal: Array, candidates: Array) -> Floats:
    """Area under the ROC curve of each request (U,), over all its ranked candidates.

    The share of pairs of a target and another candidate that are in order, ties counting
    half; a target that is never ranked loses all its pairs. NaN where there are no pairs.
    """
    requests = len(candidates)
    ranked = equal > 0
    targets = np.bincount(owner, minlength=requests)
    others = candidates - np.bincount(owner[ranked], minlength=requests)
    above, tied = _targets_above(owner, higher, ranked)
    lost = (higher - above) + (equal - tied) / 2
    lost = np.where(ranked, lost, others[owner])
    pairs, area = others * targets, np.full(requests, np.nan)
    np.divide(pairs - _sum(owner, lost, requests), pairs, out=area, where=pairs > 0)
    return area


def _targets_above(owner: Array, higher: Array, ranked: Array) -> tuple[Array, Array]:
    """How many targets of its request are above each target, and how many tie with it or are it."""
    width = int(higher.max(initial=0)) + 1
    key = owner.astype(np.int64) * width + higher
    among = np.sort(key[ranked])
    first = np.searchsorted(among, key)
    return first - np.searchsorted(among, owner.astype(np.int64) * width), (
        np.searchsorted(among, key, side="right") - first
    )


def _sum(owner: Array, values: Array, requests: int) -> Floats:
    summed: Floats = np.bincount(owner, weights=values, minlength=requests).astype(np.float64)
    return summed


def sigmoid(logits: Array) -> Floats:
    """Probabilities of logits, without overflow."""
    half: Floats = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return half


def log_loss(logits: Array, label: Array) -> Floats:
    """(N,) cross entropy of each point, in nats."""
    logits = logits.astype(np.float64)
    loss: Floats = np.logaddexp(0, np.where(label > 0, -logits, logits))
    return loss


def calibration(probability: Floats, label: Array, bins: int = BINS) -> list[dict[str, float]]:
    """Mean prediction and observed share of positives in bins of equal width, empty ones left out."""
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    full = np.flatnonzero(counts)
    predicted, observed = (np.bincount(bin_of, weights=v, minlength=bins) for v in (probability, label))
    return [
        {"predicted": float(p), "observed": float(o), "count": int(n)}
        for p, o, n in zip(
            predicted[full] / counts[full], observed[full] / counts[full], counts[full], strict=True
        )
    ]


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error (Naeini 2015): mean gap of the bins, weighted by their counts."""
    total = sum(b["count"] for b in bins)
    gaps = sum(b["count"] * abs(b["predicted"] - b["observed"]) for b in bins)
    return float(gaps / total) if total else float("nan")


def coverage(top: Array, items: int) -> float:
    """Share of `items` real items that are recommended to anyone; `top` has 0 where there is none."""
    return len(np.setdiff1d(top, [0])) / max(1, items)


def self_information(popularity: Array) -> Floats:
    """The self-information (N,) of each item in bits: -log2 of its share of training events (counts + 1).

    Its mean over the recommended items is their novelty (Zhou 2010).
    """
    counts = popularity + 1.0
    bits: Floats = -np.log2(counts / counts.sum())
    return bits
