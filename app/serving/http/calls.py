"""The table of calls: every call of the service is one row of `CALLS`.

Routing, the OpenAPI document, the labels of metrics, the calls of further models and the client
follow from it. Adding a call is a struct for its body, a check of what its types do not say, and
one row. Light to import, because the client does: neither Ray nor numpy nor a web framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from app.bundle.request.requests import (
    Accepted,
    Answer,
    FeedbackRequest,
    ItemAnswer,
    ItemList,
    ItemQuery,
    ItemRequest,
    KnownItem,
    KnownUser,
    ListQuery,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
    UserQuery,
)
from app.events import Value

JSON, NDJSON = "application/json", "application/x-ndjson"
HTML, TEXT = "text/html; charset=utf-8", "text/plain"
MODELS = "/v1/models/"
State = Literal["not loaded", "loading", "loaded", "refused"]
AnswerT = TypeVar("AnswerT")


class Live(msgspec.Struct, frozen=True):
    """The process of the replica answers."""

    live: bool


class Ready(msgspec.Struct, frozen=True):
    """The main model is loaded: its name and version."""

    ready: bool
    model: str
    version: str


class ModelReady(msgspec.Struct, frozen=True):
    """Whether calls of a model are answered; where it is not loaded, the first call loads it."""

    name: str
    ready: bool
    state: State


class Example(msgspec.Struct, frozen=True):
    """What a first request may be about: users and items that training knew, and types of events.

    `columns` are those of the first item.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    events: tuple[str, ...]
    columns: dict[str, Value]


class ModelDescription(msgspec.Struct, frozen=True):
    """A model: the versions that users are assigned to, the main one first, and its figures.

    `example` is null while the model is not loaded.
    """

    name: str
    versions: list[str]
    platform: str
    inputs: list[str]
    outputs: list[str]
    figures: dict[str, Any]
    state: State
    example: Example | None


@dataclass(frozen=True, eq=False)
class Endpoint(Generic[AnswerT]):
    """One call of the service.

    Args:
        path: `{name}` stands for a model's name, `{id}` at the end for any text.
        summary: one line for the documentation.
        answer: type of the answer's body; of a stream a tuple of the types of its lines; None: a
            page for browsers, which is not documented.
        body: type of the body; of a stream a tuple of the types of its lines; None: there is none.
        handler: of a call per model a function of the model's Ranker and the body or query that returns
            the answer, or None where there is none: 404, with its text in `problems`. Of another call a
            method's name, of Replica where the body is plain JSON that is posted, else of Routes. None: the
            call is scored in batches.
        batched: where batches are scored: on the event "loop", or in a "thread", because they take
            long, and their answers are cached; None: each call is answered by its handler.
        query: of a call without a body the type of its id and query parameters, of which all but `columns`
            come once; None: there are none.
        of_user: whether the handler is given the stored events of the user `id`, too.
        per_model: served for every model, below `/v1/models/NAME/` as well.
        key: that the caller must send: the "api" key, the "admin" key, or "none".
        media: type of the body, or of the answer where there is no body.
        description: further sentences for the documentation.
        problems: statuses that it may be refused with beside those of its kind, with what they mean.
    """

    path: str
    summary: str
    answer: type[AnswerT] | tuple[type, ...] | None
    body: type | tuple[type, ...] | None = None
    handler: Callable[..., Any] | str | None = None
    batched: Literal["loop", "thread"] | None = None
    query: type | None = None
    of_user: bool = False
    per_model: bool = False
    method: Literal["GET", "POST", "PUT"] = "POST"
    status: int = 200
    key: Literal["none", "api", "admin"] = "api"
    media: str = JSON
    description: str = ""
    problems: tuple[tuple[int, str], ...] = ()

    @property
    def hot(self) -> bool:
        """Whether a replica takes the call from the parser, without Serve's usual way of a request."""
        return self.method == "POST" and self.media == JSON

    @property
    def streamed(self) -> bool:
        """Whether body and answer are lines that are read and written by and by."""
        return self.media == NDJSON

    @property
    def route(self) -> str:
        """The path as metrics name it: without the id."""
        return self.path.removesuffix("{id}")

    def path_of(self, model: str) -> str:
        """The path of this call, which is served per model, for one of the models."""
        return f"{MODELS}{model}/{self.path.removeprefix('/v1/')}"

    def paths(self, main: str, models: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Every path of the call, and the model that it is about ("" where it is about none).

        Args:
            main: name of the main model, whose calls have the plain path, too.
            models: names of the further models.
        """
        names = (main, *models)
        if "{name}" in self.path:
            yield from ((self.path.replace("{name}", name), name) for name in names)
            return
        yield self.path, main if self.per_model else ""
        if self.per_model:
            yield from ((self.path_of(name), name) for name in names)


RANK = Endpoint(
    "/v1/rank",
    "Score these items for a user, best first",
    Answer,
    body=RankRequest,
    batched="loop",
    per_model=True,
    description=(
        "`cold_start` says that training met no event of the user or of an item named here; "
        "`user_cold_start` says it of the user alone, and is false once events of theirs are known, by "
        "feedback or by `history`. Each item says it for itself. An id may be an integer, which means its "
        "decimal text. `columns` shows these of the items' columns instead of those of serve.columns."
    ),
)
RECOMMEND = Endpoint(
    "/v1/recommend",
    "The best k items for a user",
    Answer,
    body=RecommendRequest,
    batched="thread",
    per_model=True,
    description=(
        "`cold_start`, and `user_cold_start`, say that no event of the user is known, by training, by "
        "feedback or by `history`; each item says for itself whether training met it. `columns` as for rank."
    ),
)
SIMILAR = Endpoint(
    "/v1/similar",
    "The nearest k items to an item",
    Answer,
    body=SimilarRequest,
    handler=lambda ranker, request: ranker.similar([request])[0],
    per_model=True,
    description="`cold_start` says that training met no event of this item. `columns` as for rank.",
)
FEEDBACK = Endpoint(
    "/v1/feedback",
    "Store what users did; the next request uses it",
    Accepted,
    body=FeedbackRequest,
    handler="store_feedback",
    status=202,
    description=(
        "An item of any event counts as seen by its user. An event of a type that training did not know is "
        "not shown to the model, unless all events of the log are of one type; `unknown_events` counts them. "
        "Types are compared letter by letter."
    ),
)
BATCH_RANK: Endpoint[Any] = Endpoint(
    "/v1/batch_rank",
    "Rank or recommend for many: a request a line, answered in order, streamed",
    (Answer,),
    body=(RankRequest, RecommendRequest),
    handler="batch_rank",
    media=NDJSON,
    description=(
        "A line with `items` ranks them, one without recommends. A line that cannot be answered gets "
        "a problem document with its number instead. Read answers while you send, as curl does: "
        "lines are read no faster than answers are taken."
    ),
)
PUT_ITEM = Endpoint(
    "/v1/items/{id}",
    "Say all that is known of an item, new or changed",
    ItemAnswer,
    body=ItemRequest,
    handler="put_item",
    method="PUT",
    key="admin",
    description=(
        "The next request knows it: a new item is ranked by its content, a known one by what training "
        "learned. Takes RAYREC_ADMIN_KEY, where the service has one, instead of its API key."
    ),
    problems=((507, "There are as many new items as serve.max_new_items allows: train again, or raise it"),),
)
ITEM = Endpoint(
    "/v1/items/{id}",
    "What the service knows of an item",
    KnownItem,
    query=ItemQuery,
    handler=lambda ranker, query: ranker.catalogue.item(query.id),
    per_model=True,
    method="GET",
    description="With all its columns: as they were put, else as the bundle has them.",
    problems=((404, "Nothing is known of such an item; PUT /v1/items/{id} adds one"),),
)
USER = Endpoint(
    "/v1/users/{id}",
    "What the service knows of a user, with the last 50 events",
    KnownUser,
    query=UserQuery,
    of_user=True,
    handler=lambda ranker, query, stored: ranker.catalogue.user(query.id, stored),
    per_model=True,
    method="GET",
    description="Events of the log that the model was made from and those of feedback, the latest last.",
    problems=((404, "Nothing is known of such a user; rank and recommend answer for anybody"),),
)
POPULAR = Endpoint(
    "/v1/popular",
    "The k items with the most events",
    ItemList,
    query=ListQuery,
    handler=lambda ranker, query: ranker.catalogue.popular(query),
    per_model=True,
    method="GET",
    description=(
        "By the events that are to be predicted, of the whole log that the model was made from; feedback "
        "counts with the next model. An item without such an event never comes."
    ),
)
LATEST = Endpoint(
    "/v1/latest",
    "The k items that came last",
    ItemList,
    query=ListQuery,
    handler=lambda ranker, query: ranker.catalogue.latest(query),
    per_model=True,
    method="GET",
    description=(
        "An item comes with its first event in the log or, where the model does not know it, with its last "
        "PUT; the latest first. Of the log the last 1,000 are known; of a log without times none is."
    ),
)
READY = Endpoint(
    "/v2/health/ready", "Whether the model is loaded", Ready, handler="ready", method="GET", key="none"
)

CALLS: tuple[Endpoint[Any], ...] = (
    RANK,
    RECOMMEND,
    SIMILAR,
    FEEDBACK,
    BATCH_RANK,
    PUT_ITEM,
    ITEM,
    USER,
    POPULAR,
    LATEST,
    Endpoint(
        "/v2/health/live", "Whether the process answers", Live, handler="live", method="GET", key="none"
    ),
    READY,
    Endpoint(
        "/v2/models/{name}",
        "Name, versions and figures of the model",
        ModelDescription,
        handler="model",
        method="GET",
    ),
    Endpoint(
        "/v2/models/{name}/ready",
        "Whether calls of the model are answered; the first may have to load it",
        ModelReady,
        handler="model_ready",
        method="GET",
    ),
    Endpoint("/metrics", "Counts and times for Prometheus", str, handler="metrics", method="GET", media=TEXT),
    Endpoint("/openapi.json", "These calls for machines", None, handler="openapi", method="GET", key="none"),
    Endpoint("/docs", "These calls for people", None, handler="docs", method="GET", key="none", media=HTML),
    Endpoint("/", "A page to try it", None, handler="home", method="GET", key="none", media=HTML),
)
