"""Which event trains, validates and tests, on logs small enough to work by hand."""

from __future__ import annotations

import itertools
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
Events = list[tuple[str, str, int]]
PartEvents = dict[str, Events]


def split(folder: Path, events: list[tuple[Any, ...]], rule: dict[str, Any], **data: Any) -> Dataset:
    names = ["user", "item", "timestamp", "event"][: len(events[0])]
    pl.DataFrame(events, schema=names, orient="row").write_parquet(folder / "log.parquet")
    content = {"data": {"events": [str(folder / "log.parquet")], **data}, "split": rule}
    return Dataset.open(prepare(parse(content, "test"), folder / "out").path)


def events_of_parts(dataset: Dataset, *, positive: bool = False) -> PartEvents:
    """Events of each part, in seconds; only those to predict where `positive`."""
    users, items = list(dataset.users), list(dataset.items)
    return {
        name: sorted(
            (users[u], items[i], int(t) // 10**6)
            for u, i, t, label in zip(part.user, part.item, part.time, part.label, strict=True)
            if label or not positive
        )
        for name, part in (("train", dataset.train), ("valid", dataset.valid), ("test", dataset.test))
    }


def test_leave_last(tmp_path: Path) -> None:
    events = [("a", f"i{n}", n) for n in (3, 1, 4, 2)] + [("b", "i1", 1), ("b", "i2", 2)]
    assert events_of_parts(split(tmp_path, events, {"method": "leave_last"})) == {
        "train": [("a", "i1", 1), ("a", "i2", 2), ("b", "i1", 1), ("b", "i2", 2)],
        "valid": [("a", "i3", 3)],
        "test": [("a", "i4", 4)],
    }


def test_equal_times_stay_in_the_order_of_the_input(tmp_path: Path) -> None:
    events = [("a", item, 1) for item in ("z", "y", "x", "w")]
    assert [i for part in events_of_parts(split(tmp_path, events, {})).values() for _, i, _ in part] == [
        "y",
        "z",
        "x",
        "w",
    ]


def test_leave_last_goes_by_positive_events(tmp_path: Path) -> None:
    kinds = ["buy", "view", "buy", "view", "buy", "view", "buy", "view"]
    events = [("a", f"i{n}", n, kind) for n, kind in enumerate(kinds, 1)]
    dataset = split(tmp_path, events, {}, event="event", positive=["buy"])
    assert [t for _, _, t in events_of_parts(dataset)["train"]] == [1, 2, 3, 4]
    assert [t for _, _, t in events_of_parts(dataset)["valid"]] == [5, 6]
    assert [t for _, _, t in events_of_parts(dataset)["test"]] == [7, 8]
    assert events_of_parts(dataset, positive=True)["test"] == [("a", "i7", 7)]


@pytest.mark.parametrize(("valid", "expected"), [(0.0, (3, 0, 1)), (0.1, (2, 1, 1))])
def test_a_share_of_zero_leaves_the_part_out(tmp_path: Path, valid: float, expected: tuple[int, ...]) -> None:
    dataset = split(tmp_path, [("a", f"i{n}", n) for n in range(1, 5)], {"valid": valid})
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == expected


def test_by_time_by_share_and_by_days(tmp_path: Path) -> None:
    day = 86_400
    events = [(f"u{n % 3}", f"i{n}", n * day) for n in range(1, 11)]
    for number, rule in enumerate(
        [{"valid": 0.2, "test": 0.3}, {"valid_days": 2, "test_days": 3}, {"valid_days": 2, "test": 0.3}]
    ):
        (tmp_path / str(number)).mkdir()
        parts = events_of_parts(split(tmp_path / str(number), events, {"method": "time", **rule}))
        days = {name: sorted(t // day for _, _, t in rows) for name, rows in parts.items()}
        assert days == {"train": [1, 2, 3, 4, 5], "valid": [6, 7], "test": [8, 9, 10]}


def test_held_out_users_are_history_but_nothing_is_fitted_to_them(tmp_path: Path) -> None:
    events = [(f"u{u}", f"i{n}", n) for u in range(200) for n in (1, 2, 3)]
    dataset = split(tmp_path, events, {"method": "user", "valid": 0.2, "test": 0.2})
    parts = events_of_parts(dataset, positive=True)
    held_out, validates = ({u for u, _, _ in parts[name]} for name in ("test", "valid"))
    assert 20 < len(held_out) < 60
    assert 20 < len(validates) < 60
    assert not held_out & validates
    everything = events_of_parts(dataset)
    assert not held_out & {u for u, _, _ in everything["train"]}
    assert all(t == 3 for name in ("valid", "test") for _, _, t in parts[name])
    user = list(dataset.users).index(next(iter(held_out)))
    items, _, _ = dataset.recent(np.array([user]), dataset.train, dataset.valid)
    assert [dataset.items[i] for i in items[0, -2:]] == ["i1", "i2"]


def test_folds_of_users_test_each_user_once(tmp_path: Path) -> None:
    events = [(f"u{u}", f"i{n}", n) for u in range(60) for n in (1, 2, 3)]
    tested: list[str] = []
    for fold in range(3):
        (tmp_path / str(fold)).mkdir()
        rule = {"method": "user", "valid": 0.2, "test": 1 / 3, "fold": fold}
        parts = events_of_parts(split(tmp_path / str(fold), events, rule), positive=True)
        users = {name: {user for user, _, _ in rows} for name, rows in parts.items()}
        assert users["test"] and users["valid"] and not users["test"] & (users["train"] | users["valid"])
        tested += users["test"]
    assert sorted(tested) == sorted({user for user, _, _ in events})


def test_random_and_folds(tmp_path: Path) -> None:
    events = [(f"u{n % 50}", f"i{n % 20}", n) for n in range(2000)]
    (tmp_path / "random").mkdir()
    dataset = split(tmp_path / "random", events, {"method": "random", "valid": 0.1, "test": 0.2})
    assert 150 < len(dataset.valid) < 250
    assert 330 < len(dataset.test) < 470
    tested: list[tuple[str, str, int]] = []
    for fold in range(3):
        (tmp_path / str(fold)).mkdir()
        parts = events_of_parts(
            split(tmp_path / str(fold), events, {"method": "kfold", "folds": 3, "fold": fold})
        )
        assert all(len(rows) > 500 for rows in parts.values())
        tested += parts["test"]
    assert sorted(tested) == sorted(events)


def test_given_files_with_listed_negatives(tmp_path: Path) -> None:
    train = pl.DataFrame({"user": [1, 1, 1, 2], "item": [10, 11, 12, 10], "timestamp": [1, 2, 3, 1]})
    test = pl.DataFrame(
        {"user": ["1", "3"], "item": ["13", "10"], "timestamp": [4, 5], "no": ["10 99", "[11]"]}
    )
    train.write_parquet(tmp_path / "train.parquet")
    test.write_csv(tmp_path / "test.csv")
    rule = {"method": "given", "test_events": [str(tmp_path / "test.csv")], "negatives": "no"}
    content = {"data": {"events": [str(tmp_path / "train.parquet")]}, "split": rule}
    dataset = Dataset.open(prepare(parse(content, "test"), tmp_path / "out").path)
    assert events_of_parts(dataset) == {
        "train": [("1", "10", 1), ("1", "11", 2), ("2", "10", 1)],
        "valid": [("1", "12", 3)],
        "test": [("1", "13", 4), ("3", "10", 5)],
    }
    listed = dataset.test.negatives
    assert listed is not None
    users = [dataset.users[u] for u in dataset.test.user]
    items = {u: [dataset.items[i] for i in row] for u, row in zip(users, listed, strict=True)}
    assert items == {"1": ["10", "99"], "3": ["11", ""]}
    assert dataset.artifact.figures["rows_in"] == 6


def test_an_item_of_the_test_part_alone_has_a_row(tmp_path: Path) -> None:
    dataset = split(tmp_path, [("a", f"i{n}", n) for n in range(1, 5)], {})
    item = list(dataset.items).index("i4")
    assert dataset.test.item.tolist() == [item]
    assert dataset.popularity[item] == 0
    assert dataset.schema.items == len(dataset.items) == 5


def test_only_new_pairs(tmp_path: Path) -> None:
    events = [("a", "x", 1), ("a", "y", 2), ("a", "x", 3), ("b", "x", 1), ("b", "y", 2), ("b", "z", 3)]
    dataset = split(tmp_path, events, {"new_items_only": True})
    assert events_of_parts(dataset, positive=True)["test"] == [("b", "z", 3)]
    assert events_of_parts(dataset)["test"] == [("a", "x", 3), ("b", "z", 3)]  # history all the same
    assert dataset.artifact.figures["repeated"] == 1


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event to train on"):
        split(tmp_path, [("a", "x", 1), ("a", "y", 1)], {"method": "time", "test_days": 5})
    assert not (tmp_path / "out").exists()


def test_a_user_with_one_event_trains(tmp_path: Path) -> None:
    events = [("a", "x", 1), ("b", "y", 2)]
    assert events_of_parts(split(tmp_path, events, {}))["train"] == events


@pytest.mark.parametrize("method", ["leave_last", "time", "random", "user"])
def test_buckets_do_not_change_what_is_written(tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng(3)
    events = [(f"u{u}", f"i{i}", int(t)) for u, i, t in rng.integers(0, 60, (1500, 3))]
    written = []
    for buckets in (1, 7):
        (tmp_path / str(buckets)).mkdir()
        dataset = split(
            tmp_path / str(buckets), events, {"method": method}, buckets=buckets, min_user_events=3
        )
        files = dataset.artifact.files
        written.append(
            {name: entry["sha256"] for name, entry in files.items() if not name.startswith("rejected")}
        )
    assert written[0] == written[1]


@pytest.mark.parametrize("method", ["leave_last", "time", "time_by_days", "user", "random", "kfold", "given"])
@pytest.mark.parametrize(("valid", "test"), [(0, 0.2), (0.2, 0), (0, 0)])
def test_a_part_may_be_left_out_by_every_method(
    tmp_path: Path, method: str, valid: float, test: float
) -> None:
    events = [(f"u{n % 40}", f"i{n % 23}", 1_600_000_000 + 86_400 * n) for n in range(400)]
    rule: dict[str, Any] = {"method": method, "valid": valid, "test": test}
    if method == "time_by_days":
        rule |= {"method": "time", "valid_days": 100 * valid, "test_days": 100 * test}
    extra = pl.DataFrame([("u1", "new", 1_700_000_000)], schema=["user", "item", "timestamp"], orient="row")
    extra.write_parquet(tmp_path / "test.parquet")
    if method == "given" and test:
        rule["test_events"] = [str(tmp_path / "test.parquet")]
    dataset = split(tmp_path, events, rule)
    assert (dataset.valid.label > 0).any() == (valid > 0)
    assert method == "user" or len(dataset.valid) == 0 or valid > 0  # there, history of those held out out
    assert bool(len(dataset.test)) == (test > 0)
    assert sum(len(part) for part in dataset.parts) == 400 + (method == "given" and test > 0)
    assert dataset.test.indptr.tolist()[-1] == len(dataset.test)
    if method.startswith("time"):
        bounds = [(part.time.min(), part.time.max()) for part in dataset.parts]
        assert all(before[1] < after[0] for before, after in itertools.pairwise(bounds))
        assert len(dataset.train) > 300


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"test_days": 3, "valid": 0}, (7, 0, 3)),
        ({"test_days": 3, "valid": 0.2}, (5, 2, 3)),
        ({"test": 0, "valid_days": 2}, (8, 2, 0)),
        ({"test": 0.3, "valid_days": 2}, (5, 2, 3)),
    ],
)
def test_days_of_one_part_and_a_share_for_the_other(
    tmp_path: Path, rule: dict[str, Any], expected: tuple[int, ...]
) -> None:
    events = [("a", f"i{n}", n * 86_400) for n in range(10)]
    dataset = split(tmp_path, events, {"method": "time", **rule})
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == expected
