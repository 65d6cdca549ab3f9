"""Row-wise cleaning: every row is kept or counted once, under its first reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.artifact import Artifact
from app.data.dataset import Dataset
from app.data.stage import check, prepare
from app.recipe import Recipe, parse

HEADER = "user,item,timestamp,event,value"


def recipe_of(path: Path, data: dict[str, Any] | None = None, split: dict[str, Any] | None = None) -> Recipe:
    return parse(
        {"data": {"events": [str(path)], **(data or {})}, "split": {"valid": 0, "test": 0, **(split or {})}},
        "test",
    )


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def run(folder: Path, *lines: str, header: str = HEADER, **data: Any) -> Artifact:
    return prepare(recipe_of(write(folder, *lines, header=header), data), folder / "out")


def rejected(artifact: Artifact) -> dict[int, str]:
    """Row -> reason, of the rows put aside."""
    frames = [pl.read_parquet(p) for p in (artifact.path / "rejected").iterdir()]
    return {int(r): str(w) for f in frames for r, w in zip(f["_row"], f["_reason"], strict=True)}


pytestmark = pytest.mark.usefixtures("ray_local")


def test_each_reason_in_its_order(tmp_path: Path) -> None:
    artifact = run(
        tmp_path,
        "a,i1,2020-01-01,view,1",  # kept
        "a,i2,2020-01-02,view",  # a field too few
        "a,i2,2020-01-02,view,1,extra",  # one too many
        " ,,never,hover,-1",  # missing user comes before all else
        "b,,never,hover,-1",
        "b,i1,,hover,-1",
        "b,i1,never,,-1",
        "b,i1,never,hover,nan",
        "b,i1,never,hover,-1",  # filtered before the unknown event
        "b,i1,never,hover,1",  # unknown event before the bad time
        "b,i1,never,view,1",
        "b,i1,2999-01-01,view,1",
        "a,i1,2020-01-01,view,1",  # a duplicate before an outlier
        "c,i1,2020-01-03,view,1",
        "c,i2,2020-01-04,view,1",
        "c,i1,2020-01-05,view,1000",
        "c,i3,2020-01-06,view,1",
        event="event",
        value="value",
        event_types=["view"],
        where="value > 0",
        outliers=[{"column": "value"}],
    )
    assert rejected(artifact) == {
        2: "unreadable", 3: "unreadable", 4: "missing_user", 5: "missing_item", 6: "missing_timestamp",
        7: "missing_event", 8: "missing_value", 9: "filtered", 10: "unknown_event", 11: "bad_time",
        12: "bad_time", 13: "duplicate", 16: "outlier",
    }  # fmt: skip
    figures = artifact.figures
    assert figures["rows_in"] == 17
    assert figures["rows_kept"] == 4
    assert figures["rows_kept"] + sum(figures["rejected"].values()) == figures["rows_in"]


def test_rejected_rows_keep_their_columns_and_text(tmp_path: Path) -> None:
    artifact = run(tmp_path, "a,i1,2020-01-01,view,1", ",i2,when?,view,x y", "short,row")
    frame = pl.read_parquet(next((artifact.path / "rejected").iterdir())).sort("_row")
    assert frame.select("user", "item", "timestamp", "event", "value", "_reason", "_row", "_text").rows() == [
        (None, "i2", "when?", "view", "x y", "missing_user", 2, None),
        (None, None, None, None, None, "unreadable", 3, "short,row"),
    ]
    assert frame["_file"].unique().to_list() == [str(tmp_path / "log.csv")]


def test_ids_in_text_are_what_is_written(tmp_path: Path) -> None:
    artifact = run(
        tmp_path, "250,7,1,,", "250.0,7.0,2,,", "250.00,007,3,,", "nan,7,4,,", "NA,7,5,,", "a,None,6,,"
    )
    dataset = Dataset.open(artifact.path)
    assert sorted(dataset.users) == ["", "250", "250.0", "250.00"]
    assert list(dataset.items) == ["", "007", "7", "7.0"]
    assert artifact.figures["rejected"] == {"missing_user": 2, "missing_item": 1}


def test_fields_may_hold_quotes_commas_and_newlines(tmp_path: Path) -> None:
    artifact = run(tmp_path, '"a ""x"", b","i\n1",5,,', "c,i2,6,,")
    assert sorted(Dataset.open(artifact.path).users) == ["", 'a "x", b', "c"]
    assert list(Dataset.open(artifact.path).items) == ["", "i\n1", "i2"]


def test_exact_and_key_duplicates(tmp_path: Path) -> None:
    lines = ["a,i,1,view,5", "a,i,1,view,5", "a,i,1,view,6", "b,i,1,view,5"]
    for folder, data, gone in [
        ("exact", {"duplicates": "exact"}, [2]),
        ("key", {"duplicates": "key"}, [2, 3]),
        ("value", {"duplicates": "key", "duplicate_key": ["value"]}, [2]),
        ("keep", {"duplicates": "keep"}, []),
    ]:
        (tmp_path / folder).mkdir()
        artifact = run(tmp_path / folder, *lines, **data)
        assert sorted(rejected(artifact) if gone else []) == gone, folder


def test_missing_policies(tmp_path: Path) -> None:
    lines = ["a,i,1,,3", "a,i,2,view,", "a,i,3,view,inf", "b,i,4,view,5", "b,i,5,,4"]
    base = {"event": "event", "value": "value"}
    cases: list[tuple[dict[str, str], list[float], list[str]]] = [
        ({"event": "category"}, [3, 5, 4], ["", "missing", "view"]),
        ({"event": "constant:seen", "value": "constant:9"}, [3, 9, 9, 5, 4], ["", "seen", "view"]),
        ({"event": "category", "value": "median"}, [3, 4, 4, 5, 4], ["", "missing", "view"]),
    ]
    for number, (missing, values, events) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        dataset = Dataset.open(run(tmp_path / str(number), *lines, **base, missing=missing).path)
        order = dataset.train.time.argsort()
        assert dataset.train.value[order].tolist() == values
        assert dataset.schema.events == events


def test_constant_for_a_value_given_as_infinity_is_counted_when_dropped(tmp_path: Path) -> None:
    artifact = run(tmp_path, "a,i,1,,inf", "a,i,2,,nan", "a,i,3,,2", "a,j,4,,two", value="value")
    assert artifact.figures["rejected"] == {"missing_value": 3}


def test_times_of_every_unit_and_spelling(tmp_path: Path) -> None:
    second = 1_600_000_000
    spelled = [second, second * 1000, second * 10**6, second * 10**9, "2020-09-13T12:26:40Z"]
    spelled += [
        "2020-09-13 12:26:40",
        "2020-09-13T14:26:40+02:00",
        "2020-09-13T12:26:40.000",
        "20200913T122640Z",
    ]
    lines = [f"a,i{n},{text},," for n, text in enumerate(spelled)]
    dataset = Dataset.open(run(tmp_path, *lines).path)
    assert set(dataset.train.time.tolist()) == {second * 10**6}
    assert len(dataset.train) == len(spelled)


def test_time_format_and_unit(tmp_path: Path) -> None:
    dataset = Dataset.open(run(tmp_path, "a,i,13/09/2020,,", time_format="%d/%m/%Y").path)
    assert dataset.train.time.tolist() == [1_599_955_200_000_000]
    (tmp_path / "unit").mkdir()
    dataset = Dataset.open(run(tmp_path / "unit", "a,i,1600,,", time_unit="ms").path)
    assert dataset.train.time.tolist() == [1_600_000]


def test_without_times_the_order_of_rows_counts(tmp_path: Path) -> None:
    dataset = Dataset.open(run(tmp_path, "a,i3,9,,", "b,i9,1,,", "a,i1,8,,", "a,i2,7,,", timestamp="").path)
    user = list(dataset.users).index("a")
    rows = slice(dataset.train.indptr[user], dataset.train.indptr[user + 1])
    assert [dataset.items[i] for i in dataset.train.item[rows]] == ["i3", "i1", "i2"]


def test_earliest_and_latest(tmp_path: Path) -> None:
    lines = ["a,i,2020-01-01,,", "a,i,2020-01-02,,", "a,i,2020-01-03,,"]
    artifact = run(tmp_path, *lines, earliest="2020-01-02", latest="2020-01-02T12:00:00")
    assert rejected(artifact) == {1: "bad_time", 3: "bad_time"}


def test_clipped_outliers_stay(tmp_path: Path) -> None:
    lines = [f"a,i{n},{n},,{v}" for n, v in enumerate([1, 2, 3, 4, 1000], 1)]
    rule = {"column": "value", "threshold": 1.0, "action": "clip"}
    dataset = Dataset.open(run(tmp_path, *lines, value="value", outliers=[rule]).path)
    assert dataset.train.value.tolist() == [1, 2, 3, 4, 6]  # quartiles 2 and 4


def test_z_score(tmp_path: Path) -> None:
    lines = [f"a,i{n},{n},,{v}" for n, v in enumerate([0, 0, 0, 0, 10], 1)]  # mean 2, deviation 4
    rule = {"column": "value", "method": "zscore"}
    for threshold, kept in ((1.9, 4), (2.1, 5)):
        (tmp_path / str(threshold)).mkdir()
        artifact = run(
            tmp_path / str(threshold), *lines, value="value", outliers=[{**rule, "threshold": threshold}]
        )
        assert artifact.figures["rows_kept"] == kept


def test_core_is_taken_until_stable(tmp_path: Path) -> None:
    # Dropping item z leaves user c one event short, which leaves item y short, and so user d.
    lines = ["a,w,1,,", "a,x,2,,", "b,w,1,,", "b,x,2,,", "c,z,1,,", "c,y,2,,", "d,y,1,,", "d,x,2,,"]
    artifact = run(tmp_path, *lines, min_user_events=2, min_item_events=2)
    dataset = Dataset.open(artifact.path)
    assert rejected(artifact) == dict.fromkeys([5, 6, 7, 8], "core")
    assert sorted(dataset.users) == ["", "a", "b"]
    assert list(dataset.items) == ["", "w", "x"]


def test_check_counts_without_writing(tmp_path: Path) -> None:
    path = write(tmp_path, "a,i,1,view,1", "b,j,2,view,1", ",j,3,view,1")
    shown = check(recipe_of(path))
    assert shown["rows_in"] == 3
    assert shown["rejected"] == {"missing_user": 1}
    assert (shown["users"], shown["items"]) == (2, 2)
    assert shown["seconds"]["total"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_real_shop_log(tmp_path: Path, real_data: Path) -> None:
    data = {
        "user": "CustomerID",
        "item": "StockCode",
        "timestamp": "InvoiceDate",
        "value": "Quantity",
        "where": "Quantity > 0 and not InvoiceNo like 'C%'",
    }
    recipe = recipe_of(real_data / "online-retail" / "online_retail.csv.gz", data)
    figures = prepare(recipe, tmp_path / "out").figures
    assert figures["rows_in"] == 541_909
    assert figures["rejected"]["missing_user"] == 135_080
    assert figures["rows_kept"] + sum(figures["rejected"].values()) == figures["rows_in"]
