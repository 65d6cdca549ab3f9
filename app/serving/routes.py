"""The usual way of a request, through Serve: to a page, a refusal, or a call that missed the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.serving import metrics, openapi
from app.serving.feedback import new_items
from app.serving.http.guard import JSON, check_content, check_key, read_body, request_id, response_of
from app.serving.http.problems import Problem, from_error
from app.serving.scoring import bulk, registry

if TYPE_CHECKING:
    from app.serving.replica import Replica

Handler = Callable[[Request], Awaitable[Response]]


class Routes:
    """Answers requests for a replica; every error is a problem document.

    Args:
        replica: whose calls, models and figures these are.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica, self.settings = replica, replica.settings
        self._names = replica.ranker.name, *replica.models.named
        self.pages: dict[str, tuple[Handler, bool]] = {  # path: handler, needs the key
            "/v2/health/live": (self._live, False),
            "/v2/health/ready": (self._ready, False),
            "/metrics": (self._metrics, True),
            "/openapi.json": (self._openapi, False),
            "/docs": (self._docs, False),
            "/": (self._page, False),
        }
        for name in self._names:
            self.pages[f"/v2/models/{name}"] = (partial(self._model, name), True)
            self.pages[f"/v2/models/{name}/ready"] = (partial(self._model_ready, name), True)

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._route(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except TimeoutError:
            text = f"not answered within {self.settings.request_timeout_s:g} s; try again"
            problem = Problem(503, text, headers={"Retry-After": "1"})
        except Exception as error:
            problem = from_error(error, request_id(request))
        self.replica.metrics.answered(self._route_of(request.url.path), problem.status, 0.0)
        return response_of(problem, request)

    def _route_of(self, path: str) -> str:
        """What metrics call a path: one of a fixed set."""
        if path.startswith(new_items.PREFIX):
            return new_items.PREFIX
        known = path in self.replica.decoders or path in self.pages or path == bulk.PATH
        return path if known else "other"

    async def _route(self, request: Request) -> Response:
        path, replica = request.url.path, self.replica
        if path in replica.decoders or path == bulk.PATH:
            _check_method(request, "POST")
            self._check_key(request)
            return (
                await self._call(path, request)
                if path in replica.decoders
                else replica.bulk.response(request)
            )
        if path.startswith(new_items.PREFIX):
            return await self._item(request)
        if path not in self.pages:
            if path.startswith((registry.PREFIX, "/v2/models/")):
                self._check_key(request)
                raise registry.unknown(self._names)
            raise Problem(404, "no such path; /docs lists all calls")
        handler, guarded = self.pages[path]
        _check_method(request, "GET")
        if guarded:
            self._check_key(request)
        start = time.perf_counter()
        async with asyncio.timeout(self.settings.request_timeout_s):
            response = await handler(request)
        replica.metrics.answered(path, response.status_code, time.perf_counter() - start)
        return response

    def _check_key(self, request: Request) -> None:
        if self.replica.key is not None:
            check_key(request, self.replica.key)

    async def _call(self, path: str, request: Request) -> Response:
        """A call as the wire would have handed it over."""
        check_content(request)
        body = await read_body(request, self.settings.max_body_bytes)
        found: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def reply(status: int, content: bytes, headers: Mapping[str, str]) -> None:
            if not found.done():
                found.set_result(Response(content, status, dict(headers)))

        self.replica.take(path, body, request_id(request), reply)
        async with asyncio.timeout(self.settings.request_timeout_s):
            return await found

    async def _item(self, request: Request) -> Response:
        """Take in a new or changed item; from its answer on every replica's next batch knows it."""
        _check_method(request, "PUT")
        replica = self.replica
        if replica.admin is not None:
            check_key(request, replica.admin)
        start = time.perf_counter()
        answer = await new_items.put(request, replica.items, replica.ranker, self.settings.max_body_bytes)
        replica.recent.refresh()
        replica.metrics.answered(new_items.PREFIX, 200, time.perf_counter() - start)
        return _json(answer)

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        ranker = self.replica.ranker
        return _json({"ready": True, "model": ranker.name, "version": ranker.version})

    async def _model_ready(self, name: str, request: Request) -> Response:
        if name in self.replica.models.named:
            return _json(self.replica.models.readiness(name))
        return _json({"name": name, "ready": True, "state": "loaded"})

    async def _model(self, name: str, request: Request) -> Response:
        if name in self.replica.models.named:
            return _json(self.replica.models.described(name))
        variants = self.replica.variants.served()
        return _json(registry.described(name, variants, "loaded"))

    async def _metrics(self, request: Request) -> Response:
        others = await asyncio.to_thread(self.replica.watch.others)
        text = metrics.together([self.replica.described()[1], *others])
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return Response(openapi.openapi(self.settings), media_type=JSON)

    async def _docs(self, request: Request) -> Response:
        return Response(openapi.docs(self.settings), media_type="text/html; charset=utf-8")

    async def _page(self, request: Request) -> Response:
        return Response(openapi.HOME, media_type="text/html; charset=utf-8")


def _check_method(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        allowed = "GET, HEAD" if method == "GET" else method
        raise Problem(405, f"use {method}", headers={"Allow": allowed})


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
