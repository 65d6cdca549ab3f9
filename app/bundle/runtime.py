"""Ranks from a bundle with numpy, onnxruntime and msgspec alone, and faiss where an index needs it.

Per request only what depends on the request is computed: rows come from memory-mapped
stores, and requests with about as many candidates run through the model together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET

from app.artifact import Artifact, open_artifact
from app.bundle.answer_columns import ItemColumns
from app.bundle.catalogue import Catalogue
from app.bundle.format.histories import Histories
from app.bundle.format.ids import Ids
from app.bundle.format.layout import Array, load_array, load_trained, read_info
from app.bundle.format.shown_columns import ShownColumns
from app.bundle.new_items import NewItems
from app.bundle.ranking.explain import explain
from app.bundle.ranking.scorer import BatchScorer
from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request import validation
from app.bundle.request.decoding import texted
from app.bundle.request.encode import EncodedRequest, RequestEncoder
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
from app.bundle.retrieval.recommend import Recommendation, Recommender
from app.errors import RequestError
from app.events import HistoryEvent, Value

T = TypeVar("T")
Stored = Sequence[Sequence[HistoryEvent] | None] | None


class Ranker:
    """A bundle, ready to rank. Safe to use from several threads.

    `users` and `items` are the known ids by row, row 0 "", `histories` the last events of these users.
    `catalogue_version` counts the changes of the items. `new_items` are those that came or changed after
    training, `item_columns` the columns of all.

    Args:
        artifact: the opened bundle.
        limits: of requests and of new items.
        threads: of one call into the model.
        user_vectors: a cache, of this and of other rankers; None: vectors are computed each time.
        columns: names of item columns that answers show where a request names none; those that the
            bundle does not have are left out.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int = 1,
        user_vectors: UserVectorCache | None = None,
        columns: Sequence[str] = (),
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
        self.histories = histories
        encoder = RequestEncoder(self.info, self.users, self.items, histories, scores_history=scores_history)
        self._preparer = RequestPreparer(encoder, self.items, limits)
        popularity = load_array(path / "popularity.npy")
        self.recommender = Recommender.open(path, self._scorer, popularity, threads)
        self._without_new_items = self._scorer, self.recommender
        known = self.recommender.columns
        shown = ShownColumns.open(path / "columns", known)
        self.new_items = NewItems(path, self._scorer.stored, known, shown.names, limits.max_new_items)
        self.item_columns = ItemColumns(shown, self.new_items, self.info.items, columns)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int = 1,
        verify: bool = True,
        user_vectors: UserVectorCache | None = None,
        columns: Sequence[str] = (),
    ) -> Ranker:
        """Open the bundle at `path`; `verify` compares every file with its SHA-256 first.

        Raises:
            ArtifactError: names the file that is missing, damaged, truncated or too new.
        """
        artifact = open_artifact(Path(path), "bundle", verify=verify)
        return cls(artifact, limits=limits, threads=threads, user_vectors=user_vectors, columns=columns)

    @property
    def figures(self) -> dict[str, Any]:
        """Quality and size as measured at export."""
        return self.artifact.figures

    def retrieval_s(self) -> float:
        """Seconds that finding candidates for recommendations took since the last call."""
        return self.recommender.retrieval_s()

    @property
    def catalogue(self) -> Catalogue:
        """What is known of items and users, and the lists that are the same for everybody."""
        return Catalogue(self)

    def check(self, request: RankRequest | RecommendRequest | SimilarRequest) -> None:
        """Raise RequestError if a request cannot be answered; `rank` and the others do so too."""
        if isinstance(request, RankRequest):
            validation.check_rank(request, self.limits.max_candidates)
        elif isinstance(request, RecommendRequest):
            validation.check_recommend(request, self.limits.max_candidates, self.limits.max_k)
            self.recommender.check(request)
        else:
            validation.check_similar(request, self.limits.max_k)
        self.item_columns.check(request.columns)

    def check_item(self, name: str, columns: Mapping[str, Value]) -> None:
        """Raise RequestError if an item's id or columns cannot be used; names the field."""
        validation.check_id(name, "id")
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

    def trained_on_user(self, name: str) -> bool:
        """Whether the weights were trained on an event of a user."""
        return bool(self._trained_users[self.users.row(name)])

    def has_item(self, name: str) -> bool:
        """Whether an item has a row, in the bundle or since."""
        return self.items.row(name) > 0

    def knows_item(self, name: str) -> bool:
        """Whether an item has a row in the bundle, trained or not."""
        return 0 < self.items.row(name) < self.info.items

    def put_items(
        self, items: Mapping[str, Mapping[str, Value]], times: Mapping[str, float] | None = None
    ) -> int:
        """Take in items that came or changed after training; requests read from now on know them.

        An item of the bundle keeps what training learned of it, and its columns change. Columns that
        the bundle does not know are left aside. Requests may be answered meanwhile; items are
        put by one thread.

        Args:
            items: by id, with all their columns.
            times: by id, seconds since 1970 at which they were put; None: that is not known.

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
        put_at = {row: times[name] if times else 0.0 for name, row in rows.items()}
        self.new_items.put({row: items[name] for name, row in rows.items()}, put_at)
        scorer, recommender = self._without_new_items
        self._scorer = scorer.with_new_items(self.new_items.rows)
        patch, fresh = self.new_items.patch(), self.new_items.fresh()
        self.recommender = recommender.with_new_items(self._scorer, patch, fresh)
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
        """Check a request and look up its rows. Integer ids are taken for their decimal text.

        Args:
            request: of a ranking or a recommendation.
            stored: the user's feedback events by time.
            arrived: when its budget began, on time.perf_counter's clock; None: now.
            seen: the items of all the user's feedback, for `exclude_seen`; None: those of `stored`.

        Raises:
            RequestError: names the field that is wrong.
        """
        if request.columns:
            self.item_columns.check(request.columns)
        try:
            return self._prepare(request, stored, arrived, seen)
        except RequestError:
            if (changed := with_texts(request)) is request:
                raise
        return self._prepare(changed, stored, arrived, seen)

    def _prepare(
        self,
        request: RankRequest | RecommendRequest,
        stored: Sequence[HistoryEvent] | None,
        arrived: float | None,
        seen: SeenItems | None,
    ) -> PreparedRequest:
        if isinstance(request, RankRequest):
            return self._preparer.rank(request, stored)
        return self._preparer.recommend(request, stored, arrived, seen, self.recommender.check)

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
        trained = self._trained_items[encoded.rows]
        warm = bool(trained.all())
        if not warm and not encoded.rows.all():
            # All have one row, though not bit for bit one score: that depends on the position in the batch.
            scores[encoded.rows == 0] = scores[encoded.rows == 0][0]
        order = np.argsort(-scores, kind="stable")[: request.k]
        names, values = map(items.__getitem__, order.tolist()), scores[order].tolist()
        columns = self.item_columns.chosen(request.columns)
        cold_user = self._is_cold(prepared)
        if warm and not columns and not request.explain:
            scored = list(map(Scored, names, values))
        else:
            because = self._because(encoded, encoded.rows[order]) if request.explain else repeat(None)
            shown = self.item_columns.of_rows(encoded.rows[order].tolist(), columns)
            scored = list(map(Scored, names, values, because, (~trained[order]).tolist(), shown))
        return Answer(self.name, self.version, scored, cold_user or not warm, cold_user)

    def _because(self, encoded: EncodedRequest, rows: Array) -> list[dict[str, float]]:
        """Of candidates (C,) the history items that had the strongest effects."""
        effects = explain(self._scorer, encoded, rows)
        return [{self.items[row]: change for row, change in effect.items()} for effect in effects]

    def _is_cold(self, prepared: PreparedRequest) -> bool:
        """Whether nothing is known of the user: training met no event of theirs, and none came since."""
        encoded = prepared.encoded
        if self._trained_users[encoded.user] or len(encoded.history):
            return False
        if self._scorer.takes_history:
            return True
        # Scores do not depend on the history, which may have been left aside.
        return not prepared.has_events and not len(self.histories.recent_items(encoded.user))

    def _recommend(self, requests: Sequence[PreparedRequest]) -> list[Answer]:
        answers = []
        for prepared, best in zip(requests, self.recommender.recommend(requests), strict=True):
            cold, items = self._is_cold(prepared), self._scored(best, prepared.request.columns)
            answers.append(Answer(self.name, self.version, items, cold, cold, best.degraded or UNSET))
        return answers

    def _scored(self, best: Recommendation, columns: Sequence[str] | None) -> list[Scored]:
        """Items as an answer shows them."""
        rows, cold = best.rows.tolist(), (~self._trained_items[best.rows]).tolist()
        shown = self.item_columns.of_rows(rows, self.item_columns.chosen(columns))
        names = (self.items[row] for row in rows)
        return list(map(Scored, names, best.scores.tolist(), repeat(None), cold, shown))

    def similar(self, requests: Sequence[SimilarRequest]) -> list[Answer]:
        """The k items with the highest cosine to an item's row; popular ones for an unknown item.

        Raises:
            RequestError: of the first request that cannot be answered, or the model has no vectors.
        """
        requests = [request if isinstance(request.item, str) else with_texts(request) for request in requests]
        for request in requests:
            self.check(request)
        if self._scorer.rows["item"].width < 2:
            raise RequestError(
                f"{self.info.model} has no item vectors", where="item", remedy="serve another model"
            )
        return [self._similar(request) for request in requests]

    def _similar(self, request: SimilarRequest) -> Answer:
        row = self.items.row(request.item)
        items = self._scored(self.recommender.similar(row, request.k), request.columns)
        return Answer(self.name, self.version, items, not self._trained_items[row])


def with_texts(request: T) -> T:
    """A request with texts instead of integer ids; the same object where that makes no request of it."""
    try:
        return texted(request)
    except (msgspec.MsgspecError, TypeError, RecursionError):
        return request
