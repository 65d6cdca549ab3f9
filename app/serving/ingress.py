"""The replica: one hop from HAProxy to the ranker. It parses, batches, scores and encodes.

A plain `__call__` instead of a web framework, because that answers twice as many requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.bundle.requests import (
    Accepted,
    Answer,
    FeedbackRequest,
    HistoryEvent,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from app.bundle.runtime import Ranker
from app.errors import RequestError
from app.recipe import Serve
from app.serving import metrics, pages
from app.serving.checks import check_feedback
from app.serving.guard import JSON, check_content, check_key, problem_response, read_body, request_id
from app.serving.problems import Problem, from_decoding, from_ranker
from app.serving.store import SqliteStore

RECENT = 200  # stored events handed to the ranker, which keeps as many as its history is long
_log = logging.getLogger("ray.serve")
Body = TypeVar("Body", RankRequest, RecommendRequest, SimilarRequest, FeedbackRequest)
Scorer = Callable[[list[Any], list[list[HistoryEvent]]], list[Answer]]
Handler = Callable[[Request], Awaitable[Response]]


class Ingress:
    """Answers HTTP requests over a bundle; see design.md for the calls.

    Args:
        bundle: absolute path of the bundle.
        store: folder of the feedback log.
        settings: the recipe's [serve] section.
        key: digest of the API key; None asks for no key.
    """

    def __init__(self, bundle: str, store: str, settings: Serve, key: bytes | None) -> None:
        self.settings, self.key = settings, key
        self.ranker = Ranker.open(Path(bundle), max_candidates=settings.max_candidates, max_k=settings.max_k)
        self.store = SqliteStore(Path(store))
        replica = serve.get_replica_context().replica_id.unique_id
        self.metrics = metrics.Metrics(replica, self.ranker.name, self.ranker.version)
        self.held = 0
        self.encode = msgspec.json.Encoder().encode
        # Decoders do not pickle, so they are made here.
        self.decoders = {
            kind: msgspec.json.Decoder(kind)
            for kind in (RankRequest, RecommendRequest, SimilarRequest, FeedbackRequest)
        }
        for batched in (self._rank_batch, self._recommend_batch):
            batched.set_max_batch_size(settings.max_batch_size)  # type: ignore[union-attr]
        self.routes: dict[str, tuple[str, Handler, bool]] = {  # path: method, handler, needs the key
            "/v1/rank": ("POST", self._rank, True),
            "/v1/recommend": ("POST", self._recommend, True),
            "/v1/similar": ("POST", self._similar, True),
            "/v1/feedback": ("POST", self._feedback, True),
            "/v2/health/live": ("GET", self._live, False),
            "/v2/health/ready": ("GET", self._ready, False),
            f"/v2/models/{self.ranker.name}": ("GET", self._model, True),
            "/metrics": ("GET", self._metrics, True),
            "/openapi.json": ("GET", self._openapi, False),
            "/docs": ("GET", self._docs, False),
            "/": ("GET", self._page, False),
        }

    async def __call__(self, request: Request) -> Response:
        """Answer one request; every error is a problem document."""
        start = time.perf_counter()
        path = request.url.path
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                response = await self._route(path, request)
        except Problem as problem:
            response = problem_response(problem, request)
        except RequestError as error:
            response = problem_response(from_ranker(error), request)
        except TimeoutError:
            text = f"not answered within {self.settings.request_timeout_s:g} s; try again"
            response = problem_response(Problem(503, text, headers={"Retry-After": "1"}), request)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception:
            _log.exception("request %s failed", request_id(request))
            text = "the service failed; its log tells more under the request id"
            response = problem_response(Problem(500, text), request)
        known = path if path in self.routes else "other"
        self.metrics.answered(known, response.status_code, time.perf_counter() - start)
        return response

    def check_health(self) -> None:
        """Serve asks this regularly; a replica that raises is replaced."""
        self.store.recent("", 1)

    async def _route(self, path: str, request: Request) -> Response:
        if path not in self.routes:
            raise Problem(404, "no such path; /docs lists all calls")
        method, handler, guarded = self.routes[path]
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            raise Problem(
                405, f"use {method}", headers={"Allow": method if method == "POST" else "GET, HEAD"}
            )
        if guarded and self.key is not None:
            check_key(request, self.key)
        if method == "GET":
            return await handler(request)
        return await self._admit(handler, request)

    async def _admit(self, handler: Handler, request: Request) -> Response:
        """Hold a bounded number of requests; refuse the rest at once."""
        if self.held >= self.settings.max_ongoing_requests + self.settings.max_queued_requests:
            raise Problem(429, "over capacity; wait as Retry-After says", headers={"Retry-After": "1"})
        self.held += 1
        try:
            return await handler(request)
        finally:
            self.held -= 1

    async def _rank(self, request: Request) -> Response:
        body = await self._body(request, RankRequest)
        self.ranker.check(body)
        return self._answer(await self._rank_batch(body))

    async def _recommend(self, request: Request) -> Response:
        body = await self._body(request, RecommendRequest)
        self.ranker.check(body)
        return self._answer(await self._recommend_batch(body))

    async def _similar(self, request: Request) -> Response:
        body = await self._body(request, SimilarRequest)
        return self._answer(self.ranker.similar([body])[0])

    async def _feedback(self, request: Request) -> Response:
        body = await self._body(request, FeedbackRequest)
        check_feedback(body, self.settings)
        await asyncio.to_thread(self.store.append, body.events)  # waits for the disk
        self.metrics.events += len(body.events)
        return self._json(Accepted(len(body.events)), 202)

    # Without a waiting window a batch is what arrived while the last one was scored. An item
    # of the result may be an exception, so that one bad request spoils no other.
    @serve.batch(batch_wait_timeout_s=0)
    async def _rank_batch(self, requests: list[RankRequest]) -> list[Answer | RequestError]:
        return self._score("/v1/rank", self.ranker.rank, requests)

    @serve.batch(batch_wait_timeout_s=0)
    async def _recommend_batch(self, requests: list[RecommendRequest]) -> list[Answer | RequestError]:
        return self._score("/v1/recommend", self.ranker.recommend, requests)

    def _score(self, route: str, score: Scorer, requests: list[Any]) -> list[Answer | RequestError]:
        self.metrics.batches[route].observe(len(requests))
        stored = [self.store.recent(request.user, RECENT) for request in requests]
        try:
            return list(score(requests, stored))
        except RequestError:
            return [_score_alone(score, *pair) for pair in zip(requests, stored, strict=True)]

    def _answer(self, answer: Answer | RequestError) -> Response:
        if isinstance(answer, RequestError):
            raise answer
        self.metrics.cold_starts += answer.cold_start
        return self._json(answer)

    def _json(self, content: Any, status: int = 200) -> Response:
        return Response(self.encode(content), status, media_type=JSON)

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        check_content(request)
        content = await read_body(request, self.settings.max_body_bytes)
        try:
            return self.decoders[kind].decode(content)  # type: ignore[return-value]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise from_decoding(error) from None

    async def _live(self, request: Request) -> Response:
        return self._json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return self._json({"ready": True, "model": self.ranker.name, "version": self.ranker.version})

    async def _model(self, request: Request) -> Response:
        return self._json(
            {
                "name": self.ranker.name,
                "versions": [self.ranker.version],
                "platform": "rayrec",
                "inputs": [],
                "outputs": [],
                "figures": self.ranker.figures,
            }
        )

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(self.held), media_type=metrics.CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return Response(pages.openapi(self.settings), media_type=JSON)

    async def _docs(self, request: Request) -> Response:
        return Response(pages.docs(self.settings), media_type="text/html; charset=utf-8")

    async def _page(self, request: Request) -> Response:
        return Response(pages.HOME, media_type="text/html; charset=utf-8")


def _score_alone(score: Scorer, request: Any, stored: list[HistoryEvent]) -> Answer | RequestError:
    try:
        return score([request], [stored])[0]
    except RequestError as error:
        return error
