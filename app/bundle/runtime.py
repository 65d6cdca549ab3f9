"""Ranks from a bundle with numpy, onnxruntime and msgspec alone, and faiss where an index needs it.

Per request only what depends on the request is computed: rows come from memory-mapped
stores, and requests with about as many candidates run through the model together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from app.bundle.request.encode import RequestEncoder
from app.bundle.request.limits import DEFAULT_LIMITS, Limits
from app.bundle.request.prepare import PreparedRequest, RequestPreparer
from app.bundle.request.requests import (
    Answer,
    Basis,
    RankRequest,
    RecommendRequest,
    Scored,
    SimilarRequest,
)
from app.bundle.request.seen import SeenItems
from app.bundle.retrieval.recommend import Recommender
from app.errors import RequestError
from app.events import HistoryEvent, Value

Stored = Sequence[Sequence[HistoryEvent] | None] | None


class Ranker:
    """A bundle, ready to rank. Safe to use from several threads.

    `users` and `items` are the known ids by row, row 0 "". `catalogue_version` counts the changes of the
    items. `new_items` are those that came or changed after training.

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
        self.items.build_table()
        self._trained_users = load_trained(path / "users", len(self.users))
        self._trained_items = load_trained(path / "items", len(self.items))
        self._scorer = BatchScorer(path, self.info, threads, user_vectors)
        histories, scores_history = Histories.open(path / "history"), self._scorer.takes_history
        encoder = RequestEncoder(self.info, self.users, self.items, histories, scores_history=scores_history)
        self._preparer = RequestPreparer(encoder, self.items, limits)
        popularity = load_array(path / "popularity.npy")
        self._recommender = Recommender.open(path, self._scorer, popularity, threads)
        self._without_new_items = self._scorer, self._recommender
        columns = self._recommender.columns
        self.new_items = NewItems(path, self._scorer.stored, columns, limits.max_new_items)

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
        """Seconds that finding candidates for recommendations took since the last call."""
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
        return self.new_items.room > 0 or self.new_items.has(self.items.row(name))

    def basis_of(self, name: str) -> Basis:
        """What an item is, or would be, ranked by."""
        return "training" if self.trained_on(name) else self.new_items.basis

    def trained_on(self, name: str) -> bool:
        """Whether the weights were trained on an event of an item."""
        return bool(self._trained_items[self.items.row(name)])

    def knows_item(self, name: str) -> bool:
        """Whether an item has a row in the bundle, trained or not."""
        return 0 < self.items.row(name) < self.info.items

    def put_items(self, items: Mapping[str, Mapping[str, Value]]) -> int:
        """Take in items that came or changed after training; requests read from now on know them.

        An item of the bundle keeps what training learned of it, and its columns change. Columns that
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
            row = self.items.row(name)
            if not self.new_items.has(row):
                if not room:
                    continue
                room -= 1
            rows[name] = row or following
            following += not row
        self.new_items.put({row: items[name] for name, row in rows.items()})
        scorer, recommender = self._without_new_items
        self._scorer = scorer.with_new_items(self.new_items.rows)
        patch, fresh = self.new_items.patch(), self.new_items.fresh()
        self._recommender = recommender.with_new_items(self._scorer, patch, fresh)
        more = self._scorer.items - len(self._trained_items)
        self._trained_items = np.concatenate([self._trained_items, np.zeros(more, bool)])
        for name, row in rows.items():  # last: an id that is known has a row everywhere
            if row >= len(self.items):
                self.items.add(name)
        # After all: an answer of an older version may know the items, one of this version does.
        self.catalogue_version += 1
        return len(items) - len(rows)

    def read(
        self,
        request: RankRequest | RecommendRequest,
        stored: Sequence[HistoryEvent] | None = None,
        arrived: float | None = None,
        seen: SeenItems | None = None,
    ) -> PreparedRequest:
        """Check a request and look up its rows.

        Args:
            request: of a ranking or a recommendation.
            stored: the user's feedback events by time.
            arrived: when its budget began, on time.perf_counter's clock; None: now.
            seen: the items of all the user's feedback, for `exclude_seen`; None: those of `stored`.

        Raises:
            RequestError: names the field that is wrong.
        """
        if isinstance(request, RankRequest):
            return self._preparer.rank(request, stored)
        return self._preparer.recommend(request, stored, arrived, seen, self._recommender.check)

    def answer(self, requests: Sequence[PreparedRequest]) -> list[Answer]:
        """Answer requests of both kinds, each kind scored together."""
        answers: list[Answer | None] = [None] * len(requests)
        kinds: tuple[tuple[type, Callable[[Sequence[PreparedRequest]], list[Answer]]], ...]
        kinds = (RankRequest, self._rank), (RecommendRequest, self._recommend)
        for kind, answer in kinds:
            positions = [i for i, prepared in enumerate(requests) if type(prepared.request) is kind]
            if positions:
                for i, of_kind in zip(positions, answer([requests[i] for i in positions]), strict=True):
                    answers[i] = of_kind
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
        return [self.read(request, stored[i] if stored else None) for i, request in enumerate(requests)]

    def _rank(self, requests: Sequence[PreparedRequest]) -> list[Answer]:
        scores = self._scorer.score([prepared.encoded for prepared in requests])
        return [self._ranking(*pair) for pair in zip(requests, scores, strict=True)]

    def _ranking(self, prepared: PreparedRequest, scores: Array) -> Answer:
        request, items, encoded = prepared.request, prepared.items, prepared.encoded
        assert isinstance(request, RankRequest)
        warm = bool(self._trained_items[encoded.rows].all())
        if not warm and not encoded.rows.all():
            # All have one row, though not bit for bit one score: that depends on the position in the batch.
            scores[encoded.rows == 0] = scores[encoded.rows == 0][0]
        order = np.argsort(-scores, kind="stable")[: request.k]
        names, values = map(items.__getitem__, order.tolist()), scores[order].tolist()
        cold = not (warm and self._trained_users[encoded.user])
        if not request.explain:
            return Answer(self.name, self.version, list(map(Scored, names, values)), cold)
        effects = explain(self._scorer, encoded, encoded.rows[order])
        because = [{self.items[row]: change for row, change in effect.items()} for effect in effects]
        return Answer(self.name, self.version, list(map(Scored, names, values, because)), cold)

    def _recommend(self, requests: Sequence[PreparedRequest]) -> list[Answer]:
        return [
            self._answer(
                best.rows, best.scores, not self._trained_users[prepared.encoded.user], best.degraded
            )
            for prepared, best in zip(requests, self._recommender.recommend(requests), strict=True)
        ]

    def similar(self, requests: Sequence[SimilarRequest]) -> list[Answer]:
        """The k items with the highest cosine to an item's row; popular ones for an unknown item.

        Raises:
            RequestError: of the first request that cannot be answered, or the model has no vectors.
        """
        for request in requests:
            self.check(request)
        if self._scorer.rows["item"].width < 2:
            raise RequestError(
                f"{self.info.model} has no item vectors", where="item", remedy="serve another model"
            )
        return [self._similar(request) for request in requests]

    def _similar(self, request: SimilarRequest) -> Answer:
        row = self.items.row(request.item)
        nearest = self._recommender.similar(row, request.k)
        return self._answer(nearest.rows, nearest.scores, not self._trained_items[row])

    def _answer(self, rows: Array, scores: Array, cold: bool, degraded: str = "") -> Answer:
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        items = [Scored(self.items[row], value) for row, value in pairs]
        return Answer(self.name, self.version, items, cold, degraded or UNSET)
