"""What a request asks of the list as a whole: caps, diversity, boosts, a floor for exploration.

One greedy choice, place by place, keeps them all: a cap is never broken, the last places go
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
    """At most `most` items of one value; `codes` (items,) tells values apart, 0 is no value."""

    codes: Array
    most: int


@dataclass(frozen=True)
class Rules:
    """The rules of a request; by default none."""

    caps: Sequence[Cap] = ()
    diversity: float = 0.0  # 0: by score alone, 1: by difference alone
    boosts: Sequence[tuple[Match, float]] = ()  # added to the scores of what matches
    floor: int = 0  # places that fresh items get at least

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
    """Places of the items chosen, in order.

    Args:
        rows: (C,) items, the best first.
        k: places to fill.
        rules: what must hold.
        scores, vectors: (C,) and, of length 1, (C, D); only diversity needs them.
        fresh: rows that count as fresh.
        taken: rows that are in the list already, so that the caps count them.
    """
    chosen: list[int] = []
    diversity, owed = rules.diversity, rules.floor
    worth = (1 - diversity) * _scaled(scores) if diversity else -np.arange(len(rows), dtype=np.float64)
    rooms = [_Room(cap, rows, taken) for cap in rules.caps]
    for room in rooms:
        worth[room.closed()] = -np.inf
    exploring = np.isin(rows, fresh) if owed else None
    nearest = np.full(len(rows), -1.0)
    while len(chosen) < min(k, len(rows)):
        value = worth - diversity * nearest if diversity and chosen else worth
        if exploring is not None and owed >= k - len(chosen):
            value = _of(exploring, value)
        place = int(value.argmax())
        if value[place] == -np.inf:
            break
        chosen.append(place)
        worth[place] = -np.inf
        owed -= exploring is not None and bool(exploring[place])
        for room in rooms:
            room.take(place, worth)
        if vectors is not None:
            np.maximum(nearest, vectors @ vectors[place], out=nearest)
    return chosen


def _of(exploring: Array, value: Array) -> Array:
    """The fresh ones alone, as long as there are any."""
    fresh = np.where(exploring, value, -np.inf)
    return fresh if fresh.max() > -np.inf else value


def _scaled(scores: Array) -> Array:
    """From 0 to 1, so that they compare with cosines."""
    if not len(scores):
        return scores
    low, high = float(scores.min()), float(scores.max())
    return (scores - low) / (high - low if high > low else 1.0)


class _Room:
    """What a cap still lets in."""

    def __init__(self, cap: Cap, rows: Array, taken: Array) -> None:
        self.most, self.codes = cap.most, cap.codes[rows]
        self.held = Counter(cap.codes[taken].tolist())

    def closed(self) -> Array:
        """(C,) bool: which rows are not let in."""
        return np.isin(self.codes, [code for code, held in self.held.items() if code and held >= self.most])

    def take(self, place: int, worth: Array) -> None:
        """Count a row, and close what it fills."""
        code = int(self.codes[place])
        self.held[code] += 1
        if code and self.held[code] >= self.most:
            worth[self.codes == code] = -np.inf
