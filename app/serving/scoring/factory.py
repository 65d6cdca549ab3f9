"""How the calls of a model are answered: in batches, or at once by the handler of their endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import msgspec

from app.bundle.runtime import Ranker
from app.recipe import Serve
from app.serving.feedback.user_events import Lookup, UserEventCache
from app.serving.http.calls import Endpoint
from app.serving.http.problems import Problem
from app.serving.metrics import Metrics
from app.serving.scoring.call import Call
from app.serving.scoring.response_cache import ResponseCache
from app.serving.scoring.scoring import UNINFORMED, Scoring
from app.serving.versions.traffic_split import TrafficSplit

Start = Callable[[Call, Any], None]  # of the answer to a call with this body


class ScoringFactory:
    """Makes what answers the calls of a model; all models share the replica's stored events.

    Args:
        user_events: the users' stored events.
        metrics: of the replica.
        settings: the recipe's [serve] section.
        executor: a thread for batches that take long.
        endpoints: the table of calls.
    """

    def __init__(
        self,
        user_events: UserEventCache,
        metrics: Metrics,
        settings: Serve,
        executor: Executor,
        endpoints: Sequence[Endpoint[Any]],
    ) -> None:
        self.user_events, self.metrics, self.settings, self.executor = (
            user_events,
            metrics,
            settings,
            executor,
        )
        self.endpoints = [endpoint for endpoint in endpoints if endpoint.per_model]

    def calls_of(
        self, traffic_split: TrafficSplit, path_of: Callable[[Endpoint[Any]], str]
    ) -> tuple[dict[Endpoint[Any], Start], dict[str, Scoring]]:
        """How the calls of a model are answered, by endpoint; and the scoring of batches, by path.

        Args:
            traffic_split: the versions of the model.
            path_of: the path of an endpoint of this model, as metrics name it.
        """
        starts: dict[Endpoint[Any], Start] = {}
        scorings: dict[str, Scoring] = {}
        for endpoint in self.endpoints:
            if endpoint.batched:
                path = path_of(endpoint)
                scorings[path] = self._scoring(traffic_split, path, long=endpoint.batched == "thread")
                starts[endpoint] = scorings[path].add
            else:
                starts[endpoint] = partial(self._answer, traffic_split, endpoint)
        return starts, scorings

    def _scoring(self, traffic_split: TrafficSplit, path: str, *, long: bool) -> Scoring:
        """Scoring candidates takes less time than a change of threads, and hardly more than to find a
        cached answer. Scoring all items is `long`: it leaves the loop, and its answers are cached."""
        limit = int(self.settings.cache_mb * 2**20 / (1 + len(self.settings.models)))
        return Scoring(
            traffic_split,
            self.user_events,
            self.metrics,
            path,
            self.settings.max_batch_candidates,
            self.executor if long else None,
            ResponseCache(limit, self.settings.cache_s) if long else None,
        )

    def _answer(self, traffic_split: TrafficSplit, endpoint: Endpoint[Any], call: Call, body: Any) -> None:
        """Answer a call by its handler and the version of most users."""

        def answer(lookup: Lookup) -> None:
            try:
                call.answer(_answered(endpoint, traffic_split.main.ranker, body, lookup), endpoint.status)
            except Exception as error:
                call.fail(error)

        # It may be about a new item, if not about a user.
        self.user_events.look_up((body.id,) if endpoint.of_user else (), answer)


def _answered(endpoint: Endpoint[Any], ranker: Ranker, body: Any, lookup: Lookup) -> Any:
    """The answer of an endpoint's handler.

    Raises:
        Problem: there is none, or there might be one if the store answered.
    """
    handler = endpoint.handler
    assert callable(handler)
    if not endpoint.of_user:
        content = handler(ranker, body)
    else:
        content = handler(ranker, body, lookup.of(body.id))
        if content is None and not lookup.informed:
            raise Problem(503, "the store of feedback does not answer; try again")
        if not lookup.informed:
            content = msgspec.structs.replace(content, degraded=UNINFORMED)
    if content is None:
        raise Problem(404, dict(endpoint.problems)[404])
    return content
