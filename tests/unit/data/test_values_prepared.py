"""From files to a data set: the value that a person would read, or a word about it."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.data.dataset import Dataset
from app.data.stage import check, prepare
from app.errors import DataError, RecipeError, UserError
from app.recipe import Recipe, parse

pytestmark = pytest.mark.usefixtures("ray_local")
LARGE = 2**53


def recipe_of(path: Path, features: dict[str, Any] | None = None, **data: Any) -> Recipe:
    content = {"data": {"events": [str(path)], **data}, "split": {"valid": 0, "test": 0}}
    return parse(content | {"features": features or {}}, "test")


def written(folder: Path, log: str | pa.Table | pl.DataFrame, name: str = "log") -> Path:
    folder.mkdir(exist_ok=True)
    if isinstance(log, str):
        path = folder / f"{name}.csv"
        path.write_text(log)
        return path
    path = folder / f"{name}.parquet"
    pq.write_table(log if isinstance(log, pa.Table) else log.to_arrow(), path)
    return path


def run(folder: Path, log: str | pa.Table | pl.DataFrame, **data: Any) -> Dataset:
    """The data set at `folder`/out; `data` may have `features` beside keys of [data]."""
    return Dataset.open(prepare(recipe_of(written(folder, log), **data), folder / "out").path)


def raw(dataset: Dataset, column: str) -> dict[str, Any]:
    """Item -> its attribute."""
    values = pl.read_parquet(dataset.path / "columns" / "items.parquet")[column].to_list()
    return dict(zip(list(dataset.items)[1:], values[1:], strict=True))


def events(dataset: Dataset, user: str) -> list[str]:
    """The items of a user in their order."""
    row = list(dataset.users).index(user)
    indptr = dataset.train.indptr
    return [dataset.items[item] for item in dataset.train.item[indptr[row] : indptr[row + 1]]]


def times(dataset: Dataset) -> list[datetime]:
    return sorted(datetime(1970, 1, 1) + timedelta(microseconds=t) for t in dataset.train.time.tolist())


@pytest.mark.parametrize(
    "kind", [pa.decimal128(38, 0), pa.decimal128(38, 2), pa.decimal256(60, 2), pa.int64()]
)
def test_ids_that_are_numbers_stay_apart(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array([Decimal(LARGE), Decimal(LARGE + 1)] * 2, pa.decimal128(38, 0)).cast(kind)
    table = pa.table(
        {"user": ids, "item": ids, "timestamp": pa.array([20240131, 20240201, 20240202, 20240203])}
    )
    dataset = run(tmp_path, table, where=f"item in [{LARGE}, {LARGE + 1}]")
    assert sorted(dataset.users) == ["", str(LARGE), str(LARGE + 1)]
    assert list(dataset.items) == ["", str(LARGE), str(LARGE + 1)]
    assert {t.year for t in times(dataset)} == {2024}


def test_dictionary_columns_are_the_values_that_they_stand_for(tmp_path: Path) -> None:
    texts = {
        "user": ["a", "a", "b", None],
        "item": ["x", "y", "x", "x"],
        "timestamp": ["2024-01-31", "20240201", "2024-02-02", "2024-02-03"],
        "event": ["view", "buy", "view", "view"],
        "value": ["1.5", "2", "3", "4"],
        "colour": ["red", "blue", "red", "red"],
        "kind": ["k", "k", "k", "k"],
    }
    table = pa.table({name: pa.array(column).dictionary_encode() for name, column in texts.items()})
    dataset = run(
        tmp_path,
        table,
        event="event",
        value="value",
        item_columns=["colour"],
        where="kind = 'k' and value < 4",
    )
    assert dataset.artifact.figures["rejected"] == {"missing_user": 1}
    assert sorted(dataset.users) == ["", "a", "b"]
    assert dataset.schema.events == ["", "buy", "view"]
    assert sorted(dataset.train.value.tolist()) == [1.5, 2, 3]
    assert raw(dataset, "colour") == {"x": "red", "y": "blue"}
    assert [(t.month, t.day) for t in times(dataset)] == [(1, 31), (2, 1), (2, 2)]


def test_a_time_format_that_contradicts_itself_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.time_format: .*24 hours"):
        run(tmp_path, "user,item,timestamp\na,x,1\n", time_format="%Y-%m-%d %H:%M %p")


def test_dates_of_which_nobody_knows_the_month(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r'data\.time_format = "%m/%d/%Y %I:%M %p"'):
        run(tmp_path, "user,item,timestamp\na,x,1/31/2024 5:15 PM\n")
    log = "user,item,timestamp\na,x,2024-01-31\na,y,2024-02-01\na,z,1/2/2024\n"
    figures = run(tmp_path / "some", log).artifact.figures
    assert figures["rejected"] == {"bad_time": 1}
    said = capsys.readouterr().err
    assert "row 3: timestamp = '1/2/2024' is no time" in said
    assert '"%m/%d/%Y" or "%d/%m/%Y"' in said


COMMAS = "user,item,timestamp,price\n" + "".join(f'u,i{n},{n},"{n},50"\n' for n in range(1, 5))


@pytest.mark.parametrize(
    "data",
    [
        {"value": "price"},
        {"outliers": [{"column": "price"}]},
        {"where": "price > 1"},
        {"features": {"item": [{"column": "price"}]}},
    ],
)
def test_decimal_commas_are_said_wherever_numbers_count(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(DataError) as error:
        run(tmp_path, COMMAS, **data)
    assert "row 1" in error.value.where
    assert "price = '1,50' is not a number, nor are most" in error.value.what
    assert error.value.remedy == 'set data.decimal = ","'
    number = [{"column": "price", "normalise": "none"}]
    dataset = run(tmp_path / "set", COMMAS, **{"features": {"item": number}, **data}, decimal=",")
    assert raw(dataset, "price") == {f"i{n}": n + 0.5 for n in range(1, 5)}


def test_a_few_cells_that_are_no_numbers_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = "id,price\ni1,1\ni2,2\ni3,cheap\n"
    path = written(tmp_path, items, "items")
    log = "user,item,timestamp\nu,i1,1\nu,i2,2\nu,i3,3\n"
    feature = {"item": [{"column": "price", "normalise": "none"}]}
    run(tmp_path, log, features=feature, items={"files": [str(path)], "id": "id"})
    assert "items.csv, row 3: price = 'cheap' is not a number; 1 such values" in capsys.readouterr().err
    run(tmp_path / "log", "user,item,timestamp,n\nu,i1,1,5\nu,i2,2,7\nu,i2,3,x\n", where="n > 1")
    assert "row 3: n = 'x' is not a number" in capsys.readouterr().err


def test_ids_that_do_not_match_the_log_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = "user,item,timestamp\n" + "".join(f"u{n},{n:03},{n}\n" for n in range(1, 21))
    items = written(tmp_path, "id,c\n" + "".join(f"{n},k\n" for n in range(1, 21)), "items")
    users = written(tmp_path, "id,c\nu1,k\nu2,k\nu3,k\n", "users")
    data = {"items": {"files": [str(items)], "id": "id"}, "users": {"files": [str(users)], "id": "id"}}
    run(tmp_path, log, **data)
    said = capsys.readouterr().err
    assert "0 of 20 items of the log are in items.csv (e.g. '001', '002' in the log, '1', '10' there)" in said
    assert "users of the log" not in said  # 3 of 20 are there
    check(recipe_of(tmp_path / "log.csv", **data))
    assert "0 of 20 items of the log are in items.csv" in capsys.readouterr().err


def test_rows_of_an_attribute_file_that_cannot_be_used_are_kept_aside(tmp_path: Path) -> None:
    rows = [f"{n},c{n}" for n in range(1, 29)] + ["29,c29,,", ",lost", "30,a,b"]
    items = written(tmp_path, "id,c\n" + "\n".join(rows) + "\n", "items")
    log = "user,item,timestamp\nu,1,1\nu,29,2\n"
    dataset = run(tmp_path, log, items={"files": [str(items)], "id": "id"})
    assert dataset.artifact.figures["rejected_attributes"] == {"items": {"missing_id": 1, "unreadable": 1}}
    assert dataset.artifact.figures["rows_kept"] == 2
    assert raw(dataset, "c")["29"] == "c29"
    (path,) = (dataset.path / "rejected").iterdir()
    aside = pl.read_parquet(path).select("_reason", "_row", "_text", "c", "_file").rows()
    assert [row[:4] for row in aside] == [
        ("missing_id", 30, None, "lost"),
        ("unreadable", 31, "30,a,b", None),
    ]
    assert aside[0][4] == str(items)


def test_an_attribute_file_of_which_over_a_tenth_is_lost_stops_the_run(tmp_path: Path) -> None:
    items = written(tmp_path, "id,c\n1,c\n2,a,b\n3,c\n", "items")
    with pytest.raises(DataError) as error:
        run(tmp_path, "user,item,timestamp\nu,1,1\nu,2,2\n", items={"files": [str(items)], "id": "id"})
    assert "1 of 3 rows" in error.value.what
    assert "items.csv, row 2" in error.value.where
    assert "data.items.delimiter" in error.value.remedy


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        (
            "item",
            pa.array([["a", "b"], ["c"]]),
            "holds lists (List(String)), e.g. ['a', 'b'] - set data.layout = \"lists\"",
        ),
        ("user", pa.array([["a"], ["c"]]), "column 'user' holds lists"),
        ("user", pa.array([True, False]), "column 'user' holds booleans"),
        ("item", pa.array([True, False]), "column 'item' holds booleans"),
        ("timestamp", pa.array([[1], [2]]), "column 'timestamp' holds lists"),
    ],
)
def test_columns_whose_cells_are_no_ids_are_refused(
    tmp_path: Path, column: str, cells: pa.Array, message: str
) -> None:
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "timestamp": [1, 2]})
    table = table.set_column(table.column_names.index(column), column, cells)
    with pytest.raises(UserError) as error:
        run(tmp_path, table)
    assert message in str(error.value)
    assert "log.parquet" in error.value.where


def test_attributes_that_are_lists_or_booleans(tmp_path: Path) -> None:
    tags = pa.array([["a", "b"], ["c"], None])
    table = pa.table(
        {
            "user": ["u"] * 3,
            "item": ["x", "y", "z"],
            "timestamp": [1, 2, 3],
            "tags": tags,
            "new": [True, False, None],
        }
    )
    number = {"item": [{"column": "new", "normalise": "none"}, {"column": "tags", "kind": "category"}]}
    dataset = run(tmp_path, table, features=number, item_columns=["tags", "new"])
    assert raw(dataset, "tags") == {"x": "a|b", "y": "c", "z": None}
    assert raw(dataset, "new") == {"x": 1.0, "y": 0.0, "z": None}


LATEST = [
    ("a", "x", 3, "new"),
    ("b", "x", 1, "old"),
    ("a", "x", 3, "newer"),
    ("a", "y", 9, ""),
    ("b", "y", 5, "NA"),
    ("b", "y", 4, "y"),
]


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("files", [1, 2, 6])
def test_the_latest_attribute_in_time_holds(tmp_path: Path, files: int, buckets: int) -> None:
    size = len(LATEST) // files
    header = "user,item,timestamp,c,town\n"
    for number in range(files):
        part = LATEST[number * size : (number + 1) * size]
        written(
            tmp_path / "logs",
            header + "".join(f"{u},{i},{t},{c},{c}\n" for u, i, t, c in part),
            f"log-{number}",
        )
    feature = {"user": [{"column": "town", "kind": "category"}]}
    recipe = recipe_of(tmp_path / "logs", feature, item_columns=["c"], user_columns=["town"], buckets=buckets)
    dataset = Dataset.open(prepare(recipe, tmp_path / "out").path)
    assert raw(dataset, "c") == {"x": "newer", "y": "y"}
    towns = dataset.feature("user_category")[1:, 0].tolist()
    assert len(set(towns)) == 2
    state = (dataset.path / "features" / "user").rglob("*.json")
    assert "newer" in "".join(path.read_text() for path in state)


def test_the_latest_attribute_under_an_outlier_rule(tmp_path: Path) -> None:
    log = "user,item,timestamp,price\n" + "".join(
        f"{u},{i},{t},{p}\n"
        for u, i, t, p in [
            ("a", "x", 9, 3),
            ("b", "x", 5, 2),
            ("a", "x", 99, 900),
            ("b", "y", 1, 4),
            ("c", "y", 2, 5),
        ]
    )
    feature = {"item": [{"column": "price", "normalise": "none"}]}
    dataset = run(tmp_path, log, features=feature, outliers=[{"column": "price"}], buckets=2)
    assert dataset.artifact.figures["rejected"] == {"outlier": 1}
    assert raw(dataset, "price") == {"x": 3.0, "y": 5.0}


def test_several_columns_order_the_events(tmp_path: Path) -> None:
    log = "user,item,day,ms\na,late,2016-05-09,526309\na,early,2016-05-09,1031\n"
    log += "a,first,2016-05-08,9999999\na,lost,2016-05-09,\n"
    dataset = run(tmp_path, log, timestamp=["day", "ms"])
    assert events(dataset, "a") == ["first", "early", "late"]
    assert dataset.artifact.figures["rejected"] == {"missing_timestamp": 1}
    assert {t.hour for t in times(dataset)} == {0}


def test_a_time_of_day_adds_to_a_date(tmp_path: Path) -> None:
    log = "user,item,day,clock\na,late,31.1.2024,5:15 PM\na,early,31.1.2024,10:15\n"
    dataset = run(tmp_path, log, timestamp=["day", "clock"], time_format="%d.%m.%Y")
    assert events(dataset, "a") == ["early", "late"]
    assert times(dataset) == [datetime(2024, 1, 31, 10, 15), datetime(2024, 1, 31, 17, 15)]
    frame = pl.DataFrame(
        {"user": ["a", "a"], "item": ["x", "y"], "d": [datetime(2024, 1, 31)] * 2, "t": [time(9), time(8)]}
    )
    assert events(run(tmp_path / "typed", frame, timestamp=["d", "t"]), "a") == ["y", "x"]


def test_events_of_one_time_are_no_duplicates_where_a_further_column_tells_them_apart(tmp_path: Path) -> None:
    log = "user,item,day,n\na,x,2024-01-31,1\na,x,2024-01-31,2\na,y,2024-01-31,1\na,x,2024-01-31,1\n"
    dataset = run(tmp_path, log, timestamp=["day", "n"], duplicates="key")
    assert dataset.artifact.figures["rejected"] == {"duplicate": 1}


@pytest.mark.parametrize("buckets", [1, 3])
def test_a_pause_begins_a_session_that_counts_as_a_user(tmp_path: Path, buckets: int) -> None:
    minutes = [
        ("a", "x", 100),
        ("a", "y", 130),
        ("a", "z", 161),
        ("b", "x", 0),
        ("a", "w", 1000),
        ("b", "y", 1),
    ]
    log = "user,item,timestamp,town\n" + "".join(f"{u},{i},{m * 60},t{u}\n" for u, i, m in minutes)
    users = written(tmp_path, "id,age\na,30\nb,40\nc,50\n", "users")
    section = {"files": [str(users)], "id": "id"}
    feature = {"user": [{"column": "age", "normalise": "none"}]}
    dataset = run(tmp_path, log, session_gap="30m", buckets=buckets, users=section, features=feature)
    assert sorted(dataset.users) == ["", "a/1", "a/2", "a/3", "b/1"]
    assert [events(dataset, u) for u in ("a/1", "a/2", "a/3", "b/1")] == [
        ["x", "y"],
        ["z"],
        ["w"],
        ["x", "y"],
    ]
    ages = dict(zip(dataset.users, dataset.feature("user_dense")[:, 0].tolist(), strict=True))
    assert ages == {"": 0, "a/1": 30, "a/2": 30, "a/3": 30, "b/1": 40}
    whole = run(tmp_path / "feature", log, session_gap="30m", sessions="feature")
    assert sorted(whole.users) == ["", "a", "b"]


def test_a_filter_over_columns_with_blanks(tmp_path: Path) -> None:
    log = "user,item,timestamp,unit price\na,x,1,5\na,y,2,7\na,z,3,9\n"
    assert list(run(tmp_path, log, where="`unit price` > 5").items) == ["", "y", "z"]
    with pytest.raises(RecipeError, match="the columns are user, item, timestamp, `unit price`"):
        run(tmp_path / "wrong", log, where="unit price > 5")
