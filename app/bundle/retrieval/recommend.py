"""Two stages: candidates from an index or from several sources, then the ranker, then the rules.

    candidates -> ranker -> boosts -> caps, diversity, floor -> popular items where places are left

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
from app.bundle.request.encode import EncodedRequest
from app.bundle.request.requests import RecommendRequest
from app.bundle.retrieval.candidates import NONE, CandidateGenerators, first
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
class RecommendQuery:
    """A recommendation asked for.

    Args:
        request: checked.
        asked: its rows; `asked.rows` are the items that must not come.
        deadline: on time.perf_counter's clock; infinite: none.
    """

    request: RecommendRequest
    asked: EncodedRequest
    deadline: float = math.inf


@dataclass(frozen=True)
class Found:
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
        vectors: whether item rows tell how alike items are.
    """

    def __init__(self, stages: TwoStageRanker, columns: Columns, popularity: Array, *, vectors: bool) -> None:
        self._stages, self._columns, self._popularity = stages, columns, popularity
        self._smoothed = int(popularity.sum(dtype=np.int64)) + len(popularity)
        self._filters, self._pace, self._vectors = Filters(columns), LatencyBudget(), vectors
        self._retrieval_s = 0.0

    @classmethod
    def open(cls, path: Path, scores: BatchScorer, popularity: Array, threads: int) -> Recommender:
        """Map what a bundle has of the first stage; an older one has nothing, and all items are scored.

        Raises:
            ArtifactError: names the file that is missing, damaged or truncated.
        """
        retrieval = read_retrieval(path / "retrieval.json")
        columns = Columns.open(path / "columns", scores.info.items)
        sources = _sources(path / "candidates", retrieval, columns, popularity)
        index = _index(path / "index", retrieval, scores, threads)
        stages = TwoStageRanker(scores, popularity, index, sources, retrieval.candidates)
        vectors = retrieval.vectors and scores.rows["item"].width > 1
        return cls(stages, columns, popularity, vectors=vectors)

    def with_new_items(self, scores: BatchScorer, patch: Patch, fresh: Array) -> Recommender:
        """What this one, of a bundle alone, becomes where there are new items.

        Args:
            scores: over them, too.
            patch: their columns, and those that changed.
            fresh: (N,) their rows, the latest first.
        """
        new, other = scores.items - scores.info.items, copy.copy(self)
        other._popularity = np.concatenate([self._popularity, np.zeros(new, self._popularity.dtype)])
        order = self._stages.sources.order
        order = np.concatenate([order, np.arange(scores.info.items, scores.items, dtype=np.int64)])
        sources = self._stages.sources.with_new_items(order, fresh)
        other._stages = self._stages.with_new_items(scores, other._popularity, sources)
        other._columns = PatchedColumns(self._columns, patch)
        other._filters = PatchedFilters(self._filters, other._columns, patch)
        other._retrieval_s = 0.0
        return other

    @property
    def columns(self) -> Columns:
        """Of the items."""
        return self._columns

    def check(self, request: RecommendRequest) -> None:
        """Raise RequestError for rules that the bundle cannot keep; names the field."""
        if request.filter:
            self._filters.check(request.filter, "filter")
        for place, boost in enumerate(request.boost):
            self._filters.check(boost.filter, f"boost[{place}].filter")
        for name in request.caps:
            self._columns.texts(name, "caps")
        if request.diversity and not self._vectors:
            raise RequestError("the model has no item vectors", where="diversity", remedy="use caps instead")

    def find(self, wishes: Sequence[RecommendQuery]) -> list[Found]:
        """The answers, in order; each in the best form that its deadline allows."""
        found: list[Found | None] = [None] * len(wishes)
        steps, now = defaultdict(list), time.perf_counter()
        for place, wish in enumerate(wishes):
            steps[self._pace.step(wish.deadline - now, len(wishes))].append(place)
        for step in STEPS:
            if places := steps.get(step):
                start = time.perf_counter()
                answers = self._find([self._plan(wishes[p]) for p in places], step)
                self._pace.took(step, (time.perf_counter() - start) / len(places))
                for place, answer in zip(places, answers, strict=True):
                    found[place] = answer
        return found  # type: ignore[return-value]

    def retrieval_s(self) -> float:
        """Seconds that finding candidates took since this was last asked."""
        found, self._retrieval_s = self._retrieval_s, 0.0
        return found

    def similar(self, row: int, k: int) -> Found:
        """The k nearest items to one, by cosine; popular ones, with score 0, for row 0."""
        if row:
            pool = self._stages.similar(row, k)
            return Found(pool.rows, pool.scores)
        rows = self._stages.sources.popular(
            EligibleItems(self._stages.scores.items, np.zeros(1, np.int64)), k
        )
        return Found(rows, np.zeros(len(rows), np.float32))

    def _plan(self, wish: RecommendQuery) -> Plan:
        request = wish.request
        match = self._filters.match(request.filter) if request.filter else None
        rules = Rules(
            caps=[Cap(self._columns.codes(name, "caps"), most) for name, most in request.caps.items()],
            diversity=request.diversity,
            boosts=[(self._filters.match(one.filter), one.add) for one in request.boost],
            floor=math.ceil(request.explore * request.k - 1e-9),
        )
        allowed = EligibleItems(self._stages.scores.items, np.unique(wish.asked.rows), match)
        return Plan(request, wish.asked, allowed, rules)

    def _find(self, plans: Sequence[Plan], step: str) -> list[Found]:
        if step == POPULAR:
            pools = [EMPTY] * len(plans)
        else:
            start = time.perf_counter()
            pools = self._stages.pools(plans, step)
            self._retrieval_s += time.perf_counter() - start
            extras = [self._extra(*pair) for pair in zip(plans, pools, strict=True)]
            pools = [p.join(more) for p, more in zip(pools, self._ranked(plans, extras), strict=True)]
        found = [self._choose(*pair) for pair in zip(plans, pools, strict=True)]
        left = [self._fill(*three) for three in zip(plans, pools, found, strict=True)]
        if any(map(len, left)):
            more = self._filled(plans, left, step)
            found = [
                ScoredCandidates(np.concatenate([a.rows, b.rows]), np.concatenate([a.scores, b.scores]))
                for a, b in zip(found, more, strict=True)
            ]
        return [Found(one.rows, one.scores, step) for one in found]

    def _extra(self, plan: Plan, pool: ScoredCandidates) -> Array:
        """Candidates that the rules need beside a pool, ascending."""
        allowed, sources, rules = plan.allowed, self._stages.sources, plan.rules
        some = [sources.popular(allowed.matching(match), BOOSTED) for match, add in rules.boosts if add > 0]
        if rules.floor:
            some.append(sources.fresh(plan.request.user, allowed, 4 * rules.floor))
        return np.setdiff1d(np.concatenate(some), pool.rows) if some else NONE

    def _ranked(self, plans: Sequence[Plan], rows: Sequence[Array]) -> list[ScoredCandidates]:
        """Scores of some rows of each plan, which may be none."""
        found = [EMPTY] * len(plans)
        places = [place for place, some in enumerate(rows) if len(some)]
        made = self._stages.rank([plans[p] for p in places], [rows[p] for p in places])
        for place, pool in zip(places, made, strict=True):
            found[place] = pool
        return found

    def _choose(self, plan: Plan, pool: ScoredCandidates) -> ScoredCandidates:
        """Of a pool what the rules let through, in order."""
        rules, k = plan.rules, plan.request.k
        if rules.plain:
            return self._stages.best(pool, k)
        boosted = ScoredCandidates(pool.rows, rules.boosted(pool.rows, pool.scores))
        ranked = self._stages.best(boosted, len(pool.rows))
        vectors = self._stages.scores.directions(ranked.rows) if rules.diversity else None
        fresh = self._stages.sources.explored
        places = choose(ranked.rows, k, rules, scores=ranked.scores, vectors=vectors, fresh=fresh)
        return ScoredCandidates(ranked.rows[places], ranked.scores[places])

    def _fill(self, plan: Plan, pool: ScoredCandidates, chosen: ScoredCandidates) -> Array:
        """Popular items for the places that are left, caps kept."""
        missing, allowed = plan.request.k - len(chosen.rows), plan.allowed
        if missing <= 0 or len(pool.rows) >= allowed.count:
            return NONE
        order, without, caps = self._stages.sources.order, np.sort(chosen.rows), plan.rules.caps
        if not caps:
            return first(order, allowed, missing, without=without)
        looked = 16 * missing
        while True:  # most often the first rows suffice
            rows = first(order, allowed, looked, without=without)
            places = choose(rows, missing, Rules(caps=caps), taken=chosen.rows)
            if len(places) == missing or len(rows) < looked:
                return rows[places]
            looked *= 8

    def _filled(self, plans: Sequence[Plan], rows: Sequence[Array], step: str) -> list[ScoredCandidates]:
        """The fill with its scores, best first; popular ones as they are where there is no time to rank."""
        if step == POPULAR:
            return [ScoredCandidates(some, self._share(some)) for some in rows]
        pools = self._ranked(plans, rows)
        return [
            self._stages.best(ScoredCandidates(p.rows, plan.rules.boosted(p.rows, p.scores)), len(p.rows))
            for plan, p in zip(plans, pools, strict=True)
        ]

    def _share(self, rows: Array) -> Array:
        """Logarithm of the items' share of all events, as the popularity model scores."""
        return np.log((self._popularity[rows] + 1.0) / self._smoothed)


def _sources(folder: Path, retrieval: Retrieval, columns: Columns, popularity: Array) -> CandidateGenerators:
    segment = columns.texts(retrieval.segment, "segment") if retrieval.segment else None
    if folder.is_dir():
        return CandidateGenerators.open(folder, columns.items, segment)
    order = 1 + np.argsort(-popularity[1:].astype(np.int64), kind="stable")
    return CandidateGenerators({"popular": order, "fresh": NONE}, segment)


def _index(folder: Path, retrieval: Retrieval, scores: BatchScorer, threads: int) -> Index | None:
    if not scores.retrieves:
        return None
    if retrieval.index is None:
        return Exact(scores.blocks)
    return Approximate(folder / "faiss.index", retrieval.index, scores.stored["item"], threads)
