"""Exported events and items read back as they were stored, from SQLite and Redis, in every format."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from app.cli import app
from app.errors import DataError, RequestError
from app.events import Event, Value
from app.stores.base import ItemRecord
from app.stores.export import export_events
from app.stores.open import open_store
from app.stores.read import StoredLog
from app.stores.sqlite_store import SqliteStore
from tests.redis_server import redis_server

EVENTS = [
    Event("u1", "a", "view", 1_700_000_000.123457, None, "v1@2"),
    Event("ü, \"x\"\n", " b|c ", "", 0.0, -2.5),
    Event("u1", "a", "buy", 5.0, 1e300, "v2"),
]  # fmt: skip
ITEMS: dict[str, dict[str, Value]] = {
    "a": {"price": 12.5, "tags": ["x", "y"], "on_sale": True, "code": 7},
    "b, \n": {"price": None, "code": "7b", "name": "é"},
    "c": {},
}


@pytest.fixture(params=["sqlite", "redis"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a log with EVENTS and ITEMS."""
    if request.param == "redis":
        with redis_server(tmp_path / "redis") as url:
            yield fill(url)
    else:
        yield fill(str(tmp_path / "bundle.store"))


def fill(location: str) -> str:
    store = open_store(location)
    store.append(EVENTS)
    for item, columns in ITEMS.items():
        store.put_item(item, msgspec.json.encode(ItemRecord(columns, ["d"])))
    store.close()
    return location


def rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def event(row: dict[str, Any]) -> Event:
    assert list(row) == ["user", "item", "event", "timestamp", "value", "variant"]
    moment = row["timestamp"]
    moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    value = None if row["value"] in (None, "") else float(row["value"])
    return Event(row["user"], row["item"], row["event"], seconds, value, row["variant"])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_exported_events_read_back_as_those_stored(location: str, suffix: str, tmp_path: Path) -> None:
    out, items = tmp_path / "new" / f"events{suffix}", tmp_path / f"items{suffix}"
    summary = export_events(location, out, items)
    assert summary == {"out": str(out), "events": 3, "items": 3, "items_out": str(items)}
    assert [event(row) for row in rows(out)] == EVENTS
    exported = rows(items)
    assert [row["item"] for row in exported] == list(ITEMS)
    if suffix == ".jsonl":
        assert {row.pop("item"): row for row in exported} == ITEMS
    elif suffix == ".csv":
        assert exported[0] == {
            "item": "a", "price": "12.5", "tags": "x|y", "on_sale": "true", "code": "7", "name": ""
        }  # fmt: skip
    else:
        assert exported[0] == {
            "item": "a", "price": 12.5, "tags": "x|y", "on_sale": True, "code": "7", "name": None
        }  # fmt: skip


def test_a_log_without_events_or_items_gives_files_with_a_header(tmp_path: Path) -> None:
    SqliteStore(tmp_path).close()
    for suffix in (".parquet", ".csv", ".jsonl"):
        out, items = tmp_path / f"e{suffix}", tmp_path / f"i{suffix}"
        assert export_events(str(tmp_path), out, items)["events"] == 0
        assert rows(out) == rows(items) == []
    assert pq.read_schema(tmp_path / "e.parquet").names[:2] == ["user", "item"]
    assert (tmp_path / "i.csv").read_text().split() == ["item"]


def test_the_types_of_a_parquet_file(tmp_path: Path) -> None:
    fill(str(tmp_path))
    export_events(str(tmp_path), tmp_path / "e.parquet", tmp_path / "i.parquet")
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert schema.field("timestamp").type == pa.timestamp("us", "UTC")
    assert schema.field("value").type == pa.float64()
    types = {field.name: field.type for field in pq.read_schema(tmp_path / "i.parquet")}
    assert types == {
        "item": pa.string(), "price": pa.float64(), "tags": pa.string(), "on_sale": pa.bool_(),
        "code": pa.string(), "name": pa.string(),
    }  # fmt: skip


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "events.xlsx", "events"])
def test_what_is_no_file_of_events_is_refused(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(str(tmp_path / "store"))
    with pytest.raises(RequestError, match=r"--out.*\.parquet, \.csv or \.jsonl"):
        export_events(str(tmp_path / "store"), Path(out))
    with pytest.raises(RequestError, match="--items"):
        export_events(str(tmp_path / "store"), Path("e.csv"), Path("e.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RequestError, match="folder"):
        export_events(str(tmp_path / "store"), Path("folder.csv"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.csv", "store"]


def test_a_log_that_breaks_off_leaves_no_file_and_the_old_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path / "store"))
    out = tmp_path / "out" / "events.csv"
    out.parent.mkdir()
    out.write_text("old")

    def broken(*_: object) -> Iterator[list[Event]]:
        yield EVENTS
        raise DataError("damaged", where="log")

    monkeypatch.setattr(StoredLog, "events", broken)
    with pytest.raises(DataError):
        export_events(str(tmp_path / "store"), out)
    assert out.read_text() == "old"
    assert list(out.parent.iterdir()) == [out]


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    peaks = []
    for _ in range(2):
        store.append([Event(f"user{n}", f"item{n}", "view", float(n)) for n in range(6_000)])
        tracemalloc.start()
        export_events(str(tmp_path), tmp_path / "events.csv", chunk=500)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    store.close()
    assert peaks[1] < 1.3 * peaks[0] < 4 << 20


def test_the_verb(tmp_path: Path) -> None:
    fill(str(tmp_path / "bundle.store"))
    runner, out = CliRunner(), tmp_path / "events.jsonl"
    result = runner.invoke(app, ["events", f"store:{tmp_path / 'bundle.store'}", "--out", str(out), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"out": str(out), "events": 3}
    assert [event(row) for row in rows(out)] == EVENTS
