"""What a first request may be about: somebody who looks at a service does not know its ids."""

from __future__ import annotations

from app.bundle.request.requests import ListQuery
from app.bundle.runtime import Ranker
from app.serving.http.calls import Example

USERS = ITEMS = 5
LOOKED_AT = 200  # users, of whom those with the most events are taken


def example_of(ranker: Ranker) -> Example:
    """Users with a history, popular items, and the types of events, the most frequent one first."""
    items = [listed.item for listed in ranker.catalogue.popular(ListQuery(ITEMS, [])).items]
    first = ranker.catalogue.item(items[0]) if items else None
    info = ranker.info
    by_use = dict.fromkeys([info.events[info.default_event], *info.events])
    return Example(
        tuple(_users(ranker)),
        tuple(items),
        tuple(event for event in by_use if event),
        first.columns if first else {},
    )


def _users(ranker: Ranker) -> list[str]:
    rows = range(1, min(len(ranker.users), LOOKED_AT + 1))
    by_events = sorted(rows, key=lambda row: -len(ranker.histories.recent_items(row)))
    return [ranker.users[row] for row in by_events[:USERS]]
