"""From a request to what a model is shown: rows instead of ids, the history, the moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle.format.histories import Events, Histories
from app.bundle.format.ids import Ids
from app.bundle.format.layout import Array, Info
from app.bundle.request.requests import RankRequest, RecommendRequest
from app.bundle.request.seen import SeenItems
from app.bundle.request.validation import event_row, moment
from app.errors import RequestError
from app.events import HistoryEvent
from app.features.context import ages, gaps

STORED = 200  # latest stored events at least that a history is made from
NONE = Events(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class EncodedRequest:
    """A request as rows. `history` is as `shown` makes it, and may be longer than the model sees."""

    user: int
    now: int  # microseconds
    history: Events
    rows: Array  # (C,) candidates


class RequestEncoder:
    """Turns requests into rows.

    Args:
        info, users, items, histories: of the bundle.
        scores_history: whether scores depend on what a user did, or when; else rankings go without it.
    """

    def __init__(
        self, info: Info, users: Ids, items: Ids, histories: Histories, *, scores_history: bool
    ) -> None:
        self._info, self._users, self._items, self._histories = info, users, items, histories
        self._scores_history = scores_history

    def encode(
        self, request: RankRequest | RecommendRequest, rows: Array, stored: Sequence[HistoryEvent] | None
    ) -> EncodedRequest:
        """A request about candidate `rows`, with the user's stored feedback.

        The history is the request's own, else that of the log and the feedback after it.
        A moment in the request hides what came later.

        Raises:
            RequestError: names the field of the history or the context.
        """
        user = self._users.row(request.user)
        timestamp = request.context.timestamp if request.context else None
        now = time.time_ns() // 1000 if timestamp is None else moment(timestamp, "context.timestamp")
        if request.history is not None:
            history = self._events(request.history, now, strict=True)
        elif isinstance(request, RankRequest) and not self._scores_history:
            history = NONE
        else:
            history = self._histories.events(user) if user else NONE
            if stored:
                latest = stored[-max(STORED, self._info.history) :]
                history = history.merge(self._events(latest, now, strict=False))
        if timestamp is not None and len(history) and history.time[-1] > now:
            history = history.where(history.time <= now)
        return EncodedRequest(user, now, shown(history, self._info), rows)

    def seen_rows(
        self,
        request: RecommendRequest,
        user: int,
        stored: Sequence[HistoryEvent] | None,
        seen: SeenItems | None,
    ) -> Array:
        """Rows of the items that a user is known to have met, whenever that was.

        Args:
            request: its own history counts, too.
            user: row of the user.
            stored: the user's feedback events; not looked at where there is `seen`.
            seen: the items of all the user's feedback.
        """
        events = [*(request.history or ()), *(stored or () if seen is None else ())]
        rows = np.array(self._items.rows(event.item for event in events), np.int64)
        met = [rows, self._histories.recent_items(user), self._histories.older_items(user)]
        return np.concatenate(met if seen is None else [*met, seen.rows(self._items)])

    def _events(self, events: Sequence[HistoryEvent], now: int, *, strict: bool) -> Events:
        """Events on known items by time; those without a time happen now, in the order given."""
        encoded = []
        for i, event in enumerate(events):
            row = self._item(event, f"history[{i}].item")
            try:
                kind = event_row(event, self._info.events, self._info.default_event, f"history[{i}].event")
                when = now if event.timestamp is None else moment(event.timestamp, f"history[{i}].timestamp")
            except RequestError:
                if strict:
                    raise
                continue  # what is stored must not make the user's requests fail
            if row:
                encoded.append((row, kind, when))
        if not encoded:
            return NONE
        item, kinds, times = np.array(encoded, np.int64).T
        order = np.argsort(times, kind="stable")
        return Events(item[order], kinds[order], times[order])

    def _item(self, event: HistoryEvent, field: str) -> int:
        try:
            return self._items.row(event.item)
        except (TypeError, AttributeError, UnicodeEncodeError):
            raise RequestError("not an id", where=field, remedy="give an item id as text") from None


def shown(history: Events, info: Info) -> Events:
    """The part of a history that a model is shown, if not more.

    Args:
        history: of a user, by time.
        info: of the bundle.
    """
    if info.reads == "recent":
        return history
    return history.distinct(info.history) if info.reads == "all" else history.last(info.history)


def model_inputs(requests: Sequence[EncodedRequest], info: Info, names: Container[str]) -> dict[str, Array]:
    """What a graph is fed of B requests, apart from candidates; rows are not gathered yet.

    Returns:
        Those of `names` among user (B,) and history (B, L) as rows, history_mask, history_event,
        history_age, history_gap and context. L is `info.history` or, where the model reads more than
        what is recent, the length of the longest history, 1 at least.
    """
    count, length = len(requests), info.history
    if info.reads != "recent":
        length = max(1, max((len(request.history) for request in requests), default=0))
    item, event, times = np.zeros((3, count, length), np.int64)
    for i, request in enumerate(requests):
        last = min(length, len(request.history))
        if last:
            item[i, -last:] = request.history.item[-last:]
            event[i, -last:] = request.history.event[-last:]
            if info.timed:  # else stored feedback has times that the model has not learned from
                times[i, -last:] = request.history.time[-last:]
    now = np.array([request.now for request in requests], np.int64)
    inputs: dict[str, Callable[[], Array]] = {
        "user": lambda: np.array([request.user for request in requests], np.int64),
        "history": lambda: item,
        "history_mask": lambda: (item > 0).astype(np.float32),
        "history_event": lambda: event,
        "history_age": lambda: ages(times),
        "history_gap": lambda: gaps(times),
        "context": lambda: info.moments(now, times),
    }
    return {name: compute() for name, compute in inputs.items() if name in names}
