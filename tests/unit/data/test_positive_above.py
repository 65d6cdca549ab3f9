"""Events to predict by their value: split, labels, the merged part and popularity agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.data.dataset import Dataset
from app.data.merged import merge_parts
from app.data.stage import prepare
from app.errors import DataError
from app.recipe import parse
from tests.unit.data.test_splits import events_of_parts

pytestmark = pytest.mark.usefixtures("ray_local")
RATINGS = [5.0, 1.0, 4.0, 3.5, 4.5, 2.0, 5.0, 1.0]


def rated(
    folder: Path, ratings: list[float], above: float, split: dict[str, Any] | None = None, **data: Any
) -> Dataset:
    rows = [("a", f"i{n}", n, rating) for n, rating in enumerate(ratings, 1)]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp", "stars"], orient="row")
    log.write_parquet(folder / "log.parquet")
    data = {"events": [str(folder / "log.parquet")], "value": "stars", "positive_above": above, **data}
    return Dataset.open(prepare(parse({"data": data, "split": split or {}}, "test"), folder / "out").path)


def test_the_last_good_rating_tests_and_bad_ones_are_history(tmp_path: Path) -> None:
    dataset = rated(tmp_path, RATINGS, 3.5)
    assert {part: [t for _, _, t in rows] for part, rows in events_of_parts(dataset).items()} == {
        "train": [1, 2, 3, 4],
        "valid": [5, 6],
        "test": [7, 8],
    }
    assert dataset.train.label.tolist() == [1, 0, 1, 0]
    assert (dataset.valid.label.tolist(), dataset.test.label.tolist()) == ([1, 0], [1, 0])


@pytest.mark.parametrize("method", ["leave_last", "leave_random", "time", "user", "random", "kfold"])
def test_all_that_know_labels_agree(tmp_path: Path, method: str) -> None:
    dataset = rated(tmp_path, RATINGS * 6, 3.5, {"method": method, "valid": 0.2, "test": 0.2})
    good = {f"i{n}" for n, rating in enumerate(RATINGS * 6, 1) if rating > 3.5}
    observed = {
        dataset.items[i]
        for part in dataset.parts
        for i, label in zip(part.item, dataset.labels(part), strict=True)
        if label
    }
    assert observed == good
    counts = dataset.positive_counts(*dataset.parts)
    assert {item for item, count in zip(dataset.items, counts, strict=True) if count} == good
    whole = merge_parts(dataset, tmp_path / "merged")
    assert {whole.items[i] for i in whole.train.item[whole.train.label > 0]} == good
    assert whole.popularity.tolist() == counts.tolist()


def test_a_value_is_not_above_itself_whatever_its_precision(tmp_path: Path) -> None:
    # 0.1 as float32 is above 0.1 as float64.
    assert rated(tmp_path, [0.2, 0.1, 0.3, 0.1, 0.2], 0.1, {"valid": 0, "test": 0}).train.label.tolist() == [
        1,
        0,
        1,
        0,
        1,
    ]


def test_values_are_compared_as_an_outlier_rule_leaves_them(tmp_path: Path) -> None:
    # Bounds of 1, 2, 3, 4 and 100 with a threshold of 0.5: 1 to 5; 100 becomes 5, which is not above 6.
    rule = [{"column": "stars", "threshold": 0.5, "action": "clip"}]
    dataset = rated(tmp_path, [1.0, 2.0, 3.0, 4.0, 100.0], 4.5, {"valid": 0, "test": 0}, outliers=rule)
    assert dataset.train.value.tolist() == [1, 2, 3, 4, 5]
    assert dataset.train.label.tolist() == dataset.labels(dataset.train).tolist() == [0, 0, 0, 0, 1]
    (tmp_path / "more").mkdir()
    with pytest.raises(DataError, match=r"data\.positive_above.*above 6"):
        rated(tmp_path / "more", [1.0, 2.0, 3.0, 4.0, 100.0], 6, {"valid": 0, "test": 0}, outliers=rule)


def test_no_value_above_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.positive_above: no training event .* above 5"):
        rated(tmp_path, RATINGS, 5)
