"""The scoring of calls in batches."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import msgspec

from app.bundle.request.prepare import PreparedRequest
from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.retrieval.latency_budget import POPULAR
from app.events import HistoryEvent
from app.serving.feedback.user_events import Lookup, UserEventCache
from app.serving.metrics import Metrics
from app.serving.scoring.batching import MicroBatcher
from app.serving.scoring.call import Call
from app.serving.scoring.response_cache import ResponseCache
from app.serving.versions.traffic_split import TrafficSplit, Variant

ALL_ITEMS = 256  # candidates that a recommendation counts for, which scores every item
CACHED = "cached answer"  # of before the user's last events, or of a while ago
UNINFORMED = "without stored events: their store does not answer"
Request = RankRequest | RecommendRequest
_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("ray.serve")


@dataclass(slots=True, eq=False)
class _Entry:
    """A call that is scored, what its answer depends on, and the answer."""

    call: Call
    variant: Variant
    key: bytes
    catalogue_version: int  # when the request was read
    stored: list[HistoryEvent]
    prepared: PreparedRequest
    older: bytes | None = None  # an older answer, for a call without time
    answer: Answer | Exception | None = None
    content: bytes = b""  # the answer as JSON


@dataclass(slots=True)
class _Batch:
    entries: list[_Entry] = field(default_factory=list)
    by_key: dict[bytes, _Entry] = field(default_factory=dict)
    joined: list[tuple[Call, _Entry]] = field(default_factory=list)  # calls equal to one that is scored
    stages: dict[str, float] = field(default_factory=dict)  # seconds in each
    informed: bool = True  # of stored events


class Scoring:
    """Scores the calls of one path in batches. Equal calls of a batch are scored once.

    A call that comes while an equal one is being scored waits, as every call does, for the batch
    to end, and then finds its answer in the cache.

    Args:
        traffic_split: the versions of the model, to which users are assigned.
        user_events: the users' stored events.
        metrics: of the replica.
        path: of the calls.
        limit: candidates of a batch.
        executor: a thread for batches that take long; None: they are scored on the loop.
        cache: answers that may be given again; None: none is.
    """

    def __init__(
        self,
        traffic_split: TrafficSplit,
        user_events: UserEventCache,
        metrics: Metrics,
        path: str,
        limit: int,
        executor: Executor | None = None,
        cache: ResponseCache | None = None,
    ) -> None:
        self.traffic_split, self.user_events, self.metrics = traffic_split, user_events, metrics
        self.path, self.cache, self._retrieves = path, cache, executor is not None
        self._batcher: MicroBatcher[tuple[Call, Request], Lookup, _Batch] = MicroBatcher(
            self._look_up,
            self._begin,
            self._work,
            self._finish,
            _fail,
            cost=lambda waiting: cost_of(waiting[1]),
            limit=limit,
            executor=executor,
        )
        self._started = 0.0  # when the batch that is under way began
        metrics.queues[path] = self._batcher.queue

    def add(self, call: Call, request: Request) -> None:
        """Have a call scored with the next batch."""
        self._batcher.add((call, request))

    def _look_up(self, waiting: list[tuple[Call, Request]], then: Callable[[Lookup], None]) -> None:
        self._started = time.perf_counter()
        self.user_events.look_up({request.user for _, request in waiting}, then)

    def _begin(self, waiting: list[tuple[Call, Request]], lookup: Lookup) -> _Batch | None:
        batch = _Batch(informed=lookup.informed)
        for call, request in waiting:
            try:
                self._read(batch, lookup, call, request)
            except Exception as error:
                call.fail(error)
        stages = self.metrics.stages
        stages["parse"].observe(self.metrics.parse_s)
        self.metrics.parse_s = 0.0
        stages["features"].observe(time.perf_counter() - self._started)
        if not batch.entries:
            return None
        self.metrics.batches[self.path].observe(len(batch.entries))
        return batch

    def _read(self, batch: _Batch, lookup: Lookup, call: Call, request: Request) -> None:
        """Answer a call from the cache, join it to an equal one, or put it into the batch."""
        key, cache, user = call.body, self.cache, request.user
        if key and cache is not None:
            key = _encode(request)  # however it was written
        equal = batch.by_key.get(key)
        if equal is not None:
            call.variant = equal.variant
            batch.joined.append((call, equal))
            return
        stored = lookup.of(user)
        call.variant = variant = self.traffic_split.assign(user)
        catalogue_version = variant.ranker.catalogue_version
        if cache is not None and key:
            cached = cache.get(key, variant.digest, catalogue_version, stored)
            if cached is not None:
                self.traffic_split.record_exposure(user, variant)
                self.metrics.cold_starts += cached.cold
                call.answer_json(cached.content)
                return
        prepared = variant.ranker.read(request, stored, call.started, lookup.seen(user))
        entry = _Entry(call, variant, key, catalogue_version, stored, prepared)
        if cache is not None and key and prepared.deadline < math.inf:
            entry.older = cache.stale(key, variant.digest)
        if key:
            batch.by_key[key] = entry
        batch.entries.append(entry)

    def _work(self, batch: _Batch) -> None:
        start = time.perf_counter()
        by_variant = _by_variant(batch.entries)
        for variant, entries in by_variant.items():
            _answer(variant, entries)
        for entry in batch.entries:
            if entry.older is not None:
                entry.answer = _better(entry, entry.older)
            if not batch.informed:
                entry.answer = _uninformed(entry.answer)
        scored = time.perf_counter()
        for entry in batch.entries:
            if isinstance(entry.answer, Answer):
                entry.content = _encode(entry.answer)
        batch.stages = {"score": scored - start, "encode": time.perf_counter() - scored}
        if self._retrieves:
            retrieved = sum(variant.ranker.retrieval_s() for variant in by_variant)
            batch.stages |= {"retrieval": retrieved, "score": max(0.0, scored - start - retrieved)}

    def _finish(self, batch: _Batch, error: Exception | None) -> None:
        if error is not None:
            for call in (*(entry.call for entry in batch.entries), *(call for call, _ in batch.joined)):
                call.fail(error)
            return
        for stage, seconds in batch.stages.items():
            self.metrics.stages[stage].observe(seconds)
        self.metrics.joined += len(batch.joined)
        for entry in batch.entries:
            self._reply(entry.call, entry)
        for call, entry in batch.joined:
            self._reply(call, entry)
        for entry in batch.entries:
            if isinstance(entry.answer, Answer):
                self._learn(entry, entry.answer)

    def _reply(self, call: Call, entry: _Entry) -> None:
        answer = entry.answer
        if not isinstance(answer, Answer):
            call.fail(answer or RuntimeError("it was not scored"))
            return
        self.metrics.cold_starts += answer.cold_start
        if answer.degraded:
            self.metrics.degraded[answer.degraded] += 1
        call.answer_json(entry.content)

    def _learn(self, entry: _Entry, answer: Answer) -> None:
        """Cache an answer that is whole, and record it for the traffic split."""
        variant, stored = entry.variant, entry.stored
        if self.cache is not None and entry.key and not answer.degraded:
            version = variant.digest, entry.catalogue_version
            self.cache.put(entry.key, *version, stored, entry.content, cold=answer.cold_start)
        self.traffic_split.record_answer(variant, entry.prepared.request, stored, answer)


def cost_of(request: Request) -> int:
    """Candidates that a request counts for in a batch."""
    return len(request.items) if isinstance(request, RankRequest) else ALL_ITEMS


def _fail(waiting: list[tuple[Call, Request]], error: Exception) -> None:
    """Fail those calls of a batch that have no answer yet, whatever goes wrong with one of them."""
    for call, _ in waiting:
        try:
            call.fail(error)
        except Exception as fault:
            _log.error("request %s could not be answered", call.request_id, exc_info=fault)


def _by_variant(entries: list[_Entry]) -> dict[Variant, list[_Entry]]:
    by_variant: dict[Variant, list[_Entry]] = {}
    for entry in entries:
        by_variant.setdefault(entry.variant, []).append(entry)
    return by_variant


def _answer(variant: Variant, entries: list[_Entry]) -> None:
    """Answer the entries of one version together; what fails for it fails for its calls alone."""
    try:
        answers = variant.ranker.answer([entry.prepared for entry in entries])
        for entry, answer in zip(entries, answers, strict=True):
            entry.answer = answer
    except Exception as error:
        for entry in entries:
            entry.answer = error


def _better(entry: _Entry, older: bytes) -> Answer | Exception | None:
    """An answer or, where it is popular items for want of time, the last one without what must not come."""
    answer = entry.answer
    if not isinstance(answer, Answer) or answer.degraded != POPULAR:
        return answer
    ids, excluded = entry.variant.ranker.items, set(entry.prepared.encoded.rows.tolist())
    last = msgspec.json.decode(older, type=Answer)
    items = [scored for scored in last.items if ids.row(scored.item) not in excluded]
    return msgspec.structs.replace(last, items=items, degraded=CACHED) if items else answer


def _uninformed(answer: Answer | Exception | None) -> Answer | Exception | None:
    if not isinstance(answer, Answer):
        return answer
    left_out = f"{answer.degraded}; {UNINFORMED}" if answer.degraded else UNINFORMED
    return msgspec.structs.replace(answer, degraded=left_out)
