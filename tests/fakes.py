"""A ranker of known answers, and the replica's HTTP without Ray: for tests of serving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn.config
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from app.bundle.request import validation
from app.bundle.request.requests import Answer, RankRequest, RecommendRequest, Scored, SimilarRequest
from app.bundle.request.seen import SeenItems
from app.errors import RequestError
from app.events import HistoryEvent
from app.recipe import Serve
from app.serving import replica as module
from app.serving.http.guard import key_digest


@dataclass
class Asking:
    """A request, and what is stored of its user."""

    request: RankRequest | RecommendRequest
    stored: Sequence[HistoryEvent]
    deadline: float = math.inf

    @property
    def items(self) -> list[str]:
        if isinstance(self.request, RankRequest):
            return self.request.items
        return ["a", "bb", "ccc"][-self.request.k :]


class FakeRanker:
    """Scores an item by the length of its id, plus 100 for each stored event on it."""

    name, version, figures = "fake", "v1", {"ndcg@10": 0.5}

    users = items = ("", "a", "bb", "ccc")  # by row
    artifact, catalogue_version = SimpleNamespace(digest="d1"), 0

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.put: dict[str, Any] = {}

    def check_item(self, name: str, columns: dict[str, Any]) -> None:
        validation.check_ids([name], "item")
        if columns.keys() - {"kind", "price"}:
            raise RequestError("no such column", where="columns.colour", remedy="the columns are kind, price")

    def has_room_for(self, name: str) -> bool:
        return name in self.put or len(self.put) < 3

    def basis_of(self, name: str) -> str:
        return "training" if self.trained_on(name) else "content"

    def trained_on(self, name: str) -> bool:
        return name in self.items

    def put_items(self, items: dict[str, Any]) -> int:
        self.put |= items
        return 0

    def check(self, request: RankRequest | RecommendRequest | SimilarRequest) -> None:
        if isinstance(request, RankRequest):
            validation.check_rank(request, 1000)
        elif isinstance(request, RecommendRequest):
            validation.check_recommend(request, 1000, 100)
        else:
            validation.check_similar(request, 100)

    def read(
        self,
        request: RankRequest | RecommendRequest,
        stored: Sequence[HistoryEvent] | None = None,
        arrived: float | None = None,
        seen: SeenItems | None = None,
    ) -> Asking:
        self.check(request)
        if request.history:
            raise RequestError("unknown event type", where="history[0].event", remedy="use one of view")
        return Asking(request, stored or [])

    def answer(self, questions: Sequence[Asking]) -> list[Answer]:
        self.batches.append(len(questions))
        if any(question.request.user == "boom" for question in questions):
            raise ZeroDivisionError("a fault of ours")
        return [self._answer(one.items, one.stored, one.request.user) for one in questions]

    def retrieval_s(self) -> float:
        return 0.25

    def similar(self, requests: Sequence[SimilarRequest]) -> list[Answer]:
        for request in requests:
            self.check(request)
        return [self._answer([r.item + "x"], [], "u1") for r in requests]

    def _answer(self, items: Sequence[str], stored: Sequence[HistoryEvent], user: str) -> Answer:
        seen = [event.item for event in stored]
        scored = [Scored(item, len(item) + 100.0 * seen.count(item)) for item in items]
        return Answer(
            self.name, self.version, sorted(scored, key=lambda s: -s.score), cold_start=user == "new"
        )


def fake_replica(
    patch: pytest.MonkeyPatch, store: Any, settings: Serve, key: str | None = None
) -> module.Replica:
    """A replica over a FakeRanker, in this process."""
    patch.setattr(module.Ranker, "open", lambda *_, **__: FakeRanker())
    patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")  # a replica sets it: put back afterwards
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    patch.setattr(module.serve, "get_replica_context", lambda: context)
    return module.Replica("bundle", str(store), settings, key_digest(key) if key else None)


def sample(text: str, name: str, **labels: str) -> float:
    """The value of a scrape's one sample of this name that has these labels and perhaps others."""
    (value,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return float(value)


def transport(replica: module.Replica) -> httpx.ASGITransport:
    """Carries httpx's requests to the replica."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        response = await replica(Request(scope, receive))
        await response(scope, receive, send)

    return httpx.ASGITransport(application)
