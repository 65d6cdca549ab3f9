"""Requests and answers of the ranker: the same for HTTP, the SDK and files."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.events import Event, HistoryEvent, Value

FILTER_CHARS = 2000
CAPS, BOOSTS = 4, 8  # of a request
BOOST = 1000.0  # largest that is added to a score
BUDGET_MS = 60_000.0

Filter = Annotated[
    str, Meta(max_length=FILTER_CHARS, description="e.g. price < 20 and category in ['a', 'b']")
]
Basis = Literal["content", "training", "nothing"]
Share = Annotated[float, Meta(ge=0, le=1)]


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


class Boost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Items that match `filter` have `add` added to their score; a negative one holds them back."""

    filter: Filter
    add: Annotated[float, Meta(ge=-BOOST, le=BOOST)]


class RecommendRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The best k items for this user.

    `exclude`, `exclude_seen`, `filter` and `caps` (column -> at most so many items of one value)
    always hold. `diversity` weighs difference against score, from 0 (score alone) to 1; `explore`
    is the least share of fresh or rarely met items, which come last. `budget_ms`:
    rather than take longer, answer from fewer candidates or with what is popular.
    """

    user: str
    k: int = 10
    history: list[HistoryEvent] | None = None
    context: Context | None = None
    exclude: list[str] = []
    exclude_seen: bool = True
    filter: Filter = ""
    caps: Annotated[dict[str, Annotated[int, Meta(ge=1)]], Meta(max_length=CAPS)] = {}
    diversity: Share = 0.0
    boost: Annotated[list[Boost], Meta(max_length=BOOSTS)] = []
    explore: Share = 0.0
    budget_ms: Annotated[float, Meta(gt=0, le=BUDGET_MS)] | None = None


class SimilarRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The k items nearest to an item."""

    item: str
    k: int = 10


class FeedbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What users did, to be stored and used at once."""

    events: list[Event]


class ItemRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is known of an item: its columns as the catalogue names them."""

    columns: dict[str, Value]


class ItemAnswer(msgspec.Struct, frozen=True):
    """The item is stored. `ranked_by` its "content", what "training" learned, or "nothing" of its own."""

    item: str
    ranked_by: Basis


class Scored(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An item with the model's output for it (a logit); `because` names history items by effect."""

    item: str
    score: float
    because: dict[str, float] | None = None


class Answer(msgspec.Struct, frozen=True):
    """A ranking, best first. `cold_start`: training met no event of the user, or of a candidate.

    `degraded`: what was left out to answer within the request's budget; absent where nothing was.
    """

    model: str
    version: str
    items: list[Scored]
    cold_start: bool = False
    degraded: str | UnsetType = UNSET


class Accepted(msgspec.Struct, frozen=True):
    """The number of events that are stored for good."""

    accepted: int
