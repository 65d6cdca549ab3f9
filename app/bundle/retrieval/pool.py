"""What the stages of a recommendation hand on: the items allowed, and the candidates with scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.bundle.format.layout import Array
from app.bundle.retrieval.item_filter import Match


@dataclass(frozen=True)
class EligibleItems:
    """The items that may be answered with.

    Args:
        items: rows, row 0 counted.
        left_out: rows that may not, ascending and distinct; 0 is one of them.
        match: what the request's filter holds for; None: there is no filter.
    """

    items: int
    left_out: Array
    match: Match | None = None

    @cached_property
    def count(self) -> int:
        """How many items are allowed."""
        if self.match is None:
            return self.items - len(self.left_out)
        return self.match.count - int(self.match.mask[self.left_out].sum())

    def matching(self, match: Match) -> EligibleItems:
        """Those of them that another filter holds for, too."""
        mask = match.mask if self.match is None else match.mask & self.match.mask
        return EligibleItems(self.items, self.left_out, Match(mask))

    def keeps(self, rows: Array) -> Array:
        """(C,) bool: which of `rows` are allowed."""
        positions = np.searchsorted(self.left_out, rows)
        kept: Array = self.left_out[np.minimum(positions, len(self.left_out) - 1)] != rows
        return kept if self.match is None else kept & self.match.mask[rows]

    def among(self, rows: Array) -> Array:
        """Those of `rows` that are allowed, in their order."""
        return rows[self.keeps(rows)]


@dataclass(frozen=True)
class ScoredCandidates:
    """Candidates: distinct `rows` (C,) and their `scores` (C,); ascending, or the best first."""

    rows: Array
    scores: Array

    def join(self, other: ScoredCandidates) -> ScoredCandidates:
        """Both, ascending; they have no row in common."""
        if not len(other.rows):
            return self
        rows, scores = np.concatenate([self.rows, other.rows]), np.concatenate([self.scores, other.scores])
        order = np.argsort(rows)
        return ScoredCandidates(rows[order], scores[order])
