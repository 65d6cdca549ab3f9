"""Requests and answers of the ranker: the same for HTTP, the SDK and files."""

from __future__ import annotations

import msgspec

from app.events import Event


class HistoryEvent(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One event of the user in question, as a request carries it."""

    item: str
    event: str = ""
    timestamp: float | str | None = None


class Context(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The moment of the request; None means now."""

    timestamp: float | str | None = None


class RankRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Score these candidates for this user, best first."""

    user: str
    items: list[str]
    k: int | None = None
    history: list[HistoryEvent] | None = None
    context: Context | None = None
    explain: bool = False


class RecommendRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The best k items for this user."""

    user: str
    k: int = 10
    history: list[HistoryEvent] | None = None
    context: Context | None = None
    exclude: list[str] = []
    exclude_seen: bool = True


class SimilarRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The nearest k items to an item."""

    item: str
    k: int = 10


class FeedbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What users did, to be stored and used at once."""

    events: list[Event]


class Scored(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item with the model's output for it (a logit); `because` names history items by effect."""

    item: str
    score: float
    because: dict[str, float] | None = None


class Answer(msgspec.Struct, frozen=True):
    """A ranking, best first. `cold_start`: the user or an item was unknown to training."""

    model: str
    version: str
    items: list[Scored]
    cold_start: bool = False


class Accepted(msgspec.Struct, frozen=True):
    """How many events are stored for good."""

    accepted: int
