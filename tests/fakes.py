"""A ranker of known answers, and the replica's HTTP without Ray: for tests of serving."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from app.bundle import check
from app.bundle.requests import Answer, HistoryEvent, RankRequest, RecommendRequest, Scored, SimilarRequest
from app.errors import RequestError
from app.recipe import Serve
from app.serving import ingress
from app.serving.guard import key_digest

Stored = Sequence[Sequence[HistoryEvent]]


class FakeRanker:
    """Scores an item by the length of its id, plus 100 for each stored event on it."""

    name, version, figures = "fake", "v1", {"ndcg@10": 0.5}

    def __init__(self) -> None:
        self.batches: list[int] = []

    def check(self, request: RankRequest | RecommendRequest | SimilarRequest) -> None:
        if isinstance(request, RankRequest):
            check.check_rank(request, 1000)
        elif isinstance(request, RecommendRequest):
            check.check_recommend(request, 1000, 100)
        else:
            check.check_similar(request, 100)

    def rank(self, requests: Sequence[RankRequest], stored: Stored) -> list[Answer]:
        self.batches.append(len(requests))
        if any(r.user == "boom" for r in requests):
            raise ZeroDivisionError("a fault of ours")
        for request in requests:
            if request.history:
                raise RequestError("unknown event type", where="history[0].event", remedy="use one of view")
        return [self._answer(r.items, s, r.user) for r, s in zip(requests, stored, strict=True)]

    def recommend(self, requests: Sequence[RecommendRequest], stored: Stored) -> list[Answer]:
        pairs = zip(requests, stored, strict=True)
        return [self._answer(["a", "bb", "ccc"][-r.k :], s, r.user) for r, s in pairs]

    def similar(self, requests: Sequence[SimilarRequest]) -> list[Answer]:
        for request in requests:
            self.check(request)
        return [self._answer([r.item + "x"], [], "u1") for r in requests]

    def _answer(self, items: Sequence[str], stored: Sequence[HistoryEvent], user: str) -> Answer:
        met = [event.item for event in stored]
        scored = [Scored(item, len(item) + 100.0 * met.count(item)) for item in items]
        return Answer(
            self.name, self.version, sorted(scored, key=lambda s: -s.score), cold_start=user == "new"
        )


def fake_ingress(
    patch: pytest.MonkeyPatch, store: Any, settings: Serve, key: str | None = None
) -> ingress.Ingress:
    """A replica over a FakeRanker, in this process."""
    patch.setattr(ingress.Ranker, "open", lambda *_, **__: FakeRanker())
    # Serve's batching reads the limit of its deployment.
    context = SimpleNamespace(
        replica_id=SimpleNamespace(unique_id="r1"),
        _deployment_config=SimpleNamespace(max_ongoing_requests=1000),
    )
    patch.setattr(ingress.serve, "get_replica_context", lambda: context)
    return ingress.Ingress("bundle", str(store), settings, key_digest(key) if key else None)


def transport(replica: ingress.Ingress) -> httpx.ASGITransport:
    """Carries httpx's requests to the replica."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        response = await replica(Request(scope, receive))
        await response(scope, receive, send)

    return httpx.ASGITransport(application)
