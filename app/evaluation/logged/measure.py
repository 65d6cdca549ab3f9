"""Figures of scores beside logged labels: areas under the curve, log loss, calibration, intervals, groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.data.dataset import Array, Dataset
from app.evaluation import metrics
from app.evaluation.logged.area import area_within, placements
from app.evaluation.logged.events import LoggedEvents
from app.evaluation.measure import Measurement, item_groups, share, user_groups
from app.evaluation.metrics import Floats

RANKING = ("auc", "gauc")  # figures that a score which is no probability has, too


@dataclass(frozen=True)
class MeasuredLabels(Measurement):
    """Figures of N logged events of U users, who are what a resample draws.

    auc: area under the ROC curve over all events. gauc: areas within users, weighted by their events,
    of users with both labels (Zhou et al. 2018, "Deep interest network"). log_loss, in nats.
    information_gain: the share of the labels' entropy that the scores explain, 1 - log_loss / entropy (He et
    al. 2014, "Practical lessons from predicting clicks on ads at Facebook", who call the ratio normalised
    entropy). calibration_ratio: predicted positives over observed ones. accuracy at probability 1/2.
    """

    scores: Array  # (N,)
    label: Array  # (N,)

    def segments(self, dataset: Dataset, events: LoggedEvents) -> dict[str, dict[str, float]]:
        """The areas over the events of each group of users and of items; groups with one label left out."""
        groups = user_groups(dataset, events.user) | item_groups(dataset, events.item)
        return {
            name: self._group(events, chosen)
            for name, chosen in groups.items()
            if 0 < self.label[chosen].sum() < chosen.sum()
        }

    def _group(self, events: LoggedEvents, chosen: Array) -> dict[str, float]:
        users, owner = np.unique(events.user[chosen], return_inverse=True)
        scores, label = self.scores[chosen], self.label[chosen]
        over, under = _within(owner, scores, label, len(users))
        return {
            "requests": len(users),
            "targets": int(chosen.sum()),
            "auc": float(placements(scores, label)[label > 0].mean()),
            "gauc": float(share(over.sum(), under.sum())),
            "log_loss": float(metrics.log_loss(scores, label).mean()),
        }


def measure_labels(events: LoggedEvents, scores: Array, nan: int = 0) -> MeasuredLabels:
    """The figures of the scores (N,) of some events, of which `nan` were NaN."""
    label = events.label
    users, owner = np.unique(events.user, return_inverse=True)
    count = len(users)

    def total(values: Array) -> Floats:
        summed: Floats = np.bincount(owner, weights=values, minlength=count).astype(np.float64)
        return summed

    probability, loss, ones = metrics.sigmoid(scores), metrics.log_loss(scores, label), np.ones(len(label))
    entropy = _entropy(float(label.mean()))
    ratios = {
        "auc": _area(total, scores, label),
        "gauc": _within(owner, scores, label, count),
        "log_loss": (total(loss), total(ones)),
        "information_gain": (total(entropy - loss), total(entropy * ones)),
        "accuracy": (total((scores > 0) == (label > 0)), total(ones)),
        "calibration_ratio": (total(probability), total(label)),
    }
    bins = metrics.calibration(probability, label)
    figures = {name: float(share(over.sum(), under.sum())) for name, (over, under) in ratios.items()}
    figures["calibration_error"] = metrics.calibration_error(bins)
    return MeasuredLabels(ratios, figures, bins, nan, scores, label)


def _area(total: Callable[[Array], Floats], scores: Array, label: Array) -> tuple[Floats, Floats]:
    """The area under the curve as a ratio of sums over users, that it is and is felt like for resamples.

    It is no mean over users, because pairs reach across them. To the first order a resample moves it by
    the events' placements less the area, those of positives over P and those of negatives over N (DeLong et
    al. 1988, "Comparing the areas under two or more correlated ROC curves"): so does this ratio.
    """
    positive = label > 0
    placed = placements(scores, label)
    if not np.isfinite(placed).all():  # there is one label only
        return total(np.zeros(len(label))), total(np.zeros(len(label)))
    area = placed[positive].mean()
    weight = np.where(positive, 1 / positive.sum(), 1 / (~positive).sum())
    under = total(weight) / 2
    return total((placed - area) * weight) + area * under, under


def _within(owner: Array, scores: Array, label: Array, users: int) -> tuple[Floats, Floats]:
    area = area_within(owner, scores, label, users)
    weight = np.bincount(owner, minlength=users) * np.isfinite(area)
    return np.nan_to_num(area) * weight, weight.astype(float)


def _entropy(rate: float) -> float:
    """In nats, of a label that is 1 at this rate."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)
