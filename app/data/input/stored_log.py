"""A stored feedback log as a source of events: `store:FOLDER`, `redis://…` or `rediss://…`.

A log is copied once, as it is when preparation begins, to a Parquet file that is read like any other
source: so all tasks see the same events, whatever a service adds meanwhile, and need no access to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.data.input.form.form import Form
from app.data.input.source import Source
from app.data.values.text import normal_ids
from app.events import Event, Value
from app.recipe import Data
from app.stores.open import is_redis
from app.stores.read import PREFIX, StoredLog

_LATEST = (1 << 63) - 1
_TIME = pa.timestamp("us", tz="UTC")


def is_log(entry: str) -> bool:
    """Whether an entry of `data.events` names a feedback log and not files."""
    return entry.startswith(PREFIX) or is_redis(entry)


def digest_of_log(entry: str) -> tuple[str, str]:
    """Location, without a password, and digest of the content of a log.

    Raises:
        DataError: there is no log, or it cannot be read.
    """
    with StoredLog.open(entry) as log:
        return log.location, log.digest()


def copy_log(entry: str, target: Path, data: Data) -> tuple[Source, pl.DataFrame]:
    """Copy a log to the Parquet file `target`; memory is bounded by a chunk of events, and the items.

    Columns are named as the recipe names them, so that cleaning sees a file of the recipe; roles that
    the recipe does not name are left out, and so is the model's version that a user met. An event
    without a value has 1, as in a file without that column, unless `data.missing` says what to do.

    Returns:
        The source, and the items that PUT /v1/items stored: id and columns as text, one row an id.

    Raises:
        DataError: there is no log, it is damaged, or of a newer version.
    """
    schema = _schema(data)
    with StoredLog.open(entry) as log:
        with pq.ParquetWriter(target, schema) as writer:
            for events in log.events():
                writer.write_table(_table(events, data, schema))
        items = _frame(dict(log.items()))
        form = Form("parquet", columns=tuple(schema.names))
        source = Source(log.location, target.stat().st_size, form, copy=str(target))
    return source, items


def _schema(data: Data) -> pa.Schema:
    roles = {
        data.user: pa.large_string(),
        data.item: pa.large_string(),
        data.timestamp: _TIME,
        data.event: pa.large_string(),
        data.value: pa.float64(),
    }
    return pa.schema([(column, kind) for column, kind in roles.items() if column])


def _table(events: Sequence[Event], data: Data, schema: pa.Schema) -> pa.Table:
    absent = None if data.value in data.missing else 1.0
    columns = {
        data.user: [event.user for event in events],
        data.item: [event.item for event in events],
        data.timestamp: [_microseconds(event) for event in events],
        data.event: [event.event for event in events],
        data.value: [absent if event.value is None else event.value for event in events],
    }
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names})


def _microseconds(event: Event) -> int:
    """The time of an event; what no 64 bits hold is as late as can be, which cleaning rejects."""
    return int(max(-_LATEST, min(_LATEST, round(float(event.timestamp or 0) * 1e6))))


def _frame(items: dict[str, dict[str, Value]]) -> pl.DataFrame:
    names = {name: None for columns in items.values() for name in columns if name != "id"}
    texts = {
        name: pl.Series([_text(columns.get(name)) for columns in items.values()], dtype=pl.String)
        for name in names
    }
    ids = normal_ids(pl.Series(list(items), dtype=pl.String))
    return pl.DataFrame({"id": ids, **texts}).drop_nulls("id").unique("id", keep="last", maintain_order=True)


def _text(value: Value) -> str | None:
    """A value of JSON as `text_of` gives it for a column of a file."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, list):
        return "|".join(text for part in value if (text := _text(part)) is not None) or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None
