"""[data] and [split]: the input, what its columns mean, how it is cleaned and divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.recipe.section import Count, Fraction, Positive, Section, length_of_time_us

MISSING_WORDS = ("nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL", "None", "\\N")
FormatName = Literal["auto", "csv", "jsonl", "json", "parquet"]
Layout = Literal["events", "lists", "impressions"]
_FORMAT = (
    "auto: by ending and content; csv: text with fields; jsonl: a JSON object a line; json: an array of"
    " objects; parquet"
)
_DELIMITER = "text between the fields of a line, e.g. ',' or '::'; empty: found from the first lines"
_ENCODING = "encoding of the text, e.g. 'latin-1'; empty: utf-8, or what its byte order mark says"
_QUOTE = "'\"': quotes enclose fields; '': they are letters; auto: they enclose where they close properly"
_LAYOUT = (
    "events: a row is an event; lists: a row lists the items of a user, basket or session in their order;"
    " impressions: a row lists the items shown, ITEM-1 clicked and ITEM-0 not, which become events 'click'"
    " and 'impression'"
)


class Outlier(Section):
    """A rule for a numeric column: values beyond the bounds of its training rows are dropped or clipped."""

    column: str = Field(description="numeric column that the rule is about")
    method: Literal["iqr", "zscore"] = Field(
        "iqr", description="iqr: bounds around the quartiles; zscore: around the mean"
    )
    threshold: float = Field(
        3.0, gt=0, description="width of the bounds, in interquartile ranges or standard deviations"
    )
    action: Literal["drop", "clip"] = Field(
        "drop", description="drop: reject the row; clip: move the value to the bound"
    )


class AttributeFile(Section):
    """Files of item or user attributes, a row for each id."""

    files: list[str] = Field(description="files, folders, globs or URIs")
    id: str = Field(description="column that holds the id")
    columns: list[str] = Field(default=[], description="columns to read as attributes; empty: all")
    format: FormatName = Field("auto", description=_FORMAT)
    delimiter: str = Field("", description=_DELIMITER)
    encoding: str = Field("", description=_ENCODING)
    quote: Literal["auto", '"', ""] = Field("auto", description=_QUOTE)
    header: list[str] = Field(
        default=[], description="names of all columns, for files without a header; empty: the first line's"
    )


class EventSource(Section):
    """Event files whose form, columns or event type are not those of [data]."""

    files: list[str] = Field(description="files, folders, globs or URIs")
    event: str = Field("", description="type of all their events; empty: event_column says it")
    format: FormatName = Field("auto", description=_FORMAT)
    delimiter: str = Field("", description=_DELIMITER)
    encoding: str = Field("", description=_ENCODING)
    quote: Literal["auto", '"', ""] = Field("auto", description=_QUOTE)
    columns: list[str] = Field(
        default=[], description="names of all columns, for files without a header; empty: the first line's"
    )
    layout: Layout = Field("events", description=_LAYOUT)
    user: str = Field("", description="their column of the user id; empty: that of [data]")
    item: str = Field("", description="their column of the item id; empty: that of [data]")
    timestamp: str | list[str] = Field("", description="their column of the time; empty: that of [data]")
    value: str = Field("", description="their column of the value; empty: that of [data]")
    event_column: str = Field("", description="their column of the event type; empty: that of [data]")


class Data(Section):
    """Where the events are, what their columns mean, and how they are cleaned."""

    events: list[str] = Field(
        default=[],
        description="files, folders, globs or URIs of events, or feedback (store:FOLDER, redis://HOST)",
    )
    sources: list[EventSource] = Field(
        default=[], description="further event files with a form, columns or event type of their own"
    )
    format: FormatName = Field("auto", description=_FORMAT)
    delimiter: str = Field("", description=_DELIMITER)
    encoding: str = Field("", description=_ENCODING)
    quote: Literal["auto", '"', ""] = Field("auto", description=_QUOTE)
    columns: list[str] = Field(
        default=[], description="names of all columns, for files without a header; empty: the first line's"
    )
    layout: Layout = Field("events", description=_LAYOUT)
    user: str = Field("user", description="column of the user id")
    item: str = Field("item", description="column of the item id")
    timestamp: str | list[str] = Field(
        "timestamp",
        description="column of the time; empty: there is none; a list of columns: the first holds the time,"
        " the others order events within it (numbers, times, or times of day, which add to a date)",
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="unit of numeric times since 1970; auto: by their size"
    )
    time_format: str = Field(
        "",
        description='strptime pattern of times, e.g. "%d/%m/%Y %H:%M"; empty: ISO 8601 and spellings that'
        " name the month or have the year first (of 1/2/2024 nobody knows the month)",
    )
    session_gap: str = Field(
        "",
        description='pause between two events of a user after which a new session begins: "30m", "1h", "1d"'
        " (s, m, h, d); empty: there are no sessions",
    )
    sessions: Literal["users", "feature"] = Field(
        "users",
        description="what session_gap gives: users: each session counts as a user of its own, USER/NUMBER;"
        ' feature: users stay, and features.context may have "session"',
    )
    decimal: Literal[".", ","] = Field(
        ".",
        description='what stands before the decimals of numbers in text: "." or "," (then 1.234,5 is 1234.5)',
    )
    missing_words: list[str] = Field(
        default=list(MISSING_WORDS),
        description="texts that mean that a value is missing, in every column, to the letter; empty text"
        " always does",
    )
    event: str = Field("", description="column of the event type; empty: all events are alike")
    value: str = Field("", description="column of a number: rating, quantity, seconds; empty: 1")
    row_order: bool = Field(
        False,
        description="without timestamp: whether rows stand in the order in which things happened;"
        " true or false (then a user's events are a set without an order)",
    )
    ties: Literal["auto", "none", "order"] = Field(
        "auto",
        description="events of one user and one moment, such as a basket or the ratings of a day; none: none"
        " comes before another, so that each is learned and evaluated from what was earlier; order: they"
        " happened in the order of further columns in timestamp, then of the rows; auto: order where there"
        " are such columns, or a single moment, else none. A request to the service comes after every event"
        " that it sees",
    )
    event_types: list[str] = Field(default=[], description="known event types; empty: all are known")
    positive: list[str] = Field(default=[], description="event types to predict; empty: all")
    positive_above: float | None = Field(
        None,
        description="events whose value is above it are to predict, the others are history; a number,"
        " or absent: the value does not matter",
    )
    where: str = Field("", description="rows to keep, e.g. \"Quantity > 0 and not InvoiceNo like 'C%'\"")
    missing: dict[str, str] = Field(
        default={},
        description="what becomes of missing values: column = 'drop', 'median', 'category' or 'constant:X'",
    )
    duplicates: Literal["keep", "exact", "key"] = Field(
        "exact",
        description="exact: rows equal in all columns count once; key: rows equal in duplicate_key do",
    )
    duplicate_key: list[str] = Field(
        default=[], description="columns of duplicates = 'key'; empty: user, item, event, timestamp"
    )
    outliers: list[Outlier] = Field(default=[], description="rules for values beyond bounds, see below")
    earliest: str = Field("", description="earlier events are rejected (ISO 8601); empty: none are")
    latest: str = Field("", description="later events are rejected (ISO 8601); empty: those after now")
    min_user_events: Positive = Field(1, description="users with fewer training events are left out")
    min_item_events: Positive = Field(1, description="items with fewer training events are left out")
    item_columns: list[str] = Field(default=[], description="columns of the event files that describe items")
    user_columns: list[str] = Field(default=[], description="columns of the event files that describe users")
    items: AttributeFile | None = Field(None, description="files of item attributes, see below")
    users: AttributeFile | None = Field(None, description="files of user attributes, see below")
    buckets: Count = Field(
        0, description="parts by user that are prepared one at a time; 0: by the size of the input"
    )

    @model_validator(mode="before")
    @classmethod
    def _types_of_files(cls, content: Any) -> Any:
        """Name the column of the event type where files or impressions say it; of these predict clicks."""
        if not isinstance(content, Mapping):
            return content
        sources = [s.model_dump() if isinstance(s, EventSource) else s for s in content.get("sources") or ()]
        tables = [content, *(s for s in sources if isinstance(s, Mapping))]
        shown = any(table.get("layout") == "impressions" for table in tables)
        types = [table["event"] for table in tables[1:] if table.get("event")]
        implied: dict[str, Any] = {"event": "event"} if shown or types else {}
        implied |= {"positive": ["click", *types]} if shown else {}
        return {**content, **{key: value for key, value in implied.items() if not content.get(key)}}

    @property
    def timed(self) -> bool:
        """Whether events have a time."""
        return bool(self.time_columns)

    @property
    def time_columns(self) -> list[str]:
        """Columns of the time: the first holds it, the others order events within it; [] without times."""
        columns = [self.timestamp] if isinstance(self.timestamp, str) else self.timestamp
        return [column for column in columns if column]

    def settled_ties(self, *, moments: bool) -> Literal["none", "order"]:
        """What `ties` means for a log with different moments, or for one without."""
        if self.ties != "auto":
            return self.ties
        return "none" if moments and len(self.time_columns) < 2 else "order"

    @property
    def session_gap_us(self) -> int:
        """The pause after which a new session begins, in microseconds; 0 where there are no sessions."""
        return length_of_time_us(self.session_gap) if self.session_gap else 0

    @field_validator("session_gap")
    @classmethod
    def _length_of_time(cls, text: str) -> str:
        if text and not length_of_time_us(text):
            raise PydanticCustomError("length", "no pause at all: write a longer one")
        return text

    @property
    def ordered(self) -> bool:
        """Whether the events of a user have an order: by time, or by row where the recipe says so."""
        return self.timed or self.row_order


class Split(Section):
    """Which events train, which validate, which test."""

    method: Literal["auto", "leave_last", "leave_random", "time", "user", "random", "kfold", "given"] = Field(
        "auto",
        description="leave_last: each user's last event tests, the one before validates; leave_random: one"
        " event of each user, drawn at random, tests, another validates; auto: leave_last where events have"
        " an order, else leave_random; time, user, random, kfold: by moment, user, row or fold; given: files",
    )
    valid: Fraction = Field(
        0.1, description="validation share: of events (time, random) or users (user); 0: no such part"
    )
    test: Fraction = Field(
        0.1, description="test share: of events (time, random) or users (user); 0: no such part"
    )
    valid_days: float = Field(0, ge=0, description="time: days of the validation part; 0: by share")
    test_days: float = Field(0, ge=0, description="time: days of the test part; 0: by share")
    folds: int = Field(5, ge=2, description="kfold: number of parts")
    fold: Count = Field(
        0,
        description="kfold: the fold that tests, from 0; the next one validates; user: which share of the"
        " users tests, from 0",
    )
    test_events: list[str] = Field(default=[], description="given: test files with the columns of [data]")
    negatives: str = Field("", description="given: column of the test files that lists negative items")
    new_items_only: bool = Field(False, description="test only pairs that training has not seen")

    def settled(self, ordered: bool) -> Split:
        """The split with the method that "auto" stands for, in a log whose events have an order or not."""
        if self.method != "auto":
            return self
        return self.model_copy(update={"method": "leave_last" if ordered else "leave_random"})
