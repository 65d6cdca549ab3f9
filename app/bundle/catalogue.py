"""What a ranker knows beside scores: an item, a user, and the lists that are the same for everybody."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

from app.bundle.format.histories import Events
from app.bundle.format.ids import Ids
from app.bundle.format.layout import Info
from app.bundle.request import validation
from app.bundle.request.requests import ItemList, KnownItem, KnownUser, ListedItem, ListQuery
from app.events import HistoryEvent, microseconds

if TYPE_CHECKING:
    from app.bundle.runtime import Ranker

EVENTS = 50  # of a user


class Catalogue:
    """The items and users of a ranker as they are now; used by the thread that puts items.

    Args:
        ranker: whose they are.
    """

    def __init__(self, ranker: Ranker) -> None:
        self._ranker, self._columns = ranker, ranker.item_columns

    def popular(self, query: ListQuery) -> ItemList:
        """The items with the most events of the log that are to be predicted; those without any never come.

        Raises:
            RequestError: names the field that is wrong.
        """
        self._check(query)
        rows, counts = self._ranker.recommender.popular(query.k)
        return self._list(query, rows.tolist(), counts.tolist(), repeat(None))

    def latest(self, query: ListQuery) -> ItemList:
        """The items that came last, the latest first; of those of the log the last 1,000.

        An item comes with its first event in the log or, where the bundle does not have it, with its last
        PUT. Of a log without times there are those alone that were put.

        Raises:
            RequestError: names the field that is wrong.
        """
        self._check(query)
        rows, times = (column[: query.k].tolist() for column in self._ranker.recommender.latest)
        logged = [(time / 1e6, row) for row, time in zip(rows, times, strict=True)]
        latest = heapq.nlargest(query.k, [*logged, *self._ranker.new_items.arrivals()])
        return self._list(
            query, [row for _, row in latest], repeat(None), [time or None for time, _ in latest]
        )

    def _check(self, query: ListQuery) -> None:
        validation.check_k(query.k, self._ranker.limits.max_k)
        self._columns.check(query.columns)

    def _list(
        self, query: ListQuery, rows: list[int], counts: Iterable[int | None], times: Iterable[float | None]
    ) -> ItemList:
        names = (self._ranker.items[row] for row in rows)
        shown = self._columns.of_rows(rows, self._columns.chosen(query.columns))
        items = list(map(ListedItem, names, counts, times, shown))
        return ItemList(items, self._ranker.name, self._ranker.version)

    def item(self, name: str) -> KnownItem | None:
        """What is known of an item; None: nothing.

        Raises:
            RequestError: no text of 1 to 256 bytes.
        """
        validation.check_id(name, "id")
        ranker = self._ranker
        row = ranker.items.row(name)
        if not row:
            return None
        events, columns = ranker.recommender.events_on(row), self._columns.all_of(row)
        known, trained = ranker.knows_item(name), ranker.trained_on(name)
        return KnownItem(name, known, trained, events, columns, ranker.name, ranker.version)

    def user(self, name: str, stored: Sequence[HistoryEvent]) -> KnownUser | None:
        """What is known of a user, with the last 50 events of log and feedback; None: nothing.

        Args:
            name: of the user.
            stored: the user's feedback events by time.

        Raises:
            RequestError: no text of 1 to 256 bytes.
        """
        validation.check_id(name, "id")
        ranker = self._ranker
        row = ranker.users.row(name)
        if not row and not stored:
            return None
        history = ranker.histories.events(row) if row else None
        events = last_events(ranker.info, ranker.items, history, stored)
        trained = ranker.trained_on_user(name)
        return KnownUser(name, row > 0, trained, events, ranker.name, ranker.version)


def last_events(
    info: Info, items: Ids, history: Events | None, stored: Sequence[HistoryEvent]
) -> list[HistoryEvent]:
    """The last events of a user in the log and by feedback, the latest last.

    An event that is in both counts once, as it does in a history.

    Args:
        info: of the bundle.
        items: the ids by row.
        history: the user's last events in the log; None: there is none.
        stored: feedback by time.
    """
    default = info.events[info.default_event]
    events = [] if history is None else _of_log(info, items, history)
    logged = {(event.item, event.event, time) for time, event in events}
    for event in stored:
        time = microseconds(event.timestamp or 0)
        if (event.item, event.event or default, time) not in logged:
            events.append((time, event))
    events.sort(key=lambda entry: entry[0])  # which keeps the order of events of one moment
    return [event for _, event in events[-EVENTS:]]


def _of_log(info: Info, items: Ids, history: Events) -> list[tuple[int, HistoryEvent]]:
    columns = zip(history.item.tolist(), history.event.tolist(), history.time.tolist(), strict=True)
    return [
        (time, HistoryEvent(items[item], info.events[event], time / 1e6 or None))
        for item, event, time in columns
    ]
