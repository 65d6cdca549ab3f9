"""Two stages: candidates from an index or from several sources, then the ranker, then the rules.

    candidates -> ranker -> boosts -> caps, diversity, floor -> popular items while k are not reached

A model whose score is an inner product searches its index. Another one scores every item of
a small catalogue, and candidates of several sources of a larger one. Behind a narrow filter
every item that matches is scored. What the rules leave open is filled from the popular
items, so that k items come wherever k are allowed.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.bundle.format.item_columns import Columns
from app.bundle.format.layout import Array, Retrieval, read_retrieval
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.request.prepare import PreparedRequest
from app.bundle.request.requests import RecommendRequest
from app.bundle.retrieval.candidates import NONE, CandidateGenerators, first_allowed
from app.bundle.retrieval.index import Approximate, Exact, Index
from app.bundle.retrieval.item_filter import Filters
from app.bundle.retrieval.latency_budget import POPULAR, STEPS, LatencyBudget
from app.bundle.retrieval.overlay import Patch, PatchedColumns, PatchedFilters
from app.bundle.retrieval.pool import EligibleItems, ScoredCandidates
from app.bundle.retrieval.rules import Cap, Rules, choose
from app.bundle.retrieval.two_stage import Plan, TwoStageRanker
from app.errors import RequestError

BOOSTED = 100  # popular items of each boost that become candidates
EMPTY = ScoredCandidates(NONE, np.zeros(0, np.float32))


@dataclass(frozen=True)
class Recommendation:
    """Items in order, with their scores; `degraded` says what was left out to be in time."""

    rows: Array
    scores: Array
    degraded: str = ""


class Recommender:
    """The best items of a bundle for a user. Safe to use from several threads.

    Args:
        stages: candidates and ranker.
        columns: of the items.
        popularity: (items,) events of each item.
        vectors: whether the cosine of item rows says how alike items are.
    """

    def __init__(self, stages: TwoStageRanker, columns: Columns, popularity: Array, *, vectors: bool) -> None:
        self._stages, self._columns, self._popularity = stages, columns, popularity
        self._smoothed = int(popularity.sum(dtype=np.int64)) + len(popularity)
        self._filters, self._latency_budget, self._vectors = Filters(columns), LatencyBudget(), vectors
        self._retrieval_s = 0.0

    @classmethod
    def open(cls, path: Path, scorer: BatchScorer, popularity: Array, threads: int) -> Recommender:
        """Map what a bundle has of the first stage; an older one has nothing, and all items are scored.

        Raises:
            ArtifactError: names the file that is missing, damaged or truncated.
        """
        retrieval = read_retrieval(path / "retrieval.json")
        columns = Columns.open(path / "columns", scorer.info.items)
        generators = _open_generators(path / "candidates", retrieval, columns, popularity)
        index = _open_index(path / "index", retrieval, scorer, threads)
        stages = TwoStageRanker(scorer, popularity, index, generators, retrieval.candidates)
        vectors = retrieval.vectors and scorer.rows["item"].width > 1
        return cls(stages, columns, popularity, vectors=vectors)

    def with_new_items(self, scorer: BatchScorer, patch: Patch, fresh: Array) -> Recommender:
        """What this one, of a bundle alone, becomes where there are new items.

        Args:
            scorer: over them, too.
            patch: their columns, and those that changed.
            fresh: (N,) their rows, the latest first.
        """
        new, other = scorer.items - scorer.info.items, copy.copy(self)
        other._popularity = np.concatenate([self._popularity, np.zeros(new, self._popularity.dtype)])
        order = self._stages.generators.by_popularity
        order = np.concatenate([order, np.arange(scorer.info.items, scorer.items, dtype=np.int64)])
        generators = self._stages.generators.with_new_items(order, fresh)
        other._stages = self._stages.with_new_items(scorer, other._popularity, generators)
        other._columns = PatchedColumns(self._columns, patch)
        other._filters = PatchedFilters(self._filters, other._columns, patch)
        other._retrieval_s = 0.0
        return other

    @property
    def columns(self) -> Columns:
        """Of the items, for filters and caps."""
        return self._columns

    def check(self, request: RecommendRequest) -> None:
        """Raise RequestError for rules that the bundle cannot keep; names the field."""
        if request.filter:
            self._filters.check(request.filter, "filter")
        for i, boost in enumerate(request.boost):
            self._filters.check(boost.filter, f"boost[{i}].filter")
        for name in request.caps:
            self._columns.texts(name, "caps")
        if request.diversity and not self._vectors:
            raise RequestError("the model has no item vectors", where="diversity", remedy="use caps instead")

    def recommend(self, requests: Sequence[PreparedRequest]) -> list[Recommendation]:
        """The answers, in order; each in the best form that its deadline allows.

        Args:
            requests: recommendations, whose encoded rows are the items that must not come.
        """
        answers: list[Recommendation | None] = [None] * len(requests)
        steps, now = defaultdict(list), time.perf_counter()
        for i, request in enumerate(requests):
            steps[self._latency_budget.step(request.deadline - now, len(requests))].append(i)
        for step in STEPS:
            if positions := steps.get(step):
                start = time.perf_counter()
                some = self._recommend([self._plan(requests[i]) for i in positions], step)
                self._latency_budget.record(step, (time.perf_counter() - start) / len(positions))
                for i, answer in zip(positions, some, strict=True):
                    answers[i] = answer
        return answers  # type: ignore[return-value]

    def retrieval_s(self) -> float:
        """Seconds that finding candidates took since the last call."""
        seconds, self._retrieval_s = self._retrieval_s, 0.0
        return seconds

    def similar(self, row: int, k: int) -> Recommendation:
        """The k nearest items to an item, by cosine; popular ones, with score 0, for row 0."""
        if row:
            pool = self._stages.similar(row, k)
            return Recommendation(pool.rows, pool.scores)
        allowed = EligibleItems(self._stages.scorer.items, np.zeros(1, np.int64))
        rows = self._stages.generators.popular(allowed, k)
        return Recommendation(rows, np.zeros(len(rows), np.float32))

    def popular(self, k: int) -> tuple[Array, Array]:
        """Rows (N,) of the k items with the most events to be predicted, and how many these are (N,)."""
        rows = self._stages.generators.by_popularity[:k].astype(np.int64)
        counts = self._popularity[rows]
        return rows[counts > 0], counts[counts > 0]

    def events_on(self, row: int) -> int:
        """How many events of an item are to be predicted."""
        return int(self._popularity[row])

    @property
    def latest(self) -> tuple[Array, Array]:
        """Rows of the bundle's items first met last; see CandidateGenerators.latest."""
        return self._stages.generators.latest

    def _plan(self, prepared: PreparedRequest) -> Plan:
        request = prepared.request
        assert isinstance(request, RecommendRequest)
        match = self._filters.match(request.filter) if request.filter else None
        rules = Rules(
            caps=[Cap(self._columns.codes(name, "caps"), most) for name, most in request.caps.items()],
            diversity=request.diversity,
            boosts=[(self._filters.match(boost.filter), boost.add) for boost in request.boost],
            floor=math.ceil(request.explore * request.k - 1e-9),
        )
        allowed = EligibleItems(self._stages.scorer.items, np.unique(prepared.encoded.rows), match)
        return Plan(request, prepared.encoded, allowed, rules)

    def _recommend(self, plans: Sequence[Plan], step: str) -> list[Recommendation]:
        if step == POPULAR:
            pools = [EMPTY] * len(plans)
        else:
            start = time.perf_counter()
            pools = self._stages.pools(plans, step)
            self._retrieval_s += time.perf_counter() - start
            extras = [self._extra(*pair) for pair in zip(plans, pools, strict=True)]
            pools = [p.join(more) for p, more in zip(pools, self._rank(plans, extras), strict=True)]
        chosen = [self._choose(*pair) for pair in zip(plans, pools, strict=True)]
        fill = [self._fill(*three) for three in zip(plans, pools, chosen, strict=True)]
        if any(map(len, fill)):
            more = self._score_fill(plans, fill, step)
            chosen = [
                ScoredCandidates(np.concatenate([a.rows, b.rows]), np.concatenate([a.scores, b.scores]))
                for a, b in zip(chosen, more, strict=True)
            ]
        return [Recommendation(pool.rows, pool.scores, step) for pool in chosen]

    def _extra(self, plan: Plan, pool: ScoredCandidates) -> Array:
        """Candidates that the rules need beside a pool, ascending."""
        allowed, generators, rules = plan.allowed, self._stages.generators, plan.rules
        some = [
            generators.popular(allowed.matching(match), BOOSTED) for match, add in rules.boosts if add > 0
        ]
        if rules.floor:
            some.append(generators.fresh(plan.request.user, allowed, 4 * rules.floor))
        return np.setdiff1d(np.concatenate(some), pool.rows) if some else NONE

    def _rank(self, plans: Sequence[Plan], rows: Sequence[Array]) -> list[ScoredCandidates]:
        """Scores of some rows of each plan, which may be none."""
        pools = [EMPTY] * len(plans)
        positions = [i for i, some in enumerate(rows) if len(some)]
        ranked = self._stages.rank([plans[i] for i in positions], [rows[i] for i in positions])
        for i, pool in zip(positions, ranked, strict=True):
            pools[i] = pool
        return pools

    def _choose(self, plan: Plan, pool: ScoredCandidates) -> ScoredCandidates:
        """Of a pool what the rules let through, in order."""
        rules, k = plan.rules, plan.request.k
        if rules.plain:
            return self._stages.best(pool, k)
        boosted = ScoredCandidates(pool.rows, rules.boosted(pool.rows, pool.scores))
        ranked = self._stages.best(boosted, len(pool.rows))
        vectors = self._stages.scorer.directions(ranked.rows) if rules.diversity else None
        fresh = self._stages.generators.all_fresh
        chosen = choose(ranked.rows, k, rules, scores=ranked.scores, vectors=vectors, fresh=fresh)
        return ScoredCandidates(ranked.rows[chosen], ranked.scores[chosen])

    def _fill(self, plan: Plan, pool: ScoredCandidates, chosen: ScoredCandidates) -> Array:
        """Popular items until there are k, caps kept."""
        missing, allowed = plan.request.k - len(chosen.rows), plan.allowed
        if missing <= 0 or len(pool.rows) >= allowed.count:
            return NONE
        order, without, caps = self._stages.generators.by_popularity, np.sort(chosen.rows), plan.rules.caps
        if not caps:
            return first_allowed(order, allowed, missing, without=without)
        looked_at = 16 * missing
        while True:  # most often the first rows suffice
            rows = first_allowed(order, allowed, looked_at, without=without)
            positions = choose(rows, missing, Rules(caps=caps), taken=chosen.rows)
            if len(positions) == missing or len(rows) < looked_at:
                return rows[positions]
            looked_at *= 8

    def _score_fill(self, plans: Sequence[Plan], rows: Sequence[Array], step: str) -> list[ScoredCandidates]:
        """The fill with its scores, best first; popular ones as they are where there is no time to rank."""
        if step == POPULAR:
            return [ScoredCandidates(some, self._log_share(some)) for some in rows]
        pools = self._rank(plans, rows)
        return [
            self._stages.best(ScoredCandidates(p.rows, plan.rules.boosted(p.rows, p.scores)), len(p.rows))
            for plan, p in zip(plans, pools, strict=True)
        ]

    def _log_share(self, rows: Array) -> Array:
        """Logarithm of the items' share of all events, as the popularity model scores."""
        return np.log((self._popularity[rows] + 1.0) / self._smoothed)


def _open_generators(
    folder: Path, retrieval: Retrieval, columns: Columns, popularity: Array
) -> CandidateGenerators:
    segment = columns.texts(retrieval.segment, "segment") if retrieval.segment else None
    if folder.is_dir():
        return CandidateGenerators.open(folder, columns.items, segment)
    order = 1 + np.argsort(-popularity[1:].astype(np.int64), kind="stable")
    return CandidateGenerators({"popular": order, "fresh": NONE}, segment)


def _open_index(folder: Path, retrieval: Retrieval, scorer: BatchScorer, threads: int) -> Index | None:
    if not scorer.retrieves:
        return None
    if retrieval.index is None:
        return Exact(scorer.blocks)
    return Approximate(folder / "faiss.index", retrieval.index, scorer.stored["item"], threads)
