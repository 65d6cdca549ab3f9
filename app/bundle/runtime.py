"""Ranks from a bundle with numpy, onnxruntime and msgspec alone, and faiss where an index needs it.

Per request only what depends on the request is computed: rows come from memory-mapped
stores, and requests with about as many candidates run through the model together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from app.artifact import Artifact, open_artifact
from app.bundle.format.histories import Histories
from app.bundle.format.ids import Ids
from app.bundle.format.layout import Array, load_array, load_trained, read_info
from app.bundle.new_items import NewItems
from app.bundle.ranking.explain import explain
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request import validation
from app.bundle.request.encode import EncodedRequest, Reader
from app.bundle.request.limits import DEFAULT_LIMITS, Limits
from app.bundle.request.requests import (
    Answer,
    Basis,
    RankRequest,
    RecommendRequest,
    Scored,
    SimilarRequest,
)
from app.bundle.request.seen import SeenItems
from app.bundle.retrieval.recommend import Recommender, RecommendQuery
from app.errors import RequestError
from app.events import HistoryEvent, Value

Stored = Sequence[Sequence[HistoryEvent] | None] | None


@dataclass(frozen=True)
class PreparedRequest:
    """A request that can be answered, and its rows."""

    request: RankRequest | RecommendRequest
    items: list[str]  # candidates, each once; none for a recommendation
    asked: EncodedRequest  # its rows: of the candidates, or of what must not be recommended
    deadline: float = math.inf  # of a recommendation, on time.perf_counter's clock


class Ranker:
    """A bundle, ready to rank. Safe to use from several threads.

    `users` and `items` are the known ids by row, row 0 "". `edition` counts the changes of the catalogue.
    `newcomers` are the items that came or changed after training.

    Args:
        artifact: the opened bundle.
        limits: of requests and of new items.
        threads: of one call into the model.
        user_vectors: a cache, of this and of other rankers; None: vectors are computed each time.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int = 1,
        user_vectors: UserVectorCache | None = None,
    ) -> None:
        path = artifact.path
        self.artifact, self.limits, self.catalogue_version = artifact, limits, 0
        self.info = read_info(path / "bundle.json")
        self.name = self.info.name
        self.version = self.info.version or artifact.digest[:12]
        self.users, self.items = Ids.open(path / "users"), Ids.open(path / "items")
        self.items.remember()
        self._users_trained = load_trained(path / "users", len(self.users))
        self._items_trained = load_trained(path / "items", len(self.items))
        self._popularity = load_array(path / "popularity.npy")
        self._scores = BatchScorer(path, self.info, threads, user_vectors)
        histories, scores_history = Histories.open(path / "history"), self._scores.take_history
        self._reader = Reader(self.info, self.users, self.items, histories, scores_history=scores_history)
        self._recommender = Recommender.open(path, self._scores, self._popularity, threads)
        self._trained = self._scores, self._recommender  # without new items
        columns = self._recommender.columns
        self.new_items = NewItems(path, self._scores.stored, columns, limits.max_new_items)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int = 1,
        verify: bool = True,
        user_vectors: UserVectorCache | None = None,
    ) -> Ranker:
        """Open the bundle at `path`; `verify` compares every file with its SHA-256 first.

        Raises:
            ArtifactError: names the file that is missing, damaged, truncated or too new.
        """
        artifact = open_artifact(Path(path), "bundle", verify=verify)
        return cls(artifact, limits=limits, threads=threads, user_vectors=user_vectors)

    @property
    def figures(self) -> dict[str, Any]:
        """Quality and size as measured at export."""
        return self.artifact.figures

    def retrieval_s(self) -> float:
        """Seconds that finding candidates for recommendations took since this was last asked."""
        return self._recommender.retrieval_s()

    def check(self, request: RankRequest | RecommendRequest | SimilarRequest) -> None:
        """Raise RequestError if a request cannot be answered; `rank` and the others do so too."""
        if isinstance(request, RankRequest):
            validation.check_rank(request, self.limits.max_candidates)
        elif isinstance(request, RecommendRequest):
            validation.check_recommend(request, self.limits.max_candidates, self.limits.max_k)
            self._recommender.check(request)
        else:
            validation.check_similar(request, self.limits.max_k)

    def check_item(self, name: str, columns: Mapping[str, Value]) -> None:
        """Raise RequestError if an item's id or columns cannot be used; names the field."""
        validation.check_ids([name], "item")
        self.new_items.check(columns)

    def has_room_for(self, name: str) -> bool:
        """Whether an item can be put."""
        return self.new_items.room > 0 or self.new_items.holds(self.items.find(name))

    def basis_of(self, name: str) -> Basis:
        """What an item is, or would be, ranked by."""
        return "training" if self.trained_on(name) else self.new_items.basis

    def trained_on(self, name: str) -> bool:
        """Whether the weights were trained on an event of an item."""
        return bool(self._items_trained[self.items.find(name)])

    def knows_item(self, name: str) -> bool:
        """Whether an item has a row in the bundle, trained or not."""
        return 0 < self.items.find(name) < self.info.items

    def put_items(self, items: Mapping[str, Mapping[str, Value]]) -> int:
        """Take in items that came or changed after training; requests read from now on know them.

        A known item keeps what training learned of it, and its columns change. Columns that
        the bundle does not know are left aside. Requests may be answered meanwhile; items are
        put by one thread.

        Args:
            items: by id, with all their columns.

        Returns:
            How many were left aside for want of room.
        """
        rows: dict[str, int] = {}
        room, following = self.new_items.room, len(self.items)
        for name in items:
            row = self.items.find(name)
            if not self.new_items.holds(row):
                if not room:
                    continue
                room -= 1
            rows[name] = row or following
            following += not row
        self.new_items.put({row: items[name] for name, row in rows.items()})
        scores, recommender = self._trained
        self._scores = scores.with_new_items(self.new_items.rows)
        self._recommender = recommender.with_new_items(
            self._scores, self.new_items.patch(), self.new_items.fresh()
        )
        untrained = np.zeros(
            len(self.new_items.rows["item"]) + self.info.items - len(self._items_trained), bool
        )
        self._items_trained = np.concatenate([self._items_trained, untrained])
        for name, row in rows.items():  # last: whoever finds an id finds its row
            if row >= len(self.items):
                self.items.add(name)
        self.catalogue_version += (
            1  # after all: an answer of before it may know the items, none of after it may not
        )
        return len(items) - len(rows)

    def read(
        self,
        request: RankRequest | RecommendRequest,
        stored: Sequence[HistoryEvent] | None = None,
        arrived: float | None = None,
        seen: SeenItems | None = None,
    ) -> PreparedRequest:
        """Check a request and find its rows.

        Args:
            request: of a ranking or a recommendation.
            stored: the user's feedback events by time.
            arrived: when its budget began, on time.perf_counter's clock; None: now.
            seen: the items of all the user's feedback, for `exclude_seen`; None: those of `stored`.

        Raises:
            RequestError: names the field that is wrong.
        """
        if isinstance(request, RecommendRequest):
            self.check(request)
            return self._read_recommend(request, stored, arrived, seen)
        validation.check_but_ids(request, self.limits.max_candidates)
        items, rows = self._candidates(request.items)
        return PreparedRequest(request, items, self._reader.read(request, rows, stored))

    def _candidates(self, names: list[str]) -> tuple[list[str], Array]:
        """Each candidate once, and its row."""
        try:
            items = list(dict.fromkeys(names))
            rows = self.items.remembered(items)
        except TypeError:  # not even hashable
            items, rows = names, np.zeros(len(names), np.int64)
        if np.count_nonzero(rows) < len(rows):  # an id that is remembered is well-formed
            validation.check_ids(items, "items")
            for place in np.flatnonzero(rows == 0).tolist():
                rows[place] = self.items.find(items[place])
        return items, rows

    def _read_recommend(
        self,
        request: RecommendRequest,
        stored: Sequence[HistoryEvent] | None,
        arrived: float | None,
        seen: SeenItems | None,
    ) -> PreparedRequest:
        rows = np.array([0, *self.items.find_all(request.exclude)], np.int64)
        asked = self._reader.read(request, rows, stored)
        if request.exclude_seen:
            met = self._reader.seen(request, asked.user, stored, seen)
            asked = replace(asked, rows=np.concatenate([rows, met]))
        budget = request.budget_ms or self.limits.budget_ms
        start = time.perf_counter() if arrived is None else arrived
        return PreparedRequest(request, [], asked, start + budget / 1e3 if budget else math.inf)

    def answer(self, questions: Sequence[PreparedRequest]) -> list[Answer]:
        """Answer questions of both kinds, each kind scored together."""
        answers: list[Answer | None] = [None] * len(questions)
        for kind, answer in ((RankRequest, self._rank), (RecommendRequest, self._recommend)):
            places = [place for place, one in enumerate(questions) if type(one.request) is kind]
            if places:
                for place, found in zip(places, answer([questions[p] for p in places]), strict=True):
                    answers[place] = found
        return answers  # type: ignore[return-value]

    def rank(self, requests: Sequence[RankRequest], stored: Stored = None) -> list[Answer]:
        """Score the candidates of each request, best first; equal scores keep their order.

        Args:
            requests: scored together, whatever their sizes.
            stored: for each request the user's feedback events by time, or None.

        Raises:
            RequestError: of the first request that cannot be answered; then none is.
        """
        return self.answer(self._read_all(requests, stored))

    def recommend(self, requests: Sequence[RecommendRequest], stored: Stored = None) -> list[Answer]:
        """The best k items for each request; of equal scores the more popular first.

        Every item of a small catalogue is scored; see app.bundle.retrieval.recommend for larger ones.
        `exclude_seen` leaves out every item that the user met: in the log, in the request's history,
        by stored feedback.

        Args:
            requests: scored together.
            stored: for each request the user's feedback events by time, or None.

        Raises:
            RequestError: of the first request that cannot be answered; then none is.
        """
        return self.answer(self._read_all(requests, stored))

    def _read_all(
        self, requests: Sequence[RankRequest | RecommendRequest], stored: Stored
    ) -> list[PreparedRequest]:
        return [self.read(one, stored[place] if stored else None) for place, one in enumerate(requests)]

    def _rank(self, questions: Sequence[PreparedRequest]) -> list[Answer]:
        scores = self._scores.candidates([question.asked for question in questions])
        return [self._ranked(*pair) for pair in zip(questions, scores, strict=True)]

    def _ranked(self, question: PreparedRequest, scores: Array) -> Answer:
        request, items, asked = question.request, question.items, question.asked
        assert isinstance(request, RankRequest)
        warm = bool(self._items_trained[asked.rows].all())
        if not warm and not asked.rows.all():
            # All have one row, though not bit for bit one score: that depends on the position in the batch.
            scores[asked.rows == 0] = scores[asked.rows == 0][0]
        order = np.argsort(-scores, kind="stable")[: request.k]
        names, values = map(items.__getitem__, order.tolist()), scores[order].tolist()
        cold = not (warm and self._users_trained[asked.user])
        if not request.explain:
            return Answer(self.name, self.version, list(map(Scored, names, values)), cold)
        effects = explain(self._scores, asked, asked.rows[order])
        because = [{self.items[row]: change for row, change in one.items()} for one in effects]
        return Answer(self.name, self.version, list(map(Scored, names, values, because)), cold)

    def _recommend(self, questions: Sequence[PreparedRequest]) -> list[Answer]:
        found = self._recommender.find([RecommendQuery(q.request, q.asked, q.deadline) for q in questions])  # type: ignore[arg-type]
        return [
            self._answer(one.rows, one.scores, not self._users_trained[question.asked.user], one.degraded)
            for question, one in zip(questions, found, strict=True)
        ]

    def similar(self, requests: Sequence[SimilarRequest]) -> list[Answer]:
        """The k items with the highest cosine to an item's row; popular ones for an unknown item.

        Raises:
            RequestError: of the first request that cannot be answered, or the model has no vectors.
        """
        for request in requests:
            self.check(request)
        if self._scores.rows["item"].width < 2:
            raise RequestError(
                f"{self.info.model} has no item vectors", where="item", remedy="serve another model"
            )
        return [self._similar(request) for request in requests]

    def _similar(self, request: SimilarRequest) -> Answer:
        row = self.items.find(request.item)
        found = self._recommender.similar(row, request.k)
        return self._answer(found.rows, found.scores, not self._items_trained[row])

    def _answer(self, rows: Array, scores: Array, cold: bool, degraded: str = "") -> Answer:
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        items = [Scored(self.items[row], value) for row, value in pairs]
        return Answer(self.name, self.version, items, cold, degraded or UNSET)
