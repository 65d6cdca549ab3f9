"""The usual way of a request, through Serve: to a page, a refusal, or a call that is not on the hot path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.bundle.runtime import Ranker
from app.recipe import Serve
from app.serving import openapi, pages
from app.serving.feedback import new_items
from app.serving.feedback.user_events import UserEventCache
from app.serving.http.calls import HTML, JSON, MODELS, Endpoint, Live, ModelReady, Ready
from app.serving.http.guard import check_content, check_key, path_id, read_body, request_id, response_of
from app.serving.http.problems import Problem, from_error
from app.serving.http.protocol import Reply
from app.serving.metrics import CONTENT_TYPE, Metrics
from app.serving.scoring.bulk import Bulk
from app.serving.scoring.example import example_of
from app.serving.scoring.registry import ModelRegistry, describe, unknown
from app.serving.versions.traffic_split import TrafficSplit

Respond = Callable[[Request], Awaitable[Response]]


class Service(Protocol):
    """What a replica gives to its routes."""

    settings: Serve
    endpoints: tuple[Endpoint[Any], ...]
    keys: Mapping[str, bytes | None]  # digest of each kind of key; None asks for none
    metrics: Metrics
    user_events: UserEventCache
    items: new_items.StoredItems
    models: ModelRegistry
    bulk: Bulk

    @property
    def traffic_split(self) -> TrafficSplit:
        """The versions of the main model."""

    @property
    def ranker(self) -> Ranker:
        """Of the version of most users."""

    def handle(self, path: str, body: bytes, request_id: str, reply: Reply) -> None:
        """Answer a hot call; see CallHandler."""

    async def metrics_text(self) -> str:
        """The metrics of all replicas."""


class _Route(NamedTuple):
    """How requests to one path are answered."""

    endpoint: Endpoint[Any]
    label: str  # in metrics
    respond: Respond


class Routes:
    """Answers requests for a replica; every error is a problem document.

    Args:
        service: the replica whose calls, models and figures these are.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.settings = service, service.settings
        self._models = service.ranker.name, *service.models.models
        self.routes: dict[str, list[_Route]] = {}  # by path, for each of its methods
        self._with_id: dict[str, list[_Route]] = {}  # of paths that end in an id, by what is before it
        for endpoint in service.endpoints:
            routes = self.routes if endpoint.route == endpoint.path else self._with_id
            for path, model in endpoint.paths(self._models[0], self._models[1:]):
                label = path.removesuffix("{id}")
                responder = self._responder(endpoint, model, label)
                routes.setdefault(label, []).append(_Route(endpoint, label, responder))

    def _responder(self, endpoint: Endpoint[Any], model: str, label: str) -> Respond:
        """How requests for an endpoint, and for a model where it is about one, are answered."""
        if endpoint.hot:
            return self._call
        if endpoint.query is not None:
            return partial(self._read, label, endpoint.route != endpoint.path)
        respond: Callable[..., Awaitable[Response]] = getattr(self, str(endpoint.handler))
        return partial(respond, model) if "{name}" in endpoint.path else respond

    async def answer(self, request: Request) -> Response:
        """Answer one request, whatever it is."""
        path = request.url.path
        routes = self._find(path)
        try:
            return await self._answer(path, routes, request)
        except ClientDisconnect:
            return Response(status_code=499)
        except TimeoutError:
            text = f"not answered within {self.settings.request_timeout_s:g} s; try again"
            problem = Problem(503, text, headers={"Retry-After": "1"})
        except Exception as error:
            problem = from_error(error, request_id(request))
        self.service.metrics.answered(routes[0].label if routes else "other", problem.status, 0.0)
        return response_of(problem, request)

    def _find(self, path: str) -> list[_Route]:
        """The routes of a path, one for each of its methods; none where there is no such path."""
        routes = self.routes.get(path)
        if routes is None:
            routes = next((some for label, some in self._with_id.items() if path.startswith(label)), [])
        return routes

    async def _answer(self, path: str, routes: list[_Route], request: Request) -> Response:
        if not routes:
            if not path.startswith((MODELS, "/v2/models/")):
                raise Problem(404, "no such path; /docs lists all calls")
            self._check_key(request, "api")
            raise unknown(self._models)
        route = _of_method(request, routes)
        self._check_key(request, route.endpoint.key)
        if route.endpoint.hot or route.endpoint.streamed or route.endpoint.query is not None:
            return await route.respond(request)  # which counts its answers
        start = time.perf_counter()
        async with asyncio.timeout(self.settings.request_timeout_s):
            response = await route.respond(request)
        self.service.metrics.answered(route.label, response.status_code, time.perf_counter() - start)
        return response

    def _check_key(self, request: Request, kind: str) -> None:
        digest = self.service.keys[kind]
        if digest is not None:
            check_key(request, digest)

    async def _call(self, request: Request) -> Response:
        """Answer a hot call as if it had been read by the server's protocol."""
        check_content(request)
        body = await read_body(request, self.settings.max_body_bytes)
        return await self._handle(request.url.path, body, request)

    async def _read(self, label: str, has_id: bool, request: Request) -> Response:
        """Answer a call that has an id or query parameters instead of a body."""
        query: dict[str, str | list[str]] = {}
        for name in request.query_params:
            values = request.query_params.getlist(name)
            query[name] = [value for value in values if value] if name == "columns" else values[0]
            if name != "columns" and len(values) > 1:
                query[name] = values  # which is refused with the name of the field
        if has_id:
            query["id"] = path_id(request, label)
        return await self._handle(label, msgspec.json.encode(query), request)

    async def _handle(self, path: str, body: bytes, request: Request) -> Response:
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def reply(status: int, content: bytes, headers: Mapping[str, str]) -> None:
            if not answer.done():
                answer.set_result(Response(content, status, dict(headers)))

        self.service.handle(path, body, request_id(request), reply)
        async with asyncio.timeout(self.settings.request_timeout_s):
            return await answer

    async def batch_rank(self, request: Request) -> Response:
        """Rank or recommend for many, line by line."""
        return self.service.bulk.response(request)

    async def put_item(self, request: Request) -> Response:
        """Store a new or changed item; from its answer on every replica's next batch knows it."""
        service = self.service
        answer = await new_items.put(request, service.items, service.ranker, self.settings.max_body_bytes)
        await service.user_events.caught_up()
        return _json(answer)

    async def live(self, request: Request) -> Response:
        """Say that the process answers."""
        return _json(Live(True))

    async def ready(self, request: Request) -> Response:
        """Name the main model and its version."""
        ranker = self.service.ranker
        return _json(Ready(True, ranker.name, ranker.version))

    async def model_ready(self, name: str, request: Request) -> Response:
        """Say whether calls of a model are answered."""
        models = self.service.models
        state = models.readiness(name) if name in models.models else ModelReady(name, True, "loaded")
        return _json(state)

    async def model(self, name: str, request: Request) -> Response:
        """Describe a model by name."""
        if name in self.service.models.models:
            return _json(self.service.models.description(name))
        return _json(describe(name, self.service.traffic_split.served(), "loaded"))

    async def metrics(self, request: Request) -> Response:
        """Show the metrics of all replicas."""
        return Response(await self.service.metrics_text(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """Describe all calls for machines."""
        return Response(self._document(request), media_type=JSON)

    async def docs(self, request: Request) -> Response:
        """Describe all calls for people."""
        address = f"{self.settings.host}:{self.settings.port}"
        return _page(pages.docs(self._document(request), address), pages.DOCS_POLICY)

    async def home(self, request: Request) -> Response:
        """Show a page to try the calls."""
        return _page(pages.HOME, pages.HOME_POLICY)

    def _document(self, request: Request) -> bytes:
        """The OpenAPI document; ids of the model are for those alone who may call it."""
        service, ranker = self.service, self.service.ranker
        try:
            self._check_key(request, "api")
            example = example_of(ranker)
        except Problem:
            example = openapi.PLACEHOLDERS
        return openapi.document(self.settings, service.endpoints, ranker.name, example)


def _page(text: str, policy: str) -> Response:
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return Response(text, media_type=HTML, headers=headers)


def _of_method(request: Request, routes: list[_Route]) -> _Route:
    """The route that takes the request's method, of those of its path."""
    by_method: dict[str, _Route] = {route.endpoint.method: route for route in routes}
    route = by_method.get("GET" if request.method == "HEAD" else request.method)
    if route is None:
        allowed = sorted([*by_method, *(["HEAD"] if "GET" in by_method else [])])
        raise Problem(405, f"use {' or '.join(by_method)}", headers={"Allow": ", ".join(allowed)})
    return route


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
