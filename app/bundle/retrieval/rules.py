"""What a request asks of the list as a whole: caps, diversity, boosts, a floor for exploration.

One greedy choice, item by item, keeps them all: a cap is never broken, the end of the list goes
to fresh items where the floor is not yet reached, and of what is left the best comes next,
by score or, with diversity, by maximal marginal relevance (Carbonell and Goldstein 1998).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle.format.layout import Array
from app.bundle.retrieval.candidates import NONE
from app.bundle.retrieval.item_filter import Match


@dataclass(frozen=True)
class Cap:
    """At most `most` items of one value; `codes` (items,) numbers the values, 0 is none."""

    codes: Array
    most: int


@dataclass(frozen=True)
class Rules:
    """The rules of a request; by default none."""

    caps: Sequence[Cap] = ()
    diversity: float = 0.0  # 0: by score alone, 1: by difference alone
    boosts: Sequence[tuple[Match, float]] = ()  # added to the scores of what matches
    floor: int = 0  # fresh items that the list has at least

    @property
    def plain(self) -> bool:
        """Whether the best scores are the answer."""
        return not (self.caps or self.diversity or self.boosts or self.floor)

    def boosted(self, rows: Array, scores: Array) -> Array:
        """Scores (C,) of items, boosts added."""
        for match, added in self.boosts:
            scores = scores + np.float32(added) * match.mask[rows]
        return scores


def choose(
    rows: Array,
    k: int,
    rules: Rules,
    *,
    scores: Array = NONE,
    vectors: Array | None = None,
    fresh: Array = NONE,
    taken: Array = NONE,
) -> list[int]:
    """Positions in `rows` of the items chosen, in order.

    Args:
        rows: (C,) items, the best first.
        k: items to choose.
        rules: what must hold.
        scores, vectors: (C,) and, of length 1, (C, D); only diversity needs them.
        fresh: rows that count as fresh.
        taken: rows that are in the list already, so that the caps count them.
    """
    chosen: list[int] = []
    diversity, owed = rules.diversity, rules.floor
    worth = (1 - diversity) * _scaled(scores) if diversity else -np.arange(len(rows), dtype=np.float64)
    counters = [_CapCounter(cap, rows, taken) for cap in rules.caps]
    for counter in counters:
        worth[counter.full()] = -np.inf
    exploring = np.isin(rows, fresh) if owed else None
    nearest = np.full(len(rows), -1.0)
    while len(chosen) < min(k, len(rows)):
        value = worth - diversity * nearest if diversity and chosen else worth
        if exploring is not None and owed >= k - len(chosen):
            value = _only_fresh(exploring, value)
        best = int(value.argmax())
        if value[best] == -np.inf:
            break
        chosen.append(best)
        worth[best] = -np.inf
        owed -= exploring is not None and bool(exploring[best])
        for counter in counters:
            counter.add(best, worth)
        if vectors is not None:
            np.maximum(nearest, vectors @ vectors[best], out=nearest)
    return chosen


def _only_fresh(exploring: Array, value: Array) -> Array:
    """The fresh items alone, as long as there are any."""
    fresh = np.where(exploring, value, -np.inf)
    return fresh if fresh.max() > -np.inf else value


def _scaled(scores: Array) -> Array:
    """From 0 to 1, so that they compare with cosines."""
    if not len(scores):
        return scores
    low, high = float(scores.min()), float(scores.max())
    return (scores - low) / (high - low if high > low else 1.0)


class _CapCounter:
    """How many items of each value the list has, against a cap."""

    def __init__(self, cap: Cap, rows: Array, taken: Array) -> None:
        self.most, self.codes = cap.most, cap.codes[rows]
        self.counts = Counter(cap.codes[taken].tolist())

    def full(self) -> Array:
        """(C,) bool: which candidates have a value that the cap lets in no more."""
        return np.isin(self.codes, [code for code, n in self.counts.items() if code and n >= self.most])

    def add(self, chosen: int, worth: Array) -> None:
        """Count a chosen candidate, and exclude the others of its value once the cap is reached."""
        code = int(self.codes[chosen])
        self.counts[code] += 1
        if code and self.counts[code] >= self.most:
            worth[self.codes == code] = -np.inf
