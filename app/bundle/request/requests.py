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
COLUMNS = 32  # that an answer shows of an item at most
Shown = Annotated[
    list[str],
    Meta(max_length=COLUMNS, description="item columns to show; [] shows none; by default serve.columns"),
]
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
    columns: Shown | None = None


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
    columns: Shown | None = None


class SimilarRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The k items nearest to an item."""

    item: str
    k: int = 10
    columns: Shown | None = None


class ListQuery(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The first k items of a list that is the same for all users."""

    k: int = 10
    columns: Shown | None = None


class ItemQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The id of an item, of which all columns are shown."""

    id: str


class UserQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The id of a user."""

    id: str


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
    """An item with the model's output for it (a logit); `because` names history items by effect.

    `cold_start`: training met no event of the item. `columns`: those asked for that have a value, texts
    cut to 1,000 characters.
    """

    item: str
    score: float
    because: dict[str, float] | None = None
    cold_start: bool = False
    columns: dict[str, Value] | None = None


class Answer(msgspec.Struct, frozen=True):
    """A ranking, best first.

    `cold_start`: training met no event of the user or of an item that the request names, and nothing
    has made up for it: of the user it is false once events are known, by the log, by feedback or by the
    request's history. `user_cold_start`: the same of the user alone; absent where no user is asked about.
    Each item says for itself whether training met it.
    `degraded`: what was left out to answer within the request's budget; absent where nothing was.
    """

    model: str
    version: str
    items: list[Scored]
    cold_start: bool = False
    user_cold_start: bool | UnsetType = UNSET
    degraded: str | UnsetType = UNSET


class ListedItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of a list for everybody.

    `count`: events of it in the log that are to be predicted. `timestamp`: seconds since 1970 at which it
    came: of its first event or, where training did not know it, of its last PUT.
    """

    item: str
    count: int | None = None
    timestamp: float | None = None
    columns: dict[str, Value] | None = None


class ItemList(msgspec.Struct, frozen=True):
    """A list for everybody, the first item first."""

    items: list[ListedItem]
    model: str
    version: str


class KnownItem(msgspec.Struct, frozen=True):
    """What the service knows of an item.

    `known`: the bundle has it; else it was put since. `trained`: the weights were trained on an event of
    it. `events`: those of the log that are to be predicted. `columns`: all that have a value.
    """

    item: str
    known: bool
    trained: bool
    events: int
    columns: dict[str, Value]
    model: str
    version: str


class KnownUser(msgspec.Struct, frozen=True):
    """What the service knows of a user.

    `known`: the bundle has them; else their feedback came since. `trained`: the weights were trained on an
    event of theirs. `events`: the last 50 of log and feedback, the latest last; those of a log without
    times have no timestamp. `degraded`: what was left out; absent where nothing was.
    """

    user: str
    known: bool
    trained: bool
    events: list[HistoryEvent]
    model: str
    version: str
    degraded: str | UnsetType = UNSET


class Accepted(msgspec.Struct, frozen=True):
    """The number of events that are stored for good.

    `unknown_events`: how many of them are of a type that the model does not know, by type; they count as
    seen, a model is not shown them. The ten most frequent types; "others" counts the rest. `unknown_items`:
    how many are on items that it does not know. Both absent where there are none.
    """

    accepted: int
    unknown_events: dict[str, int] | UnsetType = UNSET
    unknown_items: int | UnsetType = UNSET
