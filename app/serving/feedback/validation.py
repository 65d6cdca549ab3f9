"""Checks of feedback beyond its types; other requests are checked by the ranker."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from msgspec import UNSET

from app.bundle.request.requests import Accepted, FeedbackRequest
from app.bundle.runtime import Ranker
from app.errors import RequestError
from app.events import ID_BYTES, Event, microseconds
from app.recipe import Serve
from app.serving.http.problems import MAX_FINDINGS, Finding, Problem

DAY = 86_400_000_000  # microseconds
SHOWN_TYPES, OTHERS = 10, "others"  # types of events that an answer names, and a name for the rest


def check_feedback(request: FeedbackRequest, settings: Serve) -> None:
    """Refuse feedback (a Problem, 422) of which an event cannot be stored.

    Unknown items and event types are accepted: the model to come may know them.
    """
    if not 0 < len(request.events) <= settings.max_candidates:
        raise RequestError(
            f"{len(request.events)} events",
            where="events",
            remedy=f"send 1 to {settings.max_candidates} events at a time",
        )
    findings: list[Finding] = []
    for number, event in enumerate(request.events):
        findings += _findings(f"events[{number}]", event)
        if len(findings) >= MAX_FINDINGS:
            break
    if findings:
        raise Problem(422, "an event cannot be stored; none was", findings=findings)


def accept(events: Sequence[Event], ranker: Ranker) -> Accepted:
    """The answer to events that can be stored; says what the ranker's training did not know of them."""
    known = frozenset(ranker.info.events)
    types = Counter(event.event for event in events if event.event and event.event not in known)
    named = dict(types.most_common(SHOWN_TYPES))
    if others := types.total() - sum(named.values()):
        named[OTHERS] = named.get(OTHERS, 0) + others
    items = sum(not ranker.has_item(event.item) for event in events)
    return Accepted(len(events), named or UNSET, items or UNSET)


def _findings(path: str, event: Event) -> Iterator[Finding]:
    for field, least in (("user", 1), ("item", 1), ("event", 0), ("variant", 0)):
        text = getattr(event, field)
        if not least <= len(text.encode()) <= ID_BYTES:
            yield Finding(f"{path}.{field}", f"must have {least} to {ID_BYTES} bytes")
    if event.timestamp is not None and not _plausible(event.timestamp):
        yield Finding(f"{path}.timestamp", "must be seconds or ISO 8601 text, from 1970 to tomorrow")
    if event.value is not None and not math.isfinite(event.value):
        yield Finding(f"{path}.value", "must be a finite number")


def _plausible(timestamp: float | str) -> bool:
    try:
        return 0 <= microseconds(timestamp) <= time.time() * 1e6 + DAY
    except (ValueError, OverflowError):
        return False
