"""Every source gives the same data set: formats, compression, folders, globs, URIs, feedback logs."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import redis

from app.data.dataset import Dataset
from app.data.stage import prepare
from app.events import Event
from app.recipe import parse
from app.stores.redis_store import RedisStore
from app.stores.sqlite_store import SqliteStore
from tests.redis_server import redis_server

ROWS = 400
Write = Callable[[pl.DataFrame, Path], str | list[str]]


def log() -> pl.DataFrame:
    """A log with integer ids, dirt of each kind that all formats can spell, and attributes."""
    rng = np.random.default_rng(7)
    user = pl.Series(rng.integers(0, 40, ROWS)).cast(pl.Int64)
    frame = pl.DataFrame(
        {
            "user": pl.select(pl.when(pl.Series(rng.random(ROWS) > 0.05)).then(user)).to_series(),
            "item": rng.integers(0, 30, ROWS),
            "timestamp": pl.Series(1_600_000_000 + rng.integers(0, 10**6, ROWS)),
            "event": rng.choice(["view", "buy", "hover"], ROWS),
            "value": np.round(rng.lognormal(1, 1, ROWS), 2),
        }
    )
    return pl.concat([frame, frame.head(20)])


def as_csv(frame: pl.DataFrame, folder: Path) -> str:
    frame.write_csv(folder / "log.csv")
    return str(folder / "log.csv")


def as_csv_gz(frame: pl.DataFrame, folder: Path) -> str:
    (folder / "log.csv.gz").write_bytes(gzip.compress(frame.write_csv().encode()))
    return str(folder / "log.csv.gz")


def as_jsonl(frame: pl.DataFrame, folder: Path) -> str:
    frame.write_ndjson(folder / "log.jsonl")
    return str(folder / "log.jsonl")


def as_jsonl_gz(frame: pl.DataFrame, folder: Path) -> str:
    (folder / "log.jsonl.gz").write_bytes(gzip.compress(frame.write_ndjson().encode()))
    return str(folder / "log.jsonl.gz")


def as_parquet(frame: pl.DataFrame, folder: Path) -> str:
    frame.write_parquet(folder / "log.parquet", row_group_size=100)
    return str(folder / "log.parquet")


def as_float_parquet(frame: pl.DataFrame, folder: Path) -> str:
    """Ids as floats, as pandas makes them of integers with gaps."""
    frame.with_columns(pl.col("user").cast(pl.Float64)).write_parquet(folder / "log.parquet")
    return str(folder / "log.parquet")


def as_typed_time(frame: pl.DataFrame, folder: Path) -> str:
    typed = frame.with_columns(pl.from_epoch("timestamp", time_unit="s"))
    typed.write_parquet(folder / "log.parquet")
    return str(folder / "log.parquet")


def as_text_time(frame: pl.DataFrame, folder: Path) -> str:
    text = pl.from_epoch("timestamp", time_unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return as_csv(frame.with_columns(text.alias("timestamp")), folder)


def as_folder(frame: pl.DataFrame, folder: Path) -> str:
    (folder / "log").mkdir()
    for start in range(0, len(frame), 100):
        frame[start : start + 100].write_csv(folder / "log" / f"part-{start:05d}.csv")
    (folder / "log" / "_SUCCESS").touch()
    return str(folder / "log")


def as_mixed_glob(frame: pl.DataFrame, folder: Path) -> str:
    """Integers in one file and text in the other: the ids must match."""
    frame[:200].write_parquet(folder / "day-1.parquet")
    frame[200:].with_columns(pl.col("user", "item").cast(pl.String)).write_csv(folder / "day-2.csv")
    return str(folder / "day-*")


def events_of(frame: pl.DataFrame) -> list[Event]:
    names = ("user", "item", "event", "timestamp", "value")
    return [
        Event("" if user is None else str(user), str(item), event, float(time), value)
        for user, item, event, time, value in frame.select(names).rows()
    ]


def as_store(frame: pl.DataFrame, folder: Path) -> str:
    store = SqliteStore(folder / "store")
    store.append(events_of(frame))
    store.close()
    return f"store:{folder / 'store'}"


def as_csv_and_store(frame: pl.DataFrame, folder: Path) -> list[str]:
    return [as_csv(frame[:200], folder), as_store(frame[200:], folder)]


def as_redis(frame: pl.DataFrame, folder: Path) -> str:
    """In the Redis of the test, emptied."""
    address = (folder / "redis").read_text()
    client = redis.Redis.from_url(address)
    client.flushall()
    client.close()
    store = RedisStore(address)
    store.append(events_of(frame))
    store.close()
    return address


def as_uri(frame: pl.DataFrame, folder: Path) -> str:
    return "file://" + as_parquet(frame, folder)


SOURCES = [
    as_csv, as_csv_gz, as_jsonl, as_jsonl_gz, as_parquet, as_float_parquet, as_typed_time, as_text_time,
    as_folder, as_mixed_glob, as_uri, as_store, as_csv_and_store, as_redis,
]  # fmt: skip


def rows_of(dataset: Dataset) -> dict[str, list[tuple[object, ...]]]:
    users, items = list(dataset.users), list(dataset.items)
    return {
        name: [
            (users[u], items[i], int(t), dataset.schema.events[e], round(float(v), 4), float(label))
            for u, i, t, e, v, label in zip(
                part.user, part.item, part.time, part.event, part.value, part.label, strict=True
            )
        ]
        for name, part in (("train", dataset.train), ("valid", dataset.valid), ("test", dataset.test))
    }


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def expected(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared_from(as_csv, tmp_path_factory.mktemp("expected"))


def prepared_from(write: Write, folder: Path) -> Dataset:
    events = write(log(), folder)
    recipe = parse(
        {
            "data": {
                "events": [events] if isinstance(events, str) else events,
                "event": "event",
                "value": "value",
                "event_types": ["view", "buy"],
                "duplicates": "key",
                "outliers": [{"column": "value"}],
            }
        },
        "test",
    )
    return Dataset.open(prepare(recipe, folder / "dataset").path)


def test_the_log_has_dirt_of_each_kind(expected: Dataset) -> None:
    figures = expected.artifact.figures
    assert set(figures["rejected"]) == {"missing_user", "unknown_event", "duplicate", "outlier"}
    assert figures["rows_kept"] + sum(figures["rejected"].values()) == figures["rows_in"] == ROWS + 20
    assert all(len(rows) > 20 for rows in rows_of(expected).values())


@pytest.mark.parametrize("write", SOURCES)
def test_same_events_same_data_set(
    write: Write, expected: Dataset, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if write is as_redis:
        (tmp_path / "redis").write_text(request.getfixturevalue("redis_url"))
    dataset = prepared_from(write, tmp_path)
    assert dataset.artifact.figures == expected.artifact.figures
    assert rows_of(dataset) == rows_of(expected)
    assert list(dataset.users) == list(expected.users)
    rejected = pl.concat(
        [pl.read_parquet(p) for p in (dataset.path / "rejected").iterdir()], how="diagonal_relaxed"
    )
    assert len(rejected) == sum(expected.artifact.figures["rejected"].values())
