"""Outlier bounds and k-core are judged by training rows alone, whatever the split."""

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

pytestmark = pytest.mark.usefixtures("ray_local")
Rows = list[tuple[Any, ...]]
NAMES = ["user", "item", "timestamp", "value"]


def run(folder: Path, rows: Rows, split: dict[str, Any], test: Rows = (), **data: Any) -> Dataset:  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    for name, content in (("log", rows), ("test", test)):
        frame = pl.DataFrame(content, schema=NAMES[: len(rows[0])], orient="row")
        frame.write_csv(folder / f"{name}.csv")
    if test:
        split = {**split, "test_events": [str(folder / "test.csv")]}
    data = {"events": [str(folder / "log.csv")], "duplicates": "keep", **data}
    return Dataset.open(prepare(parse({"data": data, "split": split}, "test"), folder / "out").path)


def rejected(dataset: Dataset) -> dict[int, str]:
    """Row -> reason, of the rows put aside."""
    frames = [pl.read_parquet(path) for path in (dataset.path / "rejected").iterdir()]
    return {row: why for frame in frames for row, why in frame.select("_row", "_reason").rows()}


def test_bounds_are_those_of_training_rows(tmp_path: Path) -> None:
    # The quartiles of 1, 2, 3, 4 are 1.75 and 3.25: beyond 4.75 lie 100 and 9. With the last two
    # rows among them the bounds would reach to 149.75.
    rows = [("a", f"i{n}", n, value) for n, value in enumerate([1, 2, 3, 4, 100, 9], 1)]
    rule = [{"column": "value", "threshold": 1.0}]
    dataset = run(tmp_path, rows, {"method": "leave_last"}, value="value", outliers=rule)
    assert rejected(dataset) == {5: "outlier", 6: "outlier"}
    assert dataset.train.value.tolist() == [1, 2]  # the split is that of the rows kept


def test_a_clip_is_to_the_bounds_of_training_rows(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", n, value) for n, value in enumerate([1, 2, 3, 4, 100, 9], 1)]
    rule = [{"column": "value", "threshold": 1.0, "action": "clip"}]
    dataset = run(tmp_path, rows, {"method": "leave_last"}, value="value", outliers=rule)
    assert [part.value.tolist() for part in dataset.parts] == [[1, 2, 3, 4], [4.75], [4.75]]


def test_bounds_do_not_look_at_given_test_files_nor_at_duplicates(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", n, n) for n in (1, 2, 3, 4)] + [("a", "i1", 1, 1)] * 20
    split = {"method": "given", "valid": 0}
    rule = [{"column": "value", "method": "zscore", "threshold": 2.0}]  # mean 2.5, deviation 1.118
    far = [("a", f"i{n}", n, value) for n, value in enumerate([4.7, 4.8, 900, 900, 900], 5)]
    dataset = run(tmp_path, rows, split, far, value="value", outliers=rule, duplicates="exact")
    assert dataset.artifact.figures["rejected"] == {"duplicate": 20, "outlier": 4}
    assert dataset.test.value.tolist() == pytest.approx([4.7])


@pytest.mark.parametrize("method", ["leave_last", "time", "given"])
def test_an_item_that_only_held_out_rows_lift_is_dropped(tmp_path: Path, method: str) -> None:
    # Item y is met three times, once before what is held out.
    log = [("a", "x", 1), ("a", "y", 2), ("a", "x", 3), ("b", "x", 1), ("b", "x", 2), ("b", "x", 3)]
    held_out = [("a", "x", 14), ("a", "y", 15), ("b", "x", 14), ("b", "y", 15)]
    more = [("c", "z", n) for n in (1, 2, 3, 4)]
    split: dict[str, Any] = {"method": method}
    if method == "time":
        split |= {"valid_days": 1e-6, "test_days": 5 / 86_400}
    if method == "given":
        dataset = run(tmp_path, log + more, {**split, "valid": 0}, held_out, min_item_events=2)
    else:
        dataset = run(tmp_path, log + held_out + more, split, min_item_events=2)
    assert list(dataset.items) == ["", "x", "z"]
    if method == "given":  # what the files say is tested stays, on an item that no ranking holds
        assert rejected(dataset) == {2: "core"}
        assert [dataset.items[i] for i in dataset.test.item] == ["x", "", "x", ""]
    else:
        assert rejected(dataset) == {2: "core", 8: "core", 10: "core"}


def test_a_user_that_only_held_out_rows_lift_is_dropped(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", n) for n in (1, 2, 3)] + [("b", "i1", 3)] + [("b", f"i{n}", n) for n in (11, 12)]
    rows += [("a", "i9", 13)]
    split = {"method": "time", "valid": 0, "test_days": 5 / 86_400}
    dataset = run(tmp_path, rows, split, min_user_events=2)
    assert list(dataset.users) == ["", "a"]
    assert rejected(dataset) == {4: "core", 5: "core", 6: "core"}


def test_leave_last_counts_what_is_left_to_train_on(tmp_path: Path) -> None:
    # Of four events two train, of three one, of two both: nothing of theirs is held out.
    rows = [(user, f"i{n}", n) for user, count in (("a", 4), ("b", 3), ("c", 2)) for n in range(count)]
    dataset = run(tmp_path, rows, {"method": "leave_last"}, min_user_events=2)
    assert sorted(dataset.users) == ["", "a", "c"]
    assert len(dataset.valid) == len(dataset.test) == 1


def test_users_held_out_as_a_whole_are_judged_by_their_history(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{n}", n) for u in range(120) for n in range(2 + u % 3)]
    split = {"method": "user", "valid": 0, "test": 0.5}
    dataset = run(tmp_path, rows, split, min_user_events=2, min_item_events=1)
    kept = Counter(np.diff(dataset.test.indptr)[1:].tolist())
    assert kept[1] > 20  # many users are held out still
    history, tested = (np.diff(part.indptr)[1:] for part in (dataset.valid, dataset.test))
    assert set(history[tested > 0].tolist()) == {2, 3}  # of those with one event before the last: none
    assert set(np.diff(dataset.train.indptr)[1:][tested == 0].tolist()) == {2, 3, 4}


def test_rounds_go_on_until_nothing_falls(tmp_path: Path) -> None:
    # z falls (once in training), which leaves c one training event; c's going leaves y one.
    pairs = [("a", "wx"), ("b", "wx"), ("c", "zy"), ("d", "yx")]
    rows = [(user, item, n) for user, items in pairs for n, item in enumerate(items + "wx")]
    dataset = run(tmp_path, rows, {"method": "leave_last"}, min_user_events=2, min_item_events=2)
    assert list(dataset.items) == ["", "w", "x"]
    assert sorted(dataset.users) == ["", "a", "b"]
    assert rejected(dataset) == dict.fromkeys(range(9, 17), "core")


@pytest.mark.parametrize("method", ["leave_last", "time", "user", "random", "kfold", "given"])
def test_every_item_and_user_kept_has_enough_training_rows(tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng(5)
    users = (60 * rng.random(900) ** 2).astype(int)
    items = (50 * rng.random(900) ** 2).astype(int)
    values = rng.lognormal(0, 1, 900)
    rows = [
        (f"u{u}", f"i{i}", n, round(float(v), 3))
        for n, (u, i, v) in enumerate(zip(users, items, values, strict=True))
    ]
    log, test = (rows[:800], rows[800:]) if method == "given" else (rows, [])
    split = {"method": method, "valid": 0.1, "test": 0.2, "folds": 4}
    rule = [{"column": "value", "threshold": 3.0}]
    least = {"min_user_events": 4, "min_item_events": 5}
    written = []
    for buckets in (1, 7):
        rules = {"outliers": rule, "buckets": buckets, **least}
        dataset = run(tmp_path / str(buckets), log, split, test, value="value", **rules)
        files = dataset.artifact.files.items()
        hashes = {name: file["sha256"] for name, file in files if not name.startswith("rejected")}
        written.append((hashes, rejected(dataset)))
    assert written[0] == written[1]
    assert set(dataset.artifact.figures["rejected"]) == {"outlier", "core"}
    items_trained = np.bincount(dataset.train.item, minlength=dataset.schema.items)
    assert items_trained[1:].min() >= 5
    trained = np.diff(dataset.train.indptr)
    if method == "user":
        trained += np.diff(dataset.valid.indptr) * (np.diff(dataset.test.indptr) > 0)
    tested_only = set(dataset.test.user) if method == "given" else set()
    assert {user for user, count in enumerate(trained) if count < 4} <= {0} | tested_only
