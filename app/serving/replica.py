"""The replica: one hop from HAProxy to the ranker. It parses, batches, scores and encodes.

A hot call comes in at `handle`, from the server's protocol or from `__call__`, and is answered
through its `reply`. A plain `__call__` instead of a web framework, because that answers twice as
many requests.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request.decoding import decoder
from app.bundle.request.limits import Limits
from app.bundle.request.requests import Accepted, FeedbackRequest
from app.bundle.runtime import Ranker
from app.events import Event
from app.recipe import Serve
from app.serving.autoscaling import ONGOING, Load
from app.serving.bundle_cache import open_copy
from app.serving.feedback.group_commit import Full, GroupCommitWriter
from app.serving.feedback.new_items import StoredItems
from app.serving.feedback.retention import Retention
from app.serving.feedback.user_events import UserEventCache
from app.serving.feedback.validation import accept, check_feedback
from app.serving.http import calls, protocol
from app.serving.http.guard import key_holds
from app.serving.http.problems import Problem
from app.serving.metrics import Metrics, Served, merge
from app.serving.rollout.replica_agent import ReplicaAgent
from app.serving.rollout.state_dir import StateDir
from app.serving.routes import Routes
from app.serving.scoring.bulk import Bulk
from app.serving.scoring.call import Call
from app.serving.scoring.factory import ScoringFactory, Start
from app.serving.scoring.registry import ModelRegistry, check_names
from app.stores.open import open_store


class Replica:
    """Answers HTTP requests over a bundle; app.serving.http.calls lists the calls.

    Args:
        bundle: absolute path of the bundle.
        store: folder of the feedback log, or the URL of a Redis.
        settings: the recipe's [serve] section.
        key: digest of the API key; None asks for no key.
        folder: what the service keeps on this machine, with its state; None: it has none, and
            serves the bundle alone.
        admin: digest of the key for calls that change what is served; None: the API key does.
    """

    def __init__(
        self,
        bundle: str,
        store: str,
        settings: Serve,
        key: bytes | None,
        folder: str | None = None,
        admin: bytes | None = None,
    ) -> None:
        self.settings, self.endpoints = settings, calls.CALLS
        self.keys: Mapping[str, bytes | None] = {"none": None, "api": key, "admin": admin or key}
        self.store = open_store(store)
        self.items = StoredItems(self.store)
        replica = serve.get_replica_context().replica_id.unique_id
        self.user_events = UserEventCache(self.store, items=self.items)
        state_dir = StateDir(Path(folder)) if folder else None
        self.user_vectors = UserVectorCache(int(settings.states_mb * 2**20), settings.cache_s)
        self.agent = ReplicaAgent(state_dir, replica, bundle, self._open, settings.rollout.shadow_every)
        self.traffic_split = self.agent.traffic_split
        self._following: asyncio.Task[None] | None = None
        self.metrics, self.load = Metrics(replica), Load()
        self.in_flight, self.capacity = 0, settings.max_ongoing_requests + settings.max_queued_requests
        self.writer = GroupCommitWriter(self.store, self.capacity)
        self.retention = Retention(self.store, settings.keep_days)
        self._build_calls()
        self.bulk = Bulk(self.scoring, self.metrics, settings)
        self.routes = Routes(self)
        protocol.install(self, settings.max_body_bytes)
        # What is here now stays: the collector need not look at it again while requests wait.
        gc.collect()
        gc.freeze()

    def _build_calls(self) -> None:
        """For every path of a hot call, or of one with a query, what decodes that and starts its answer."""
        settings, main, hot_paths = self.settings, self.ranker.name, set[bytes]()
        check_names(settings, main)
        factory = ScoringFactory(
            self.user_events, self.metrics, settings, ThreadPoolExecutor(1), self.endpoints
        )
        starts, self.scoring = factory.calls_of(self.traffic_split, lambda endpoint: endpoint.path)
        self.models = ModelRegistry(settings, self._open, factory)
        self._hot: dict[str, tuple[Callable[[bytes], Any], Start]] = {}
        for endpoint in self.endpoints:
            if endpoint.hot or endpoint.query is not None:
                decode = _decoder(endpoint)
                for path, model in endpoint.paths(main, list(settings.models)):
                    if model in self.models.models:
                        start: Start = partial(self.models.start, model, endpoint)
                    else:
                        start = starts[endpoint] if model else getattr(self, str(endpoint.handler))
                    self._hot[path.removesuffix("{id}")] = decode, start
                    hot_paths |= {path.encode()} if endpoint.hot else set()
        self.hot_paths: Collection[bytes] = frozenset(hot_paths)
        self.streamed_paths: Collection[bytes] = frozenset(
            endpoint.path.encode() for endpoint in self.endpoints if endpoint.streamed
        )
        recommendations = self.scoring[calls.RECOMMEND.path].cache
        assert recommendations is not None  # they take long
        self.metrics.caches = {
            "recommendations": recommendations.entries,
            "users": self.user_vectors,
            "events": self.user_events,
        }

    def _open(self, bundle: str) -> Ranker:
        settings = self.settings
        copy = open_copy(bundle, settings)
        limits = Limits(settings.max_candidates, settings.max_k, settings.budget_ms, settings.max_new_items)
        ranker = Ranker.open(
            copy.path,
            limits=limits,
            threads=settings.cpus,
            user_vectors=self.user_vectors,
            columns=settings.columns,
        )
        copy.keep_while(ranker)
        self.items.introduce(ranker)
        self.user_events.need(ranker.info.history)
        return ranker

    @property
    def ranker(self) -> Ranker:
        """Of the version of most users."""
        return self.traffic_split.main.ranker

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls this once the replica is ready: from now on it follows the desired state."""
        if self._following is None:
            self._following = asyncio.create_task(self.agent.run(self.described))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The load that app.serving.autoscaling scales by: Serve itself does not see hot calls."""
        return {ONGOING: max(self.load.take(), self.in_flight) + self.bulk.streams}

    async def __call__(self, request: Request) -> Response:
        """Answer one request that the server's protocol did not hand to `handle`."""
        return await self.routes.answer(request)

    def has_key(self, headers: protocol.Headers) -> bool:
        """See CallHandler: one without the key goes the usual way, and is refused there."""
        key = self.keys["api"]
        return key is None or key_holds(
            headers.get(b"authorization", b""), headers.get(b"x-api-key", b""), key
        )

    def handle(self, path: str, body: bytes, request_id: str, reply: protocol.Reply) -> None:
        """See CallHandler: answer a bounded number of calls at a time, refuse the rest at once."""
        call = Call(path, request_id, reply, self._on_answer, body)
        self.in_flight += 1
        try:
            if self.in_flight > self.capacity:
                raise Problem(429, "over capacity; wait as Retry-After says", headers={"Retry-After": "1"})
            decode, start = self._hot[path]
            content = decode(body)
            self.metrics.parse_s += time.perf_counter() - call.started
            start(call, content)
        except Exception as error:
            call.fail(error)

    def _on_answer(self, call: Call, status: int) -> None:
        self.in_flight -= 1
        seconds = time.perf_counter() - call.started
        self.load.add(seconds)
        self.metrics.answered(call.path, status, seconds)
        if call.variant is not None:
            call.variant.stats.answered(seconds, status >= 500)

    def store_feedback(self, call: Call, content: FeedbackRequest) -> None:
        """Answer a call for feedback, once its events are durable.

        Raises:
            Problem, RequestError: an event cannot be stored, or too many wait for the disk.
        """
        check_feedback(content, self.settings)
        loop = asyncio.get_running_loop()
        accepted = accept(content.events, self.ranker)

        def written(error: Exception | None) -> None:  # in the writer's thread
            loop.call_soon_threadsafe(self._written, call, accepted, error)

        try:
            self.writer.put([self._with_variant(event) for event in content.events], written)
        except Full:
            raise Problem(429, "too much feedback waits for the disk", headers={"Retry-After": "1"}) from None

    def _with_variant(self, event: Event) -> Event:
        """The event with the version that its user is assigned to, unless the caller named one."""
        if event.variant:
            return event
        return msgspec.structs.replace(event, variant=self.traffic_split.assign(event.user).label)

    def _written(self, call: Call, accepted: Accepted, error: Exception | None) -> None:
        if error is not None:
            call.fail(error)
            return
        self.metrics.stored(accepted)
        call.answer(accepted, calls.FEEDBACK.status)

    def described(self) -> tuple[float, str]:
        """Calls under way on average, and the text of the metrics."""
        split = self.traffic_split
        served = [
            Served(version.ranker.name, version.label, split.weight_of(version.digest), version.stats)
            for version in split.served()
        ]
        served += self.models.served()
        return self.load.mean, self.metrics.render(self.in_flight, served)

    async def metrics_text(self) -> str:
        """The metrics of all replicas; those of the others as they last reported them."""
        others = await asyncio.to_thread(self.agent.other_metrics)
        return merge([self.described()[1], *others])


def _decoder(endpoint: calls.Endpoint[Any]) -> Callable[[bytes], Any]:
    """What decodes a body or, from JSON, an id and query parameters, whose values are texts."""
    if endpoint.query is not None:
        return msgspec.json.Decoder(endpoint.query, strict=False).decode
    assert isinstance(endpoint.body, type)
    return decoder(endpoint.body)
