"""Checks requests and encodes them, so that those that cannot be answered are refused before they wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.bundle.format.ids import Ids
from app.bundle.format.layout import Array
from app.bundle.request import validation
from app.bundle.request.encode import EncodedRequest, RequestEncoder
from app.bundle.request.limits import Limits
from app.bundle.request.requests import RankRequest, RecommendRequest
from app.bundle.request.seen import SeenItems
from app.events import HistoryEvent


@dataclass(frozen=True)
class PreparedRequest:
    """A request that can be answered, and its rows.

    Args:
        request: as it came.
        items: candidates, each once; none for a recommendation.
        encoded: its rows are those of the candidates, or of what must not be recommended.
        deadline: of a recommendation, on time.perf_counter's clock; infinite: none.
        has_events: whether the request or feedback says anything of what the user did.
    """

    request: RankRequest | RecommendRequest
    items: list[str]
    encoded: EncodedRequest
    deadline: float = math.inf
    has_events: bool = False


class RequestPreparer:
    """Prepares rankings and recommendations.

    Args:
        encoder: of the bundle.
        items: ids of the bundle and of new items.
        limits: of requests.
    """

    def __init__(self, encoder: RequestEncoder, items: Ids, limits: Limits) -> None:
        self._encoder, self._items, self._limits = encoder, items, limits

    def rank(self, request: RankRequest, stored: Sequence[HistoryEvent] | None) -> PreparedRequest:
        """A ranking of its candidates.

        Raises:
            RequestError: names the field that is wrong.
        """
        validation.check_but_ids(request, self._limits.max_candidates)
        items, rows = self._candidates(request.items)
        encoded = self._encoder.encode(request, rows, stored)
        return PreparedRequest(request, items, encoded, math.inf, _has_events(request, stored))

    def _candidates(self, names: list[str]) -> tuple[list[str], Array]:
        """Each candidate once, and its row."""
        try:
            items = list(dict.fromkeys(names))
            rows = self._items.table_rows(items)
        except TypeError:  # not even hashable
            items, rows = names, np.zeros(len(names), np.int64)
        if np.count_nonzero(rows) < len(rows):  # an id that is in the table is well-formed
            validation.check_ids(items, "items")
            for i in np.flatnonzero(rows == 0).tolist():
                rows[i] = self._items.row(items[i])
        return items, rows

    def recommend(
        self,
        request: RecommendRequest,
        stored: Sequence[HistoryEvent] | None,
        arrived: float | None,
        seen: SeenItems | None,
        check_rules: Callable[[RecommendRequest], None],
    ) -> PreparedRequest:
        """A recommendation.

        Args:
            request: with its rules.
            stored, arrived, seen: see Ranker.read.
            check_rules: raises RequestError for rules that the bundle cannot keep.

        Raises:
            RequestError: names the field that is wrong.
        """
        validation.check_recommend(request, self._limits.max_candidates, self._limits.max_k)
        check_rules(request)
        rows = np.array([0, *self._items.rows(request.exclude)], np.int64)
        encoded = self._encoder.encode(request, rows, stored)
        if request.exclude_seen:
            met = self._encoder.seen_rows(request, encoded.user, stored, seen)
            encoded = replace(encoded, rows=np.concatenate([rows, met]))
        budget = request.budget_ms or self._limits.budget_ms
        start = time.perf_counter() if arrived is None else arrived
        deadline = start + budget / 1e3 if budget else math.inf
        return PreparedRequest(request, [], encoded, deadline, _has_events(request, stored))


def _has_events(request: RankRequest | RecommendRequest, stored: Sequence[HistoryEvent] | None) -> bool:
    return bool(stored if request.history is None else request.history)
