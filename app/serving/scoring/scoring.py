"""A call from its body to its answer, and the scoring of calls in batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.bundle.request.requests import Answer, RankRequest, RecommendRequest
from app.bundle.retrieval.latency_budget import POPULAR
from app.bundle.runtime import PreparedRequest
from app.events import HistoryEvent
from app.serving.feedback.user_events import UserEventCache
from app.serving.http.guard import JSON
from app.serving.http.problems import CONTENT_TYPE, from_error
from app.serving.http.protocol import Reply
from app.serving.metrics import Metrics
from app.serving.scoring.batching import MicroBatcher
from app.serving.scoring.response_cache import ResponseCache
from app.serving.versions.traffic_split import TrafficSplit, Variant

ALL_ITEMS = 256  # candidates that a recommendation counts for, which scores every item
CACHED = "cached answer"  # of before the user's last events, or of a while ago
UNINFORMED = "without stored events: their store does not answer"
_encode = msgspec.json.Encoder().encode
_HEADERS = {"content-type": JSON}
_PROBLEM_HEADERS = {"content-type": CONTENT_TYPE}


class Call:
    """One call that waits for its answer.

    Args:
        path: of the call.
        request_id: named by problem documents and the log.
        reply: where the answer goes.
        closed: told once it is answered, with the status.
        body: of the call; empty: it is like no other.
    """

    __slots__ = ("_closed", "_reply", "body", "path", "request_id", "started", "variant")

    def __init__(
        self,
        path: str,
        request_id: str,
        reply: Reply,
        closed: Callable[[Call, int], None],
        body: bytes = b"",
    ) -> None:
        self.path, self.request_id, self.started, self.body = path, request_id, time.perf_counter(), body
        self._reply, self._closed = reply, closed
        self.variant: Variant | None = None  # that the user meets

    def answer(self, content: Any, status: int = 200) -> None:
        """Answer with a structure."""
        self.answer_json(_encode(content), status)

    def answer_json(self, content: bytes, status: int = 200) -> None:
        """Answer with JSON as it is."""
        self._closed(self, status)
        self._reply(status, content, _HEADERS)

    def fail(self, error: Exception) -> None:
        """Answer with the problem document of an error."""
        problem = from_error(error, self.request_id)
        self._closed(self, problem.status)
        headers = {**problem.headers, **_PROBLEM_HEADERS}
        self._reply(problem.status, problem.document(self.request_id), headers)


@dataclass
class _Batch:
    calls: list[Call] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    catalogue_versions: list[int] = field(default_factory=list)  # of the catalogue when it was read
    questions: list[PreparedRequest] = field(default_factory=list)
    stored: list[list[HistoryEvent]] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)  # of calls, by key
    joined: list[tuple[Call, int]] = field(default_factory=list)  # equal to the call at a place
    stale: dict[int, bytes] = field(default_factory=dict)  # older answers, for calls without time
    answers: list[Answer | Exception] = field(default_factory=list)
    contents: list[bytes | Exception] = field(default_factory=list)  # the answers as JSON
    stages: dict[str, float] = field(default_factory=dict)  # seconds in each
    informed: bool = True  # of stored events


class Scoring:
    """Scores the calls of one path in batches. Equal calls that meet in a batch are scored once.

    One that comes while its like is being scored waits, as every call does, for the batch to
    end, and finds its answer among those that are known.

    Args:
        variants: the versions of the model; a call names its own.
        recent: the users' stored events.
        metrics: of the replica.
        path: of the calls.
        limit: candidates of a batch.
        executor: a thread for batches that take long; else they are scored on the loop.
        known: answers that may be given again; None: none.
    """

    def __init__(
        self,
        variants: TrafficSplit,
        recent: UserEventCache,
        metrics: Metrics,
        path: str,
        limit: int,
        executor: Executor | None = None,
        known: ResponseCache | None = None,
    ) -> None:
        self.variants, self.recent, self.metrics, self.path = variants, recent, metrics, path
        self.known, self._long = known, executor is not None
        self._ticks: MicroBatcher[tuple[Call, RankRequest | RecommendRequest], _Batch] = MicroBatcher(
            self._begin, self._work, self._finish, cost=_cost, limit=limit, executor=executor
        )
        metrics.queues[path] = self._ticks.queue

    def add(self, call: Call, request: RankRequest | RecommendRequest) -> None:
        """Have a call scored with the next batch."""
        self._ticks.add((call, request))

    def _begin(self, entries: list[tuple[Call, RankRequest | RecommendRequest]]) -> _Batch | None:
        start, batch = time.perf_counter(), _Batch()
        self.recent.refresh()
        for call, request in entries:
            try:
                self._read(batch, call, request)
            except Exception as error:
                call.fail(error)
        batch.informed = self.recent.answers
        self.metrics.stages["parse"].observe(self.metrics.parse_s)
        self.metrics.parse_s = 0.0
        self.metrics.stages["features"].observe(time.perf_counter() - start)
        if not batch.calls:
            return None
        self.metrics.batches[self.path].observe(len(batch.calls))
        return batch

    def _read(self, batch: _Batch, call: Call, request: RankRequest | RecommendRequest) -> None:
        """Answer a call from what is known, join it to an equal one, or put it into the batch."""
        key = call.body
        if key and self.known is not None:
            key = _encode(request)  # however it was written
        place = batch.places.get(key)
        if place is not None:
            call.variant = batch.calls[place].variant
            batch.joined.append((call, place))
            return
        stored = self.recent.of(request.user)
        call.variant = variant = self.variants.of(request.user)
        catalogue_version = variant.ranker.catalogue_version
        if self.known is not None and key:
            kept = self.known.find(key, variant.digest, catalogue_version, stored)
            if kept is not None:
                self.variants.record_exposure(request.user, variant)
                self.metrics.cold_starts += kept.cold
                call.answer_json(kept.content)
                return
        question = variant.ranker.read(request, stored, call.started)
        if key:
            batch.places[key] = len(batch.calls)
            if self.known is not None and question.deadline < math.inf:
                older = self.known.stale(key, variant.digest)
                if older is not None:
                    batch.stale[len(batch.calls)] = older
        batch.keys.append(key)
        batch.catalogue_versions.append(catalogue_version)
        batch.questions.append(question)
        batch.stored.append(stored)
        batch.calls.append(call)

    def _work(self, batch: _Batch) -> None:
        start = time.perf_counter()
        batch.answers = _answers(batch)
        for place, content in batch.stale.items():
            batch.answers[place] = _better(batch, place, content)
        if not batch.informed:
            batch.answers = [_uninformed(answer) for answer in batch.answers]
        scored = time.perf_counter()
        batch.contents = [one if isinstance(one, Exception) else _encode(one) for one in batch.answers]
        batch.stages = {"score": scored - start, "encode": time.perf_counter() - scored}
        if self._long:  # recommendations
            retrieved = sum(variant.ranker.retrieval_s() for variant in _variants(batch))
            batch.stages |= {"retrieval": retrieved, "score": max(0.0, scored - start - retrieved)}

    def _finish(self, batch: _Batch, error: Exception | None) -> None:
        if error is not None:
            for call in (*batch.calls, *(call for call, _ in batch.joined)):
                call.fail(error)
            return
        for stage, seconds in batch.stages.items():
            self.metrics.stages[stage].observe(seconds)
        self.metrics.joined += len(batch.joined)
        for place, call in enumerate(batch.calls):
            self._answer(call, batch, place)
        for call, place in batch.joined:
            self._answer(call, batch, place)
        if self.known is not None:
            self._keep(self.known, batch)
        self.variants.note(batch.calls, batch.questions, batch.stored, batch.answers)

    def _answer(self, call: Call, batch: _Batch, place: int) -> None:
        answer, content = batch.answers[place], batch.contents[place]
        if isinstance(content, Exception):
            call.fail(content)
            return
        assert isinstance(answer, Answer)
        self.metrics.cold_starts += answer.cold_start
        if answer.degraded:
            self.metrics.degraded[answer.degraded] += 1
        call.answer_json(content)

    def _keep(self, known: ResponseCache, batch: _Batch) -> None:
        """Keep what is whole."""
        for place, (key, answer, content) in enumerate(
            zip(batch.keys, batch.answers, batch.contents, strict=True)
        ):
            if isinstance(answer, Answer) and isinstance(content, bytes) and key and not answer.degraded:
                variant = batch.calls[place].variant
                assert variant is not None
                catalogue_version, stored = batch.catalogue_versions[place], batch.stored[place]
                known.keep(key, variant.digest, catalogue_version, stored, content, cold=answer.cold_start)


def _variants(batch: _Batch) -> set[Variant]:
    return {call.variant for call in batch.calls if call.variant is not None}


def _better(batch: _Batch, place: int, older: bytes) -> Answer | Exception:
    """An answer or, where it is popular items for want of time, the last one without what must not come."""
    answer, question, variant = batch.answers[place], batch.questions[place], batch.calls[place].variant
    assert variant is not None
    if isinstance(answer, Exception) or answer.degraded != POPULAR:
        return answer
    names, out = variant.ranker.items, set(question.asked.rows.tolist())
    found = msgspec.json.decode(older, type=Answer)
    items = [one for one in found.items if names.find(one.item) not in out]
    return msgspec.structs.replace(found, items=items, degraded=CACHED) if items else answer


def _uninformed(answer: Answer | Exception) -> Answer | Exception:
    if isinstance(answer, Exception):
        return answer
    also = f"{answer.degraded}; {UNINFORMED}" if answer.degraded else UNINFORMED
    return msgspec.structs.replace(answer, degraded=also)


def _answers(batch: _Batch) -> list[Answer | Exception]:
    """Of each version together; what fails for one fails for its calls alone."""
    places: dict[Variant, list[int]] = {}
    for place, call in enumerate(batch.calls):
        assert call.variant is not None  # since it was read
        places.setdefault(call.variant, []).append(place)
    found: dict[int, Answer | Exception] = {}
    for variant, own in places.items():
        try:
            found |= zip(own, variant.ranker.answer([batch.questions[p] for p in own]), strict=True)
        except Exception as error:
            found |= dict.fromkeys(own, error)
    return [found[place] for place in range(len(batch.calls))]


def _cost(entry: tuple[Call, RankRequest | RecommendRequest]) -> int:
    request = entry[1]
    return len(request.items) if isinstance(request, RankRequest) else ALL_ITEMS
