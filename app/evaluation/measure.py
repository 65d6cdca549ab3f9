"""Figures of a ranking: means over requests, bootstrap intervals, and segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.data.dataset import Array, Dataset
from app.evaluation import metrics
from app.evaluation.metrics import Floats
from app.evaluation.ranking import Ranked
from app.evaluation.requests import Requests

NEW, LIGHT = 5, 50  # training events that a new user, and a light one, has at most
HEAD = 0.8  # share of the positive training events that are on head items
DRAWS = 1 << 22  # requests drawn for a bootstrap at a time


@dataclass(frozen=True)
class Measurement:
    """Figures of U requests or users. `ratios` holds a numerator and a denominator for each, and figure:
    a figure is the sum of the one over the sum of the other, of all of them or of a resample.
    """

    ratios: dict[str, tuple[Floats, Floats]]
    figures: dict[str, float]
    calibration: list[dict[str, float]]
    nan: int  # scores that were NaN

    @property
    def count(self) -> int:
        """U, how many requests or users a resample draws."""
        return len(next(iter(self.ratios.values()))[0])

    def intervals(self, resamples: int, seed: int) -> dict[str, list[float]]:
        """95 % intervals [low, high] by bootstrap over them; none where `resamples` is 0."""
        if not resamples:
            return {}
        over = np.stack([n for n, _ in self.ratios.values()], 1)
        under = np.stack([d for _, d in self.ratios.values()], 1)
        drawn = bootstrap(over, under, resamples, np.random.default_rng(seed))
        return {name: interval(drawn[:, i]) for i, name in enumerate(self.ratios)}


@dataclass(frozen=True)
class Measured(Measurement):
    """Figures of the rankings of U requests."""

    ranked: Ranked
    rank: Floats  # (T,)
    ks: tuple[int, ...]

    def segments(self, dataset: Dataset, requests: Requests) -> dict[str, dict[str, float]]:
        """Figures at k by group: users by training events, targets by training popularity.

        Each request belongs to one user group and each target to one item group. A user group is the
        mean over its requests. An item group asks for its targets alone, of the users who have any;
        the other items compete as before. Empty groups are left out.
        """
        users, items = user_groups(dataset, requests.user), item_groups(dataset, requests.target)
        groups = {name: chosen[self.ranked.owner] for name, chosen in users.items()} | items
        return {name: self._group(chosen) for name, chosen in groups.items() if chosen.any()}

    def _group(self, chosen: Array) -> dict[str, float]:
        users, owner = np.unique(self.ranked.owner[chosen], return_inverse=True)
        figures = metrics.at_k(owner, self.rank[chosen], len(users), self.ks)
        means = {name: float(values.mean()) for name, values in figures.items()}
        return {"requests": len(users), "targets": int(chosen.sum()), **means}


def user_groups(dataset: Dataset, user: Array) -> dict[str, Array]:
    """Which of some users, rows (U,), belong to each group, as (U,) bool.

    Unknown users are ids without a row. Untrained ones have a row and no event in training.
    """
    known, events = user > 0, np.diff(dataset.train.indptr)[user]
    return {
        "unknown users": ~known,
        "untrained users": known & (events == 0),
        f"new users (1 to {NEW} events)": known & (events > 0) & (events <= NEW),
        f"light users ({NEW + 1} to {LIGHT})": known & (events > NEW) & (events <= LIGHT),
        f"heavy users (over {LIGHT})": known & (events > LIGHT),
    }


def item_groups(dataset: Dataset, item: Array) -> dict[str, Array]:
    """Which of some items, rows (T,), belong to each group, as (T,) bool; as `user_groups`."""
    head, trained = head_items(dataset.popularity)[item], dataset.trained["item"][item]
    return {
        f"head items ({HEAD:.0%} of events)": head,
        "tail items": trained & ~head,
        "untrained items": (item > 0) & ~trained,
        "unknown items": item == 0,
    }


def measure(dataset: Dataset, ranked: Ranked, ks: Sequence[int], seed: int) -> Measured:
    """The figures of a ranking; `seed` breaks ties.

    Those of lists, such as coverage, are left out where the ranking kept no best items, and those of
    probabilities where it drew no negatives.
    """
    requests = len(ranked.candidates)
    rank = metrics.break_ties(ranked.owner, ranked.higher, ranked.equal, np.random.default_rng(seed))
    ones = np.ones(requests)
    ratios = {name: (v, ones) for name, v in metrics.at_k(ranked.owner, rank, requests, ks).items()}
    area = metrics.auc(ranked.owner, ranked.higher, ranked.equal, ranked.candidates)
    ratios["auc"] = (np.nan_to_num(area), np.isfinite(area).astype(float))
    bins: list[dict[str, float]] = []
    others: dict[str, float] = {}
    if ranked.negative.shape[1]:
        owner, logits, label = points(ranked)
        ratios |= _pointwise(owner, logits, label, requests)
        bins = metrics.calibration(metrics.sigmoid(logits), label)
        others["calibration_error"] = metrics.calibration_error(bins)
    if ranked.top.shape[1]:
        bits, items = metrics.self_information(dataset.popularity), dataset.schema.items - 1
        ratios |= {f"novelty@{k}": _novelty(ranked.top[:, :k], bits) for k in ks}
        others |= {f"coverage@{k}": metrics.coverage(ranked.top[:, :k], items) for k in ks}
    figures = {name: float(share(n.sum(), d.sum())) for name, (n, d) in ratios.items()}
    return Measured(ratios, figures | others, bins, ranked.nan, ranked, rank, tuple(ks))


def points(ranked: Ranked) -> tuple[Array, Array, Array]:
    """The pointwise set: owner, logit and label (P,) of every target and the negatives drawn beside it."""
    count = ranked.negative.shape[1]
    owner = np.concatenate([ranked.owner, np.repeat(ranked.owner, count)])
    logits = np.concatenate([ranked.positive, ranked.negative.ravel()])
    label = np.concatenate([np.ones(len(ranked.positive)), np.zeros(ranked.negative.size)])
    kept = np.isfinite(logits)
    return owner[kept], logits[kept], label[kept]


def _pointwise(owner: Array, logits: Array, label: Array, requests: int) -> dict[str, tuple[Floats, Floats]]:
    def total(values: Array) -> Floats:
        summed: Floats = np.bincount(owner, weights=values, minlength=requests).astype(np.float64)
        return summed

    predicted, count = logits > 0, total(np.ones(len(owner)))
    return {
        "log_loss": (total(metrics.log_loss(logits, label)), count),
        "accuracy": (total(predicted == (label > 0)), count),
        "f1": (total(2 * label * predicted), total(label + predicted)),
    }


def _novelty(top: Array, bits: Floats) -> tuple[Floats, Floats]:
    shown = top > 0
    return (bits[top] * shown).sum(1), shown.sum(1).astype(float)


def share(over: Array, under: Array) -> Floats:
    """`over` / `under`, NaN where there is nothing to divide by."""
    shares: Floats = np.full(np.shape(under), np.nan)
    np.divide(over, under, out=shares, where=np.asarray(under) > 0)
    return shares


def interval(values: Floats) -> list[float]:
    """The 95 % interval [low, high] of resampled figures, of those that are numbers; NaN where none is."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return [float(low), float(high)]


def bootstrap(over: Floats, under: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, figures): each figure of as many requests, drawn with replacement."""
    count, step = len(over), max(1, DRAWS // len(over))
    blocks = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weight = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float)
        blocks.append(share(weight @ over, weight @ under))
    return np.concatenate(blocks)


def head_items(popularity: Array) -> Array:
    """(items,) bool: the fewest items with HEAD of the positive training events; row 0 is no item."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    head = np.zeros(len(popularity), bool)
    head[order[before < HEAD * popularity.sum()]] = True
    return head & (popularity > 0)
