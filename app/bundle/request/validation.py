"""Whether a request can be answered; every error names the field and never echoes the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from app.bundle.request.requests import (
    BOOST,
    BOOSTS,
    BUDGET_MS,
    CAPS,
    FILTER_CHARS,
    Context,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from app.errors import RequestError
from app.events import ID_BYTES, HistoryEvent, microseconds

LATEST = 253_402_300_800  # seconds: the year 10000; milliseconds given as seconds lie beyond


def check_rank(request: RankRequest, max_candidates: int) -> None:
    """Raise RequestError for a ranking that cannot be answered."""
    check_but_ids(request, max_candidates)
    check_ids(request.items, "items")


def check_but_ids(request: RankRequest, max_candidates: int) -> None:
    """As `check_rank` without a look at the candidates' ids, for a caller that knows them."""
    if not isinstance(request.items, list) or not request.items:
        raise RequestError("no candidates", where="items", remedy="name at least one item, or use recommend")
    if len(request.items) > max_candidates:
        raise _too_many(len(request.items), max_candidates, "items")
    if request.k is not None:
        check_k(request.k, None)
    _check_user(request.user, request.context)


def check_recommend(request: RecommendRequest, max_candidates: int, max_k: int) -> None:
    """Raise RequestError for a recommendation that cannot be answered."""
    if len(request.exclude) > max_candidates:
        raise _too_many(len(request.exclude), max_candidates, "exclude")
    check_ids(request.exclude, "exclude")
    check_k(request.k, max_k)
    _check_user(request.user, request.context)
    _check_rules(request)


def check_similar(request: SimilarRequest, max_k: int) -> None:
    """Raise RequestError for a request for similar items that cannot be answered."""
    check_id(request.item, "item")
    check_k(request.k, max_k)


def check_ids(ids: Sequence[str], field: str) -> None:
    """Raise RequestError unless every id is text of 1 to 256 bytes of UTF-8."""
    if not _plain(ids):
        for i, name in enumerate(ids):
            check_id(name, f"{field}[{i}]")


def moment(timestamp: float | str, field: str) -> int:
    """Microseconds of a request's time.

    Raises:
        RequestError: not a time between 1970 and the year 9999.
    """
    try:
        if isinstance(timestamp, bool) or not isinstance(timestamp, int | float | str):
            raise ValueError("neither a number nor text")
        when = microseconds(timestamp)
    except (ValueError, OverflowError):
        when = -1
    if not 0 <= when < LATEST * 1_000_000:
        raise RequestError(
            "not a time between 1970 and 9999",
            where=field,
            remedy="give seconds since 1970 (not milliseconds) or ISO 8601 text",
        )
    return when


def event_row(event: HistoryEvent, events: Sequence[str], default: int, field: str) -> int:
    """Row of an event's type. Where training knew one type alone, events are alike, whatever their type.

    Raises:
        RequestError: a type that training did not know.
    """
    if event.event == "" or len(events) == 2:
        return default
    try:
        return events.index(event.event)
    except ValueError:
        known = ", ".join(events[1:11])
        raise RequestError("unknown event type", where=field, remedy=f"use one of {known}") from None


def _plain(ids: Sequence[str]) -> bool:
    """Whether ids are surely fine; a quick look at all of them, for the common case."""
    try:
        lengths = set(map(len, ids))
        return "".join(ids).isascii() and 0 not in lengths and max(lengths, default=0) <= ID_BYTES
    except TypeError:
        return False


def check_id(name: object, field: str) -> None:
    """Raise RequestError unless an id is text of 1 to 256 bytes of UTF-8."""
    if not isinstance(name, str):
        raise RequestError(f"{type(name).__name__} instead of text", where=field, remedy="give an id as text")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise RequestError("not valid Unicode", where=field, remedy="remove the lone surrogate") from None
    if not 0 < length <= ID_BYTES:
        raise RequestError(f"{length} bytes", where=field, remedy=f"an id has 1 to {ID_BYTES} bytes")


def check_k(k: int, largest: int | None) -> None:
    """Raise RequestError for a length of a list that is no integer, less than 1, or above the largest."""
    if isinstance(k, bool) or not isinstance(k, int):
        raise RequestError(f"{type(k).__name__} instead of a number", where="k", remedy="give an integer")
    if k < 1 or (largest is not None and k > largest):
        limit = f" to {largest}" if largest is not None else " or more"
        raise RequestError(f"k is {k if abs(k) < 10**9 else 'huge'}", where="k", remedy=f"k is 1{limit}")


def _check_user(user: str, context: Context | None) -> None:
    if not _plain((user,)):
        check_id(user, "user")
    if context is not None and context.timestamp is not None:
        moment(context.timestamp, "context.timestamp")


def _check_rules(request: RecommendRequest) -> None:
    """Limits that HTTP has checked already, for those who call from Python."""
    _check_number(request.diversity, 0, 1, "diversity")
    _check_number(request.explore, 0, 1, "explore")
    if request.budget_ms is not None:
        _check_number(request.budget_ms, 1e-9, BUDGET_MS, "budget_ms")
    _check_filter(request.filter, "filter")
    for field, rules, most in (("caps", request.caps, CAPS), ("boost", request.boost, BOOSTS)):
        if len(rules) > most:
            raise RequestError(f"{len(rules)} of them", where=field, remedy=f"give at most {most}")
    for most in request.caps.values():
        _check_number(most, 1, math.inf, "caps")
    for i, boost in enumerate(request.boost):
        _check_filter(boost.filter, f"boost[{i}].filter")
        _check_number(boost.add, -BOOST, BOOST, f"boost[{i}].add")


def _check_number(value: object, low: float, high: float, field: str) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        raise RequestError("out of range", where=field, remedy=f"give a number from {low:g} to {high:g}")


def _check_filter(text: object, field: str) -> None:
    if not isinstance(text, str) or len(text) > FILTER_CHARS:
        raise RequestError("no text, or too long", where=field, remedy=f"at most {FILTER_CHARS} characters")


def _too_many(count: int, limit: int, field: str) -> RequestError:
    return RequestError(f"{count} ids", where=field, remedy=f"send at most {limit} at a time")
