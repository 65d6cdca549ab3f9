"""Ranks from a bundle with numpy, onnxruntime and msgspec alone.

Per request only what depends on the request is computed: rows come from memory-mapped
stores, and requests with about as many candidates run through the model together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.artifact import Artifact, open_artifact
from app.bundle import check
from app.bundle.asked import Asked, Reader
from app.bundle.explain import explain
from app.bundle.histories import Histories
from app.bundle.ids import Ids
from app.bundle.layout import Array, load_array, read_info
from app.bundle.requests import Answer, HistoryEvent, RankRequest, RecommendRequest, Scored, SimilarRequest
from app.bundle.scores import Scores
from app.bundle.top import best
from app.errors import RequestError

Stored = Sequence[Sequence[HistoryEvent] | None] | None
SCORES_AT_ONCE = 1 << 23  # of all items for several requests


class Ranker:
    """A bundle, ready to rank. Safe to use from several threads.

    `users` and `items` are the known ids by row, row 0 "".

    Args:
        artifact: the opened bundle.
        threads: of one call into the model.
        max_candidates: ids that a request may name.
        max_k: items that recommend and similar may return.
    """

    def __init__(
        self, artifact: Artifact, *, threads: int = 1, max_candidates: int = 1000, max_k: int = 100
    ) -> None:
        path = artifact.path
        self.artifact, self.max_candidates, self.max_k = artifact, max_candidates, max_k
        self.info = read_info(path / "bundle.json")
        self.name = self.info.name
        self.version = self.info.version or artifact.digest[:12]
        self.users, self.items = Ids.open(path / "users"), Ids.open(path / "items")
        self.items.remember()
        self._popularity = load_array(path / "popularity.npy").astype(np.int64)
        self._reader = Reader(self.info, self.users, self.items, Histories.open(path / "history"))
        self._scores = Scores(path, self.info, threads)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        threads: int = 1,
        verify: bool = True,
        max_candidates: int = 1000,
        max_k: int = 100,
    ) -> Ranker:
        """Open the bundle at `path`; `verify` compares every file with its SHA-256 first.

        Raises:
            ArtifactError: names the file that is missing, damaged, truncated or too new.
        """
        artifact = open_artifact(Path(path), "bundle", verify=verify)
        return cls(artifact, threads=threads, max_candidates=max_candidates, max_k=max_k)

    @property
    def figures(self) -> dict[str, Any]:
        """Quality and size as measured at export."""
        return self.artifact.figures

    def check(self, request: RankRequest | RecommendRequest | SimilarRequest) -> None:
        """Raise RequestError if a request cannot be answered; `rank` and the others do so too."""
        if isinstance(request, RankRequest):
            check.check_rank(request, self.max_candidates)
        elif isinstance(request, RecommendRequest):
            check.check_recommend(request, self.max_candidates, self.max_k)
        else:
            check.check_similar(request, self.max_k)

    def rank(self, requests: Sequence[RankRequest], stored: Stored = None) -> list[Answer]:
        """Score the candidates of each request, best first; equal scores keep their order.

        Args:
            requests: scored together, whatever their sizes.
            stored: for each request the user's feedback events by time, or None.

        Raises:
            RequestError: of the first request that cannot be answered; then none is.
        """
        named, asked = [], []
        for place, request in enumerate(requests):
            self.check(request)
            items = list(dict.fromkeys(request.items))
            rows = np.array(self.items.find_all(items), np.int64)
            named.append(items)
            asked.append(self._reader.read(request, rows, stored[place] if stored else None))
        scores = self._scores.candidates(asked)
        return [self._ranked(*one) for one in zip(requests, named, asked, scores, strict=True)]

    def _ranked(self, request: RankRequest, items: list[str], asked: Asked, scores: Array) -> Answer:
        order = np.argsort(-scores, kind="stable")[: request.k]
        names, values = [items[place] for place in order.tolist()], scores[order].tolist()
        cold = asked.user == 0 or not asked.rows.all()
        if not request.explain:
            return Answer(self.name, self.version, list(map(Scored, names, values)), cold)
        effects = explain(self._scores, asked, asked.rows[order])
        because = [{self.items[row]: change for row, change in one.items()} for one in effects]
        return Answer(self.name, self.version, list(map(Scored, names, values, because)), cold)

    def recommend(self, requests: Sequence[RecommendRequest], stored: Stored = None) -> list[Answer]:
        """The best k of all items for each request; of equal scores the more popular first.

        `exclude_seen` leaves out what training knew of the user and what the history holds.

        Args:
            requests: scored together.
            stored: for each request the user's feedback events by time, or None.

        Raises:
            RequestError: of the first request that cannot be answered; then none is.
        """
        asked = []
        for place, request in enumerate(requests):
            self.check(request)
            left_out = np.array([0, *self.items.find_all(request.exclude)], np.int64)
            asked.append(self._reader.read(request, left_out, stored[place] if stored else None))
        answers: list[Answer] = []
        step = max(1, SCORES_AT_ONCE // self.info.items)
        for start in range(0, len(asked), step):
            chunk = asked[start : start + step]
            triples = zip(requests[start : start + step], chunk, self._scores.all(chunk), strict=True)
            answers += [self._recommended(*one) for one in triples]
        return answers

    def _recommended(self, request: RecommendRequest, asked: Asked, scores: Array) -> Answer:
        scores[asked.rows] = -np.inf
        if request.exclude_seen:
            scores[self._reader.seen(asked)] = -np.inf
        return self._answer(scores, request.k, asked.user == 0)

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
        scores = self._scores.cosines(row) if row else np.zeros(self.info.items, np.float32)
        scores[[0, row]] = -np.inf
        return self._answer(scores, request.k, row == 0)

    def _answer(self, scores: Array, k: int, cold: bool) -> Answer:
        chosen = best(scores, k, self._popularity)
        pairs = zip(chosen.tolist(), scores[chosen].tolist(), strict=True)
        return Answer(self.name, self.version, [Scored(self.items[row], v) for row, v in pairs], cold)
