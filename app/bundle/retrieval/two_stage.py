"""The first stage and the ranker: from plans to scored candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.bundle.format.layout import Array
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.ranking.top_k import best
from app.bundle.request.encode import EncodedRequest
from app.bundle.request.requests import RecommendRequest
from app.bundle.retrieval.candidates import CandidateGenerators
from app.bundle.retrieval.index import Approximate, Index
from app.bundle.retrieval.latency_budget import FEWER
from app.bundle.retrieval.pool import EligibleItems, ScoredCandidates
from app.bundle.retrieval.rules import Rules

POOL = 256  # candidates at least that rules choose from, and ten times as many as places
CANDIDATES = 1000  # that are ranked where time is short and the bundle says nothing
NARROW = 1 << 13  # matching items that are rather all scored than searched for
LESS = 4  # times fewer candidates where time is short
SCORES_AT_ONCE = 1 << 23  # of all items for several requests


@dataclass(frozen=True)
class Plan:
    """A recommendation to make; the rows of `asked` are not used."""

    request: RecommendRequest
    asked: EncodedRequest
    allowed: EligibleItems
    rules: Rules

    @property
    def wanted(self) -> int:
        """Candidates to choose from."""
        return self.request.k if self.rules.plain else max(10 * self.request.k, POOL)

    def about(self, rows: Array) -> EncodedRequest:
        """The request as one to rank `rows`."""
        return replace(self.asked, rows=rows)


class TwoStageRanker:
    """Candidates with the ranker's scores. Safe to use from several threads.

    Args:
        scores: the ranker.
        popularity: (items,) events of each item, by which equal scores are ordered.
        index: of item vectors; None where a model has no user vector.
        sources: of candidates.
        candidates: that are ranked where there is no index; 0: every item.
    """

    def __init__(
        self,
        scores: BatchScorer,
        popularity: Array,
        index: Index | None,
        sources: CandidateGenerators,
        candidates: int,
    ) -> None:
        self.scores, self.sources, self._index = scores, sources, index
        self._popularity, self._candidates = popularity, candidates

    def with_new_items(
        self, scores: BatchScorer, popularity: Array, sources: CandidateGenerators
    ) -> TwoStageRanker:
        """The same where there are new items."""
        return TwoStageRanker(scores, popularity, self._index, sources, self._candidates)

    def pools(self, plans: Sequence[Plan], step: str) -> list[ScoredCandidates]:
        """Of each plan all allowed items, or at least the best of them that are wanted and found."""
        pools: list[ScoredCandidates | None] = [None] * len(plans)
        rows = [self._rows(plan, step) for plan in plans]
        listed = [place for place, found in enumerate(rows) if found is not None]
        made = self.rank([plans[p] for p in listed], [rows[p] for p in listed])  # type: ignore[misc]
        for place, pool in zip(listed, made, strict=True):
            pools[place] = pool
        others = defaultdict(list)
        for place, found in enumerate(rows):
            if found is None:
                others[(plans[place].wanted - 1).bit_length()].append(place)
        for exponent, places in others.items():
            some = [plans[p] for p in places]
            made = self._all(some) if self._index is None else self._search(some, 1 << exponent, step)
            for place, pool in zip(places, made, strict=True):
                pools[place] = pool
        return pools  # type: ignore[return-value]

    def rank(self, plans: Sequence[Plan], rows: Sequence[Array]) -> list[ScoredCandidates]:
        """The ranker's scores of some rows of each plan."""
        asked = [plan.about(some) for plan, some in zip(plans, rows, strict=True)]
        return [ScoredCandidates(*pair) for pair in zip(rows, self.scores.candidates(asked), strict=True)]

    def similar(self, row: int, k: int) -> ScoredCandidates:
        """The k other items with the highest cosine to the row of one, best first."""
        allowed, rows = EligibleItems(self.scores.items, np.array([0, row])), self.scores.rows["item"]
        if isinstance(self._index, Approximate):
            state = rows.gather(np.array([row]))
            (pool,) = self._index.search(state, max(POOL, 4 * k), [allowed])
            new = allowed.of(np.arange(self.scores.info.items, self.scores.items))
            found = np.concatenate([pool.rows, new])
            near = self.scores.directions(found) @ self.scores.directions(np.array([row]))[0]
            return self.best(ScoredCandidates(found, near), k)
        cosines = self.scores.cosines(row)
        cosines[allowed.left_out] = -np.inf
        chosen = best(cosines, k, self._popularity)
        return ScoredCandidates(chosen, cosines[chosen])

    def best(self, pool: ScoredCandidates, k: int) -> ScoredCandidates:
        """The k best of a pool, best first; of equal scores the more popular first."""
        order = best(pool.scores, k, self._popularity[pool.rows])
        return ScoredCandidates(pool.rows[order], pool.scores[order])

    def _rows(self, plan: Plan, step: str) -> Array | None:
        """The candidates of a plan, ascending; None: to be searched for, or all items."""
        allowed, history = plan.allowed, plan.asked.history.item
        few = self._candidates or CANDIDATES
        if allowed.match is not None and allowed.count <= (few if self._index is None else NARROW):
            return allowed.of(allowed.match.rows)
        if isinstance(self._index, Approximate):
            return None
        bounded = self._index is None and 0 < self._candidates < self.scores.info.items - 1
        if step == FEWER:
            return self.sources.mixed(history, plan.request.user, allowed, max(few // LESS, plan.request.k))
        if bounded:
            return self.sources.mixed(history, plan.request.user, allowed, max(few, plan.request.k))
        return None

    def _search(self, plans: Sequence[Plan], count: int, step: str) -> list[ScoredCandidates]:
        assert self._index is not None
        states = self.scores.states([plan.asked for plan in plans])
        effort = 1 / LESS if step == FEWER else 1.0
        pools = self._index.search(states, count, [plan.allowed for plan in plans], effort)
        if not len(self.scores.added):
            return pools
        new = states @ self.scores.added.T
        return [
            pool.join(self._new(plan.allowed, scores, count))
            for plan, pool, scores in zip(plans, pools, new, strict=True)
        ]

    def _new(self, allowed: EligibleItems, scores: Array, count: int) -> ScoredCandidates:
        """The best `count` allowed new items, which no index knows, by their scores (N,)."""
        rows = np.arange(self.scores.info.items, self.scores.items)
        kept = allowed.keeps(rows)
        rows, scores = rows[kept], scores[kept]
        chosen = np.sort(best(scores, count, np.zeros(len(rows), np.int64)))
        return ScoredCandidates(rows[chosen], scores[chosen])

    def _all(self, plans: Sequence[Plan]) -> list[ScoredCandidates]:
        pools, at_once = [], max(1, SCORES_AT_ONCE // self.scores.items)
        for start in range(0, len(plans), at_once):
            chunk = plans[start : start + at_once]
            for plan, scores in zip(chunk, self.scores.all([p.asked for p in chunk]), strict=True):
                scores[plan.allowed.left_out] = -np.inf
                if plan.allowed.match is not None:
                    scores[~plan.allowed.match.mask] = -np.inf
                rows = np.sort(best(scores, plan.wanted, self._popularity))
                pools.append(ScoredCandidates(rows, scores[rows]))
        return pools
