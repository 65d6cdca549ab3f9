"""Bad input: one short message with place, value and remedy, and nothing half-written."""

from __future__ import annotations

import gzip
import importlib
import resource
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.data.dataset import Dataset
from app.data.stage import check, prepare
from app.errors import DataError, MachineError, RecipeError, UserError
from app.recipe import parse

pytestmark = pytest.mark.usefixtures("ray_local")
GOOD = "user,item,timestamp\na,x,1\na,y,2\n"


def run(folder: Path, name: str, content: bytes | str, **data: Any) -> Dataset:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    recipe = parse({"data": {"events": [str(path)], **data}, "split": {"valid": 0, "test": 0}}, "test")
    return Dataset.open(prepare(recipe, folder / "out").path)


def parquet(folder: Path) -> bytes:
    frame = pl.DataFrame({"user": ["a"] * 500, "item": [str(n) for n in range(500)], "timestamp": [1] * 500})
    frame.write_parquet(folder / "log.parquet")
    return (folder / "log.parquet").read_bytes()


CASES: list[tuple[str, Any, str]] = [
    ("log.csv", "", "empty (0 bytes)"),
    ("log.csv", "user,item,timestamp\n", "a header and no rows"),
    ("log.csv", "\n \n", "empty"),
    ("log.csv", "user,item,item,timestamp\na,b,c,1\n", "two columns are named 'item'"),
    ("log.csv", "a,x,1\nb,y,2\n", 'name its columns in their order: data.columns = ["column1", "column2", '),
    ("log.csv", "usr,item,timestamp\na,b,1\n", "did you mean 'usr'?"),
    ("log.csv", b"user,item,timestamp\na,caf\xe9,1\n", "byte 0xe9 at offset 25 is not utf-8"),
    ("log.csv", b"user,item,timestamp\na,caf\xe9,1\n", "line 2"),
    ("log.jsonl", b'{"user": "a", "item": "caf\xe9", "timestamp": 1}\n', "offset 26 is not utf-8"),
    ("log.csv", gzip.compress(GOOD.encode()), "holds gzip-compressed data"),
    ("log.csv", '{"user": "a"}\n', "holds JSON lines"),
    ("log.csv", b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
    ("log.csv.gz", GOOD, "holds text that starts with 'user,item"),
    ("log.csv.gz", gzip.compress(GOOD.encode() * 500)[:-30], "truncated gzip"),
    ("log.json", '[{"user": "a", "item": "x", "timestamp": 1}', "the JSON array is truncated"),
    ("log.json", '{\n"user": "a"\n}', "none of its first lines is a JSON object"),
    ("log.bin", b"\0\1\2", "its ending does not say"),
    ("log.jsonl", GOOD, "holds text that starts with 'user,item"),
    ("log.parquet", GOOD, "should be Parquet"),
    ("log.csv", "user,item,timestamp\na,b,never\n", "no events are left of 1 rows (bad_time 1"),
    ("log.csv", "user,item,timestamp\na,b,never\n", "timestamp = 'never'"),
]


@pytest.mark.parametrize(("name", "content", "message"), CASES)
def test_unusable_files(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, name, content)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    assert caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_parquet_named_csv_and_truncated(tmp_path: Path) -> None:
    whole = parquet(tmp_path)
    with pytest.raises(DataError, match="holds Parquet"):
        run(tmp_path, "log.csv", whole)
    with pytest.raises(DataError, match="truncated"):
        run(tmp_path, "log.parquet", whole[: len(whole) // 2])
    damaged = whole[:-50] + b"\xff" * 40 + whole[-10:]
    with pytest.raises(DataError, match="damaged"):
        run(tmp_path, "log.parquet", damaged)


def test_absent_files_name_the_key(tmp_path: Path) -> None:
    for events in (["nowhere.csv"], ["no*.csv"], []):
        content = {"data": {"events": [str(tmp_path / e) for e in events]}}
        with pytest.raises(DataError, match=r"data\.events"):
            check(parse(content, "test"))


def test_another_encoding_reads_with_the_key_set(tmp_path: Path) -> None:
    content = "user,item,timestamp\na,café,1\n"
    for number, encoding in enumerate(["latin-1", "utf-16", "utf-8-sig"]):
        (tmp_path / str(number)).mkdir()
        dataset = run(tmp_path / str(number), "log.csv", content.encode(encoding), encoding=encoding)
        assert list(dataset.items) == ["", "café"]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert list(run(tmp_path, "log.csv", "\ufeff" + GOOD).users) == ["", "a"]


def test_a_column_of_mixed_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "user,item,timestamp,value\na,x,1,3\na,y,2,three\na,z,3,4\n"
    figures = run(tmp_path, "log.csv", few, value="value").artifact.figures
    assert figures["rejected"] == {"missing_value": 1}
    assert "row 2: value = 'three' is not a number" in capsys.readouterr().err
    most = few + "a,v,4,four\na,w,5,five\n"
    with pytest.raises(DataError, match="row 2: value = 'three' is not a number, nor are most"):
        run(tmp_path, "more.csv", most, value="value")


def test_mixed_types_and_bad_lines_in_json(tmp_path: Path) -> None:
    lines = [
        '{"user": 1, "item": "x", "timestamp": 1, "value": NaN}',
        '{"user": "1", "item": 5, "timestamp": "2020-01-01", "value": 2}',
        '{"user": 1.0, "item": null, "timestamp": 1}',
        '{"user": 1, "item"',
        '["user"]',
        '{"user": "\\ud800", "item": "x", "timestamp": 1}',
        '{"user": true, "item": {"id": 3}, "timestamp": 3, "value": 1, "extra": [1, 2]}',
    ]
    dataset = run(tmp_path, "log.jsonl", "\n".join(lines), value="value")
    assert dataset.artifact.figures["rejected"] == {"unreadable": 3, "missing_item": 1, "missing_value": 1}
    assert sorted(dataset.users) == ["", "1", "true"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"where": "price > 1"}, "no such column, 'price'"),
        ({"latest": "yesterday"}, "'yesterday' is not an ISO 8601 time"),
        ({"missing": {"user": "median"}}, "choose one of drop"),
        ({"missing": {"value": "constant:x"}, "value": "value"}, "'x' is no number"),
        ({"positive": ["buy"]}, "there is no data.event column"),
        (
            {"event": "value", "event_types": ["view"], "positive": ["buy"]},
            "'buy' is not in data.event_types",
        ),
        ({"delimiter": "||"}, "set data.delimiter = ','"),
        ({"encoding": "utf-99"}, "unknown encoding 'utf-99'"),
        ({"item_columns": ["colour"]}, "no column 'colour' (data.item_columns)"),
        ({"outliers": [{"column": "prize"}]}, "no column 'prize' (data.outliers)"),
    ],
)
def test_recipes_at_odds_with_the_files(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, "log.csv", "user,item,timestamp,value\na,b,1,1\n", **data)
    assert message in str(caught.value)
    assert isinstance(caught.value, RecipeError | DataError)


def test_no_events_after_cleaning_shows_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no events are left of 2 rows \(core 2\)"):
        run(tmp_path, "log.csv", GOOD, min_user_events=5)


def test_more_event_types_than_a_byte_holds(tmp_path: Path) -> None:
    rows = "".join(f"a,x,{n},kind{n}\n" for n in range(300))
    with pytest.raises(DataError, match="300 event types"):
        run(tmp_path, "log.csv", "user,item,timestamp,event\n" + rows, event="event")


def test_quotes_that_span_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The range that starts within quotes sees an odd number of them, and the file is read whole."""
    import app.data.input.source as sources

    monkeypatch.setattr(sources, "SPLIT_BYTES", 2000)
    rows = [f'u{n % 9},"item\n{n % 7}",{n}' for n in range(1000)]
    path = tmp_path / "log.csv"
    path.write_text("user,item,timestamp\n" + "\n".join(rows) + "\n")
    recipe = parse({"data": {"events": [str(path)]}}, "test")
    source = sources.describe(str(path), recipe.data)
    ranges = [path.read_bytes()[s.start : s.end] for s in sources.cut(source, 0)]
    assert len(ranges) > 3
    assert any(r.count(b'"') % 2 for r in ranges)
    dataset = Dataset.open(prepare(recipe, tmp_path / "out").path)
    assert dataset.artifact.figures["rows_kept"] == dataset.artifact.figures["rows_in"] == 1000
    assert sorted(dataset.items) == ["", *(f"item\n{n}" for n in range(7))]


def test_splits_agree_with_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import app.data.input.source as sources

    rows = [f"u{n % 9},i{n % 70},{n}" if n % 13 else f",i{n},{n}" for n in range(3000)]
    rows[100] = rows[2500] = "torn"
    content = "user,item,timestamp\n" + "\n".join(rows)
    results = []
    for size in (1 << 20, 3000):
        monkeypatch.setattr(sources, "SPLIT_BYTES", size)
        (tmp_path / str(size)).mkdir()
        dataset = run(tmp_path / str(size), "log.csv", content)
        frames = [pl.read_parquet(p) for p in sorted((dataset.path / "rejected").iterdir())]
        put_aside = pl.concat(frames).select("_row", "_reason").rows()
        results.append((dataset.artifact.figures, dataset.train.time.tolist(), put_aside))
    assert len(frames) > 5
    assert results[0] == results[1]
    assert (101, "unreadable") in results[0][2]


@pytest.mark.parametrize(
    ("module", "phase"),
    [
        ("prepare.ingest", "partition"),
        ("prepare.buckets", "dedupe_sort"),
        ("prepare.buckets", "finalize"),
        ("stage", "put_aside"),
    ],
)
def test_a_full_disk_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, phase: str
) -> None:
    """A task may not let a file grow beyond 4 kB; the kernel and numpy tell it as a disk's end."""
    rows = "".join(f"u{n},i{n},{n}\n,i{n},unlike{n * n}\n" for n in range(5_000))
    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + rows)
    recipe = parse({"data": {"events": [str(tmp_path / "log.csv")]}}, "test")
    target = importlib.import_module(f"app.data.{module}")
    work = getattr(target, phase)

    def choked(*arguments: Any) -> Any:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            return work(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(target, phase, choked)
    with pytest.raises(MachineError, match=r"disk is full.*(File too large|requested and)") as caught:
        prepare(recipe, tmp_path / "out")
    assert "nothing was published" in caught.value.remedy
    assert caught.value.where == str(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]
