"""Writes a feedback log as files: Parquet, CSV or JSON lines, by their endings.

    rayrec events runs/mine/bundle.store --out events.parquet --items items.parquet

Rows are streamed, so that memory does not grow with the log. Times are UTC.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from app.errors import RequestError, disk_errors
from app.events import Event, Value, microseconds
from app.files import replacing
from app.stores.read import CHUNK, StoredLog

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
Write = Callable[[list[Row]], None]
COLUMNS = ("user", "item", "event", "timestamp", "value", "variant")
ENDINGS = (".parquet", ".csv", ".jsonl")
ITEMS = 1000  # written in one go
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def export_events(
    location: str, out: Path, items: Path | None = None, *, chunk: int = CHUNK
) -> dict[str, Any]:
    """Write all events of a feedback log to a file, and the items that were put to another.

    Columns of events are user, item, event, timestamp, value and variant; of items, their id as
    item and every column that any of them has. A file that is there is replaced once all is well.

    Args:
        location: as StoredLog.open takes it.
        out: .parquet, .csv or .jsonl.
        items: the same, for the items; None: they are left out.
        chunk: events in memory at a time.

    Returns:
        `out`, `events` (how many), and `items`, `items_out` where they were asked for.

    Raises:
        RequestError: an ending is unknown, or a path is no file.
        DataError: the log cannot be read.
        MachineError: a file cannot be written.
    """
    _check(out, "--out")
    if items is not None:
        _check(items, "--items")
        if items.absolute() == out.absolute():
            raise RequestError("the same file as --out", where="--items", remedy="name another file")
    with StoredLog.open(location) as log:
        summary: dict[str, Any] = {"out": str(out), "events": _write_events(log, out, chunk)}
        if items is not None:
            summary |= {"items": _write_items(log, items), "items_out": str(items)}
    return summary


def _check(file: Path, option: str) -> None:
    if file.suffix.lower() not in ENDINGS or str(file) == "-":
        raise RequestError(
            f"{str(file)!r} is not a file of a known ending",
            where=option,
            remedy="name a file that ends in .parquet, .csv or .jsonl",
        )
    if file.exists() and not file.is_file():
        raise RequestError(f"{str(file)!r} is a folder or a device", where=option, remedy="name a file")


def _write_events(log: StoredLog, out: Path, chunk: int) -> int:
    count = 0
    with _writer(out, dict.fromkeys(COLUMNS, str) | {"timestamp": datetime, "value": float}) as write:
        for events in log.events(chunk):
            write([_row(event) for event in events])
            count += len(events)
    return count


def _row(event: Event) -> Row:
    moment = _EPOCH + timedelta(microseconds=microseconds(event.timestamp or 0.0))
    return dict(
        zip(COLUMNS, (*msgspec.structs.astuple(event)[:3], moment, event.value, event.variant), strict=True)
    )


def _write_items(log: StoredLog, out: Path) -> int:
    kinds = {"item": str, **_kinds(log)}
    count = 0
    with _writer(out, kinds) as write:
        rows: list[Row] = []
        for item, columns in log.items():
            rows.append({**columns, "item": item})
            count += 1
            if len(rows) == ITEMS:
                write(rows)
                rows = []
        write(rows)
    return count


def _kinds(log: StoredLog) -> dict[str, type]:
    """The type of each column: bool, int or float where all of its values are such, else str."""
    types: dict[str, set[type]] = {}
    for _, columns in log.items():
        for name, value in columns.items():
            large = isinstance(value, int) and abs(value) >= 1 << 63  # too large for a column of integers
            types.setdefault(name, set()).update(() if value is None else (float if large else type(value),))
    numbers = {frozenset({bool}): bool, frozenset({int}): int}
    return {
        name: numbers.get(frozenset(kinds)) or (float if kinds and kinds <= {int, float} else str)
        for name, kinds in types.items()
    }


@contextmanager
def _writer(out: Path, kinds: dict[str, type]) -> Iterator[Write]:
    """Yields what appends rows to a new file, which replaces `out` when the block ends well."""
    with disk_errors(str(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out, durable=True) as file:
            if out.suffix.lower() == ".parquet":
                with _parquet(file, kinds) as write:
                    yield write
            else:
                with file.open("w", newline="", encoding="utf-8") as text:
                    yield _csv(text, kinds) if out.suffix.lower() == ".csv" else _json_lines(text)


def _csv(file: TextIO, kinds: dict[str, type]) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(kinds)
    return lambda rows: writer.writerows([[text_of(row.get(name)) for name in kinds] for row in rows])


def _json_lines(file: TextIO) -> Write:
    encode = msgspec.json.Encoder(enc_hook=text_of).encode_lines

    def write(rows: list[Row]) -> None:
        moments = (
            {**row, "timestamp": text_of(row["timestamp"])} if "timestamp" in row else row for row in rows
        )
        file.write(encode(moments).decode())

    return write


@contextmanager
def _parquet(file: Path, kinds: dict[str, type]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[type, pa.DataType] = {
        str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(),
        datetime: pa.timestamp("us", "UTC"),
    }  # fmt: skip
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    with pq.ParquetWriter(file, schema) as writer:

        def write(rows: Iterable[Row]) -> None:
            columns = [[_cell(row.get(name), kind) for row in rows] for name, kind in kinds.items()]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))

        yield write


def _cell(value: Value | datetime, kind: type) -> Value | datetime:
    """A value as its column in Parquet takes it."""
    return text_of(value) if kind is str and value is not None and not isinstance(value, str) else value


def text_of(value: Value | datetime) -> str:
    """A value as text: times in ISO 8601 without a zone, which reads as UTC; lists joined by |."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(timespec="microseconds")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "|".join(text_of(part) for part in value)
    return str(value)
