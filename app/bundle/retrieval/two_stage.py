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

POOL = 256  # candidates at least that rules choose from, and ten times as many as they choose
CANDIDATES = 1000  # that are ranked where time is short and the bundle says nothing
NARROW = 1 << 13  # matching items that are rather all scored than searched for
LESS = 4  # times fewer candidates where time is short
SCORES_AT_ONCE = 1 << 23  # of all items for several requests


@dataclass(frozen=True)
class Plan:
    """A recommendation to make; the rows of `encoded` are not used."""

    request: RecommendRequest
    encoded: EncodedRequest
    allowed: EligibleItems
    rules: Rules

    @property
    def pool_size(self) -> int:
        """How many candidates the rules choose from."""
        return self.request.k if self.rules.plain else max(10 * self.request.k, POOL)

    def ranking(self, rows: Array) -> EncodedRequest:
        """The request as one to rank `rows`."""
        return replace(self.encoded, rows=rows)


class TwoStageRanker:
    """Candidates with the ranker's scores. Safe to use from several threads.

    Args:
        scorer: the ranker.
        popularity: (items,) events of each item, by which equal scores are ordered.
        index: of item vectors; None where a model has no user vector.
        generators: of candidates.
        candidates: that are ranked where there is no index; 0: every item.
    """

    def __init__(
        self,
        scorer: BatchScorer,
        popularity: Array,
        index: Index | None,
        generators: CandidateGenerators,
        candidates: int,
    ) -> None:
        self.scorer, self.generators, self._index = scorer, generators, index
        self._popularity, self._candidates = popularity, candidates

    def with_new_items(
        self, scorer: BatchScorer, popularity: Array, generators: CandidateGenerators
    ) -> TwoStageRanker:
        """The same where there are new items."""
        return TwoStageRanker(scorer, popularity, self._index, generators, self._candidates)

    def pools(self, plans: Sequence[Plan], step: str) -> list[ScoredCandidates]:
        """Of each plan all allowed items, or at least the best of them, as many as its pool has."""
        pools: list[ScoredCandidates | None] = [None] * len(plans)
        rows = [self._rows(plan, step) for plan in plans]
        listed = [i for i, candidates in enumerate(rows) if candidates is not None]
        ranked = self.rank([plans[i] for i in listed], [rows[i] for i in listed])  # type: ignore[misc]
        for i, pool in zip(listed, ranked, strict=True):
            pools[i] = pool
        by_size = defaultdict(list)
        for i, candidates in enumerate(rows):
            if candidates is None:
                by_size[(plans[i].pool_size - 1).bit_length()].append(i)
        for exponent, positions in by_size.items():
            some = [plans[i] for i in positions]
            best = self._all(some) if self._index is None else self._search(some, 1 << exponent, step)
            for i, pool in zip(positions, best, strict=True):
                pools[i] = pool
        return pools  # type: ignore[return-value]

    def rank(self, plans: Sequence[Plan], rows: Sequence[Array]) -> list[ScoredCandidates]:
        """The ranker's scores of some rows of each plan."""
        requests = [plan.ranking(some) for plan, some in zip(plans, rows, strict=True)]
        return [ScoredCandidates(*pair) for pair in zip(rows, self.scorer.score(requests), strict=True)]

    def similar(self, row: int, k: int) -> ScoredCandidates:
        """The k other items with the highest cosine to the row of an item, best first."""
        allowed, rows = EligibleItems(self.scorer.items, np.array([0, row])), self.scorer.rows["item"]
        if isinstance(self._index, Approximate):
            vector = rows.gather(np.array([row]))
            (pool,) = self._index.search(vector, max(POOL, 4 * k), [allowed])
            new = allowed.among(np.arange(self.scorer.info.items, self.scorer.items))
            nearest = np.concatenate([pool.rows, new])
            cosines = self.scorer.directions(nearest) @ self.scorer.directions(np.array([row]))[0]
            return self.best(ScoredCandidates(nearest, cosines), k)
        cosines = self.scorer.cosines(row)
        cosines[allowed.left_out] = -np.inf
        chosen = best(cosines, k, self._popularity)
        return ScoredCandidates(chosen, cosines[chosen])

    def best(self, pool: ScoredCandidates, k: int) -> ScoredCandidates:
        """The k best of a pool, best first; of equal scores the more popular first."""
        order = best(pool.scores, k, self._popularity[pool.rows])
        return ScoredCandidates(pool.rows[order], pool.scores[order])

    def _rows(self, plan: Plan, step: str) -> Array | None:
        """The candidates of a plan, ascending; None: to be searched for, or all items."""
        allowed, history = plan.allowed, plan.encoded.history.item
        few = self._candidates or CANDIDATES
        if allowed.match is not None and allowed.count <= (few if self._index is None else NARROW):
            return allowed.among(allowed.match.rows)
        if isinstance(self._index, Approximate):
            return None
        bounded = self._index is None and 0 < self._candidates < self.scorer.info.items - 1
        count = few // LESS if step == FEWER else few
        if step == FEWER or bounded:
            return self.generators.mixed(history, plan.request.user, allowed, max(count, plan.request.k))
        return None

    def _search(self, plans: Sequence[Plan], count: int, step: str) -> list[ScoredCandidates]:
        assert self._index is not None
        vectors = self.scorer.user_vectors([plan.encoded for plan in plans])
        effort = 1 / LESS if step == FEWER else 1.0
        pools = self._index.search(vectors, count, [plan.allowed for plan in plans], effort)
        if not len(self.scorer.added):
            return pools
        new = vectors @ self.scorer.added.T
        return [
            pool.join(self._new(plan.allowed, scores, count))
            for plan, pool, scores in zip(plans, pools, new, strict=True)
        ]

    def _new(self, allowed: EligibleItems, scores: Array, count: int) -> ScoredCandidates:
        """The best `count` allowed new items, which no index knows, by their scores (N,)."""
        rows = np.arange(self.scorer.info.items, self.scorer.items)
        kept = allowed.keeps(rows)
        rows, scores = rows[kept], scores[kept]
        chosen = np.sort(best(scores, count, np.zeros(len(rows), np.int64)))
        return ScoredCandidates(rows[chosen], scores[chosen])

    def _all(self, plans: Sequence[Plan]) -> list[ScoredCandidates]:
        pools, at_once = [], max(1, SCORES_AT_ONCE // self.scorer.items)
        for start in range(0, len(plans), at_once):
            chunk = plans[start : start + at_once]
            for plan, scores in zip(chunk, self.scorer.score_all([p.encoded for p in chunk]), strict=True):
                scores[plan.allowed.left_out] = -np.inf
                if plan.allowed.match is not None:
                    scores[~plan.allowed.match.mask] = -np.inf
                rows = np.sort(best(scores, plan.pool_size, self._popularity))
                pools.append(ScoredCandidates(rows, scores[rows]))
        return pools
