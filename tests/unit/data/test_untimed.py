"""Logs without times: no moment, no ages, and an order only where the recipe says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.data.dataset import Dataset
from app.data.stage import prepare
from app.recipe import parse
from tests.unit.data.test_splits import events_of_parts

pytestmark = pytest.mark.usefixtures("ray_local")
Rows = list[tuple[Any, ...]]


def run(
    folder: Path, rows: Rows, *, split: dict[str, Any] | None = None, seed: int = 42, **data: Any
) -> Dataset:
    folder.mkdir(exist_ok=True)
    names = ["user", "item", "event"][: len(rows[0])]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "log.parquet")
    data = {"events": [str(folder / "log.parquet")], "timestamp": "", **data}
    content = {"seed": seed, "data": data, "split": split or {}}
    return Dataset.open(prepare(parse(content, "test"), folder / "out").path)


def held_out_items(dataset: Dataset) -> list[str]:
    """The items that test, without their users."""
    return [item for _, item, _ in events_of_parts(dataset)["test"]]


def test_without_times_there_is_no_moment_and_no_age(tmp_path: Path) -> None:
    dataset = run(tmp_path, [(f"u{u}", f"i{i}") for u in range(3) for i in range(4)])
    assert not any(part.time.any() for part in dataset.parts)
    assert (dataset.schema.timed, dataset.schema.ordered) == (False, False)
    assert (dataset.schema.context, dataset.schema.context_width) == ([], 0)
    assert dataset.schema.end_time == 0
    assert dataset.artifact.figures["order"] == "none"


def test_each_event_of_a_user_tests_as_often_as_another(tmp_path: Path) -> None:
    dataset = run(tmp_path, [(f"u{u}", f"i{i}") for u in range(2000) for i in range(4)])
    counts = Counter(held_out_items(dataset))
    assert sum(counts.values()) == len(dataset.valid) == 2000
    assert len(dataset.train) == 4000
    # 500 are expected of each, with a standard deviation of 19.4; beyond five of them once in 1.7 million.
    assert all(abs(count - 500) < 97 for count in counts.values())


def test_the_draw_depends_on_seed_and_row_alone(tmp_path: Path) -> None:
    rows: Rows = [(f"u{u}", f"i{i}") for u in range(200) for i in range(4)]
    plain, parted = run(tmp_path / "a", rows), run(tmp_path / "b", rows, buckets=5)
    other = run(tmp_path / "c", rows, seed=43)
    assert events_of_parts(plain) == events_of_parts(parted)
    assert held_out_items(plain) != held_out_items(other)


def test_only_events_to_predict_are_drawn_and_all_others_train(tmp_path: Path) -> None:
    rows: Rows = [("a", f"i{n}", "buy" if n < 4 else "view") for n in range(9)]
    dataset = run(tmp_path, rows, event="event", positive=["buy"])
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (7, 1, 1)
    assert dataset.test.label.tolist() == dataset.valid.label.tolist() == [1]


def test_a_log_with_times_may_be_split_at_random_by_user(tmp_path: Path) -> None:
    frame = pl.DataFrame([(f"u{u}", f"i{i}", i) for u in range(300) for i in range(4)], orient="row")
    frame.columns = ["user", "item", "timestamp"]
    frame.write_parquet(tmp_path / "log.parquet")
    content = {"data": {"events": [str(tmp_path / "log.parquet")]}, "split": {"method": "leave_random"}}
    dataset = Dataset.open(prepare(parse(content, "test"), tmp_path / "out").path)
    assert set(held_out_items(dataset)) == {"i0", "i1", "i2", "i3"}
    assert len(dataset.test) == len(dataset.valid) == 300
    assert all(
        np.all(np.diff(dataset.train.time[a:b]) > 0)
        for a, b in np.c_[dataset.train.indptr[:-1], dataset.train.indptr[1:]]
    )
    assert dataset.artifact.figures["order"] == "times"


def test_rows_in_order_have_an_order_and_no_moment(tmp_path: Path) -> None:
    dataset = run(tmp_path, [("a", item) for item in ("z", "m", "x", "b")] + [("b", "z")] * 1, row_order=True)
    assert [dataset.items[i] for i in dataset.train.item] in (["z", "m", "z"], ["z", "z", "m"])
    assert held_out_items(dataset) == ["b"]
    assert events_of_parts(dataset)["valid"] == [("a", "x", 0)]
    assert (dataset.schema.timed, dataset.schema.ordered, dataset.schema.context) == (False, True, [])
    assert dataset.artifact.figures["order"] == "rows"
