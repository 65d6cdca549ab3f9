"""A call from its body to its answer, and the scoring of calls in batches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.bundle.requests import Answer, HistoryEvent, RankRequest, RecommendRequest
from app.bundle.runtime import Question
from app.serving.guard import JSON
from app.serving.metrics import Metrics
from app.serving.problems import CONTENT_TYPE, from_error
from app.serving.recent import Recent
from app.serving.ticks import Ticks
from app.serving.variants import Variant, Variants
from app.serving.wire import Reply

ALL_ITEMS = 256  # candidates that a recommendation counts for, which scores every item
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
    """

    __slots__ = ("_closed", "_reply", "path", "request_id", "started", "variant")

    def __init__(self, path: str, request_id: str, reply: Reply, closed: Callable[[Call, int], None]) -> None:
        self.path, self.request_id, self.started = path, request_id, time.perf_counter()
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
    calls: list[Call]
    questions: list[Question]
    stored: list[list[HistoryEvent]]
    answers: list[Answer | Exception] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)  # the answers as JSON
    cold: int = 0
    degraded: Counter[str] = field(default_factory=Counter)
    informed: bool = True  # of stored events


class Scoring:
    """Scores the calls of one path in batches.

    Args:
        variants: the versions of the model; a call names its own.
        recent: the users' stored events.
        metrics: of the replica.
        path: of the calls.
        limit: candidates of a batch.
        executor: a thread for batches that take long; else they are scored on the loop.
    """

    def __init__(
        self,
        variants: Variants,
        recent: Recent,
        metrics: Metrics,
        path: str,
        limit: int,
        executor: Executor | None = None,
    ) -> None:
        self.variants, self.recent, self.metrics, self.path = variants, recent, metrics, path
        self._ticks: Ticks[tuple[Call, RankRequest | RecommendRequest], _Batch] = Ticks(
            self._begin, self._work, self._finish, cost=_cost, limit=limit, executor=executor
        )

    def add(self, call: Call, request: RankRequest | RecommendRequest) -> None:
        """Have a call scored with the next batch."""
        self._ticks.add((call, request))

    def _begin(self, entries: list[tuple[Call, RankRequest | RecommendRequest]]) -> _Batch | None:
        start, batch = time.perf_counter(), _Batch([], [], [])
        self.recent.refresh()
        for call, request in entries:
            try:
                stored = self.recent.of(request.user)
                call.variant = self.variants.of(request.user)
                batch.questions.append(call.variant.ranker.read(request, stored, call.started))
                batch.stored.append(stored)
                batch.calls.append(call)
            except Exception as error:
                call.fail(error)
        batch.informed = self.recent.answers
        self.metrics.batches[self.path].observe(len(entries))
        self.metrics.stages["features"].observe(time.perf_counter() - start)
        return batch if batch.calls else None

    def _work(self, batch: _Batch) -> None:
        start = time.perf_counter()
        batch.answers = _answers(batch)
        answers = [answer for answer in batch.answers if isinstance(answer, Answer)]
        if not batch.informed:
            answers = [msgspec.structs.replace(answer, degraded=UNINFORMED) for answer in answers]
        scored = time.perf_counter()
        batch.contents = [_encode(answer) for answer in answers]
        batch.degraded = Counter(answer.degraded for answer in answers if answer.degraded)
        batch.cold = sum(answer.cold_start for answer in answers)
        self.metrics.stages["score"].observe(scored - start)
        self.metrics.stages["encode"].observe(time.perf_counter() - scored)

    def _finish(self, batch: _Batch, error: Exception | None) -> None:
        if error is not None:
            for call in batch.calls:
                call.fail(error)
            return
        self.metrics.cold_starts += batch.cold
        self.metrics.degraded += batch.degraded
        contents = iter(batch.contents)
        for call, answer in zip(batch.calls, batch.answers, strict=True):
            if isinstance(answer, Exception):
                call.fail(answer)
            else:
                call.answer_json(next(contents))
        self.variants.note(batch.calls, batch.questions, batch.stored, batch.answers)


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
