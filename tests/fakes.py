"""A ranker of known answers, and the replica's HTTP without Ray: for tests of serving."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn.config
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from app.bundle.request import validation
from app.bundle.request.requests import (
    Answer,
    ItemList,
    KnownItem,
    ListedItem,
    RankRequest,
    RecommendRequest,
    Scored,
    SimilarRequest,
)
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
    info = SimpleNamespace(events=["", "buy", "view"], default_event=2, history=50)

    histories = SimpleNamespace(recent_items=lambda row: [1] * (9 - row))

    @property
    def catalogue(self) -> Any:
        """What it knows of its items."""
        listed = [ListedItem(item) for item in self.items[1:]]
        return SimpleNamespace(
            popular=lambda query: ItemList(listed[: query.k], self.name, self.version),
            item=lambda name: KnownItem(name, True, True, 1, {"kind": "lamp"}, self.name, self.version),
        )

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

    def put_items(self, items: dict[str, Any], times: dict[str, float] | None = None) -> int:
        self.put |= items
        return 0

    def has_item(self, name: str) -> bool:
        return name in self.items or name in self.put

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
    return replica_of(patch, "bundle", store, settings, key)


def replica_of(
    patch: pytest.MonkeyPatch, bundle: Path | str, store: Any, settings: Serve, key: str | None = None
) -> module.Replica:
    """A replica over a bundle, in this process."""
    patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")  # a replica sets it: put back afterwards
    # A frozen replica would keep its files open until all tests of the process are done.
    patch.setattr(module.gc, "freeze", lambda: None)
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    patch.setattr(module.serve, "get_replica_context", lambda: context)
    replica = module.Replica(str(bundle), str(store), settings, key_digest(key) if key else None)
    _replicas.append(replica)
    return replica


_replicas: list[module.Replica] = []  # not closed yet


def close_replicas() -> None:
    """End the threads of all replicas that tests have made, and close their files.

    A replica of a service does so by the end of its process.
    """
    while _replicas:
        replica = _replicas.pop()
        replica.retention.close()
        replica.writer.close()
        replica.store.close()


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


class Conversation:
    """Calls of a replica, one after the other; its batching lives on one event loop, as in Serve.

    Args:
        replica: that answers.
    """

    def __init__(self, replica: module.Replica) -> None:
        self.replica, self._runner = replica, asyncio.Runner()

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport(self.replica), base_url="http://test") as http:
                return await http.request(method, path, **options)

        return self._runner.run(send())

    def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """The JSON that a path answers with this status."""
        return self._json(self("GET", path, **options), status)

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The JSON that a call answers with this status to a body."""
        return self._json(self("POST", path, json=body), status)

    def _json(self, answer: httpx.Response, status: int) -> Any:
        assert answer.status_code == status, answer.text
        return answer.json()

    def close(self) -> None:
        """End the event loop."""
        self._runner.close()
