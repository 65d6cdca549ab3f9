"""Attributes and features: from event files, from files of their own, fitted on training alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.data.dataset import Dataset
from app.data.stage import prepare
from app.errors import DataError
from app.recipe import parse

pytestmark = pytest.mark.usefixtures("ray_local")


def run(folder: Path, log: pl.DataFrame, **sections: Any) -> Dataset:
    log.write_csv(folder / "log.csv")
    data = {"events": [str(folder / "log.csv")], **sections.pop("data", {})}
    return Dataset.open(prepare(parse({"data": data, **sections}, "test"), folder / "out").path)


def by_item(dataset: Dataset, values: Any) -> dict[str, Any]:
    return dict(zip(dataset.items, values.tolist(), strict=True))


LOG = pl.DataFrame(
    {
        "user": ["a", "a", "a", "a", "b"],
        "item": ["x", "y", "x", "z", "x"],
        "timestamp": [1, 2, 3, 4, 1],
        "price": [None, 4.0, 2.0, 50.0, 3.0],
        "town": ["Ulm", None, "Rome", None, " "],
    }
)


def test_first_value_in_the_order_of_the_input(tmp_path: Path) -> None:
    number = {"column": "price", "normalise": "none"}
    dataset = run(
        tmp_path,
        LOG,
        features={"item": [number], "user": [{"column": "town", "kind": "category"}]},
        data={"user_columns": ["town"]},
    )
    assert by_item(dataset, dataset.feature("item_dense")[:, 0]) == {"": 0, "x": 2, "y": 4, "z": 50}
    town = dict(zip(dataset.users, dataset.feature("user_category")[:, 0].tolist(), strict=True))
    assert town == {"": 0, "a": 1, "b": 0}
    raw = pl.read_parquet(dataset.path / "columns" / "items.parquet")
    assert raw["price"].to_list() == [
        None,
        *({"x": 2.0, "y": 4.0, "z": 50.0}[i] for i in list(dataset.items)[1:]),
    ]


def test_statistics_come_from_training_alone(tmp_path: Path) -> None:
    dataset = run(tmp_path, LOG, features={"item": [{"column": "price", "normalise": "minmax"}]})
    assert dataset.items[dataset.test.item[0]] == "z"
    # x = 2 and y = 4 train: the range is theirs, and z = 50 lies beyond it.
    assert by_item(dataset, dataset.feature("item_dense")[:, 0]) == {"": 0, "x": 0, "y": 1, "z": 1}


def test_attributes_leave_out_dropped_outliers(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {"user": ["a"] * 6, "item": list("xxyyzz"), "timestamp": range(6), "price": [900, 2, 3, 4, 5, 5]}
    )
    rule = [{"column": "price", "threshold": 2}]
    dataset = run(
        tmp_path, log, data={"outliers": rule}, features={"item": [{"column": "price", "normalise": "none"}]}
    )
    assert dataset.artifact.figures["rejected"] == {"outlier": 1}
    assert by_item(dataset, dataset.feature("item_dense")[:, 0]) == {"": 0, "x": 2, "y": 4, "z": 5}


def test_a_file_of_attributes_brings_items_that_nobody_met(tmp_path: Path) -> None:
    items = [
        {"id": "x", "tags": ["red", "big"]},
        {"id": "new", "tags": ["red"]},
        {"id": "x", "tags": ["blue"]},
    ]
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "users.csv").write_text("user,age\na,30\nghost,40\n,50\n")
    dataset = run(
        tmp_path,
        LOG,
        data={
            "items": {"files": [str(tmp_path / "items.parquet")], "id": "id"},
            "users": {"files": [str(tmp_path / "users.csv")], "id": "user"},
        },
        features={
            "item": [{"column": "tags", "kind": "text", "buckets": 16, "weighting": "count"}],
            "user": [{"column": "age", "normalise": "none"}],
        },
    )
    assert list(dataset.items) == ["", "new", "x", "y", "z"]
    sums = by_item(dataset, np.abs(dataset.feature("item_dense")).sum(1))
    assert (sums["new"], sums["x"], sums["y"]) == (1, 2, 0)
    assert dataset.popularity.tolist() == [0, 0, 2, 1, 0]
    assert list(dataset.users)[-1] == "ghost"
    assert len(dataset.train.indptr) == len(dataset.test.indptr) == len(dataset.users) + 1
    age = dict(zip(dataset.users, dataset.feature("user_dense")[:, 0].tolist(), strict=True))
    assert age == {"": 0, "a": 30, "b": 30, "ghost": 40}  # the median of training users fills b


def test_a_missing_attribute_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,colour\nx,red\n")
    file = {"files": [str(tmp_path / "items.csv")], "id": "sku"}
    with pytest.raises(DataError, match=r"no column 'sku' \(data.items\).*the file has item, colour"):
        run(tmp_path, LOG, data={"items": file})


def test_history_reads_what_prepare_wrote(tmp_path: Path) -> None:
    dataset = run(tmp_path, LOG, features={"history": 3})
    user = list(dataset.users).index("a")
    item, event, time = dataset.recent(np.array([user]), dataset.train, dataset.valid)
    assert [dataset.items[i] for i in item[0]] == ["x", "y", "x"]
    assert time[0].tolist() == [10**6, 2 * 10**6, 3 * 10**6]
    assert event[0].tolist() == [1, 1, 1]
    assert dataset.schema.end_time == 2 * 10**6


def test_what_fills_a_missing_value_is_kept_for_items_that_come_later(tmp_path: Path) -> None:
    features = {"item": [{"column": "price"}]}
    dataset = run(tmp_path, LOG, features=features, data={"missing": {"price": "median"}})
    # x = 2 and y = 4 train.
    assert json.loads((dataset.path / "features" / "item" / "fills.json").read_text()) == {"price": "3.0"}
