"""The replica: one hop from HAProxy to the ranker. It parses, batches, scores and encodes.

A call comes in at `take`, from the wire or from `__call__`, and is answered through its
`reply`. A plain `__call__` instead of a web framework, because that answers twice as many
requests.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from app.bundle.ranking.user_vectors import UserVectorCache
from app.bundle.request.limits import Limits
from app.bundle.request.requests import (
    Accepted,
    FeedbackRequest,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from app.bundle.runtime import Ranker
from app.events import Event
from app.recipe import Serve
from app.serving import metrics
from app.serving.autoscaling import HELD, Load
from app.serving.bundle_cache import copy_of
from app.serving.feedback import new_items
from app.serving.feedback.group_commit import Full, GroupCommitWriter
from app.serving.feedback.user_events import UserEventCache
from app.serving.feedback.validation import check_feedback
from app.serving.http import protocol
from app.serving.http.guard import key_holds
from app.serving.http.problems import Problem
from app.serving.rollout.replica_agent import ReplicaAgent
from app.serving.rollout.state_dir import StateDir
from app.serving.routes import Routes
from app.serving.scoring import bulk, registry
from app.serving.scoring.scoring import Call
from app.stores.open import open_store

CALLS: dict[str, type] = {
    "/v1/rank": RankRequest,
    "/v1/recommend": RecommendRequest,
    "/v1/similar": SimilarRequest,
    "/v1/feedback": FeedbackRequest,
}


class Replica:
    """Answers HTTP requests over a bundle; see design.md for the calls.

    Args:
        bundle: absolute path of the bundle.
        store: folder of the feedback log, or the URL of a Redis.
        settings: the recipe's [serve] section.
        key: digest of the API key; None asks for no key.
        folder: what the service keeps on this machine, with its board; None: it has none, and
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
        self.settings, self.key = settings, key
        self.admin, self.store = admin or key, open_store(store)
        self.items = new_items.StoredItems(self.store)
        replica = serve.get_replica_context().replica_id.unique_id
        board = StateDir(Path(folder)) if folder else None
        self.states = UserVectorCache(int(settings.states_mb * 2**20), settings.cache_s)
        self.watch = ReplicaAgent(board, replica, bundle, self._open, settings.rollout.shadow_every)
        self.variants = self.watch.variants
        self.metrics = metrics.Metrics(replica)
        self._watching: asyncio.Task[None] | None = None
        self.load = Load()
        self.held, self.capacity = 0, settings.max_ongoing_requests + settings.max_queued_requests
        # Decoders do not pickle, so they are made here.
        self.decoders: dict[str, msgspec.json.Decoder[Any]] = {
            path: msgspec.json.Decoder(kind) for path, kind in CALLS.items()
        }
        self.writer = GroupCommitWriter(self.store, self.capacity)
        self.recent = UserEventCache(self.store, items=self.items)
        shelf = registry.ScoringFactory(self.recent, self.metrics, settings, ThreadPoolExecutor(1))
        self.scoring = {
            path: shelf.scoring(self.variants, path, long=path == "/v1/recommend")
            for path in ("/v1/rank", "/v1/recommend")
        }
        known = self.scoring["/v1/recommend"].known
        assert known is not None  # long calls are worth keeping
        self.metrics.caches = {"recommendations": known, "users": self.states, "events": self.recent}
        self.bulk = bulk.Bulk(self.scoring, self.metrics, settings)
        self.models = registry.ModelRegistry(settings, self._open, shelf)
        self._name_models()
        self.routes = Routes(self)
        self.paths: Collection[bytes] = frozenset(path.encode() for path in self.decoders)
        self.streams: Collection[bytes] = frozenset((bulk.PATH.encode(),))
        protocol.install(self, settings.max_body_bytes)
        # What is here now stays: the collector need not look at it again while requests wait.
        gc.collect()
        gc.freeze()

    def _name_models(self) -> None:
        """Every model has its own paths; the main one has them beside the plain ones."""
        registry.check_names(self.settings, self.ranker.name)
        for name in (self.ranker.name, *self.models.named):
            for kind, body in registry.KINDS.items():
                self.decoders[registry.path_of(name, kind)] = msgspec.json.Decoder(body)
        for kind in ("rank", "recommend"):
            self.scoring[registry.path_of(self.ranker.name, kind)] = self.scoring[f"/v1/{kind}"]
        self._main_similar = registry.path_of(self.ranker.name, "similar")

    def _open(self, bundle: str) -> Ranker:
        settings = self.settings
        copy = copy_of(bundle, settings)
        ranker = Ranker.open(
            copy.path,
            limits=Limits(
                settings.max_candidates, settings.max_k, settings.budget_ms, settings.max_new_items
            ),
            threads=settings.cpus,
            user_vectors=self.states,
        )
        copy.stay_for(ranker)
        self.items.introduce(ranker)
        return ranker

    @property
    def ranker(self) -> Ranker:
        """Of the version that most users meet."""
        return self.variants.main.ranker

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls this once the replica is made: from now on it watches the board."""
        if self._watching is None:
            self._watching = asyncio.create_task(self.watch.run(self.described))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What app.serving.autoscaling goes by: Serve itself does not see calls that come by the wire."""
        return {HELD: max(self.load.take(), self.held) + self.bulk.streams}

    async def __call__(self, request: Request) -> Response:
        """Answer one request that did not come by the wire."""
        return await self.routes.answer(request)

    def admits(self, headers: protocol.Headers) -> bool:
        """See CallHandler: one without the key goes the usual way, and is refused there."""
        return self.key is None or key_holds(
            headers.get(b"authorization", b""), headers.get(b"x-api-key", b""), self.key
        )

    def take(self, path: str, body: bytes, request_id: str, reply: protocol.Reply) -> None:
        """See CallHandler: hold a bounded number of calls, refuse the rest at once."""
        call = Call(path, request_id, reply, self._closed, body)
        self.held += 1
        try:
            if self.held > self.capacity:
                raise Problem(429, "over capacity; wait as Retry-After says", headers={"Retry-After": "1"})
            content = self.decoders[path].decode(body)
            self.metrics.parse_s += time.perf_counter() - call.started
            self._start(call, content)
        except Exception as error:
            call.fail(error)

    def _closed(self, call: Call, status: int) -> None:
        self.held -= 1
        seconds = time.perf_counter() - call.started
        self.load.add(seconds)
        self.metrics.answered(call.path, status, seconds)
        if call.variant is not None:
            call.variant.stats.answered(seconds, status >= 500)

    def _start(self, call: Call, content: Any) -> None:
        scoring = self.scoring.get(call.path)
        if scoring is not None:
            scoring.add(call, content)
        elif isinstance(content, FeedbackRequest):
            self._feedback(call, content)
        elif call.path in ("/v1/similar", self._main_similar):
            self.recent.refresh()  # it may be about a new item
            call.answer(self.variants.main.ranker.similar([content])[0])
        else:
            self.models.take(call, content)

    def _feedback(self, call: Call, content: FeedbackRequest) -> None:
        check_feedback(content, self.settings)
        loop = asyncio.get_running_loop()
        count = len(content.events)

        def written(error: Exception | None) -> None:  # in the writer's thread
            loop.call_soon_threadsafe(self._written, call, count, error)

        try:
            self.writer.put([self._met(event) for event in content.events], written)
        except Full:
            raise Problem(429, "too much feedback waits for the disk", headers={"Retry-After": "1"}) from None

    def _met(self, event: Event) -> Event:
        """The event with the version that its user meets, unless the caller knows better."""
        if event.variant:
            return event
        return msgspec.structs.replace(event, variant=self.variants.of(event.user).label)

    def _written(self, call: Call, count: int, error: Exception | None) -> None:
        if error is not None:
            call.fail(error)
            return
        self.metrics.events += count
        call.answer(Accepted(count), 202)

    def described(self) -> tuple[float, str]:
        """Calls held, and the text of the metrics."""
        served = [
            metrics.Served(one.ranker.name, one.label, self.variants.share_of(one.digest), one.stats)
            for one in self.variants.served()
        ]
        served += self.models.served()
        return self.load.mean, self.metrics.render(self.held, served)
