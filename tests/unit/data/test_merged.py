"""Every event kept in one training part, with the labels that its type implies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.data import merged
from app.data.dataset import Dataset
from app.data.merged import merge_parts
from app.data.stage import prepare
from app.errors import ArtifactError
from app.recipe import parse
from tests.tiny import tiny_dataset

pytestmark = pytest.mark.usefixtures("ray_local")
EVENTS = [
    (f"u{user}", f"i{(user + n) % 7}", 10 * n + user, "buy" if n % 3 else "view")
    for user in range(40)
    for n in range(1 + user % 6)
]


def prepared(folder: Path, events: list[tuple[Any, ...]], rule: dict[str, Any], **data: Any) -> Dataset:
    schema = ["user", "item", "timestamp", "event"]
    pl.DataFrame(events, schema=schema, orient="row").write_parquet(folder / "log.parquet")
    data = {"event": "event", "positive": ["buy"], "duplicates": "keep", **data}
    content = {"data": {"events": [str(folder / "log.parquet")], **data}, "split": rule}
    return Dataset.open(prepare(parse(content, "test"), folder / "dataset").path)


def rows_of(dataset: Dataset) -> list[tuple[str, str, int, str, float]]:
    """Training events in the order of their rows."""
    users, items, part = list(dataset.users), list(dataset.items), dataset.train
    return [
        (users[u], items[i], int(t) // 10**6, dataset.schema.events[e], float(label))
        for u, i, t, e, label in zip(part.user, part.item, part.time, part.event, part.label, strict=True)
    ]


def in_order(dataset: Dataset, events: list[tuple[Any, ...]]) -> list[tuple[str, str, int, str, float]]:
    """The log by row of the user, then time, as a person would sort it."""
    row = {user: number for number, user in enumerate(dataset.users)}
    labelled = [(u, i, t, e, float(e == "buy")) for u, i, t, e in events]
    return sorted(labelled, key=lambda event: (row[event[0]], event[2]))


@pytest.mark.parametrize("method", ["leave_last", "time", "user", "random", "kfold"])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_all_events_of_every_method_in_order_with_true_labels(
    tmp_path: Path, method: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "BLOCK", block)
    dataset = prepared(tmp_path, EVENTS, {"method": method, "valid": 0.3, "test": 0.3})
    whole = merge_parts(dataset, tmp_path / "merged")
    assert rows_of(whole) == in_order(dataset, EVENTS)
    assert len(whole.valid) == len(whole.test) == 0
    assert (
        whole.train.indptr.tolist()
        == np.searchsorted(whole.train.user, np.arange(dataset.schema.users + 1)).tolist()
    )
    assert whole.schema.end_time == max(time for _, _, time, _ in EVENTS) * 10**6


@pytest.mark.parametrize("least", [1, 2])
def test_given_test_files_count_but_for_items_that_the_core_dropped(tmp_path: Path, least: int) -> None:
    log = [("a", "x", 1, "buy"), ("a", "y", 2, "buy"), ("b", "x", 1, "buy"), ("b", "y", 3, "buy")]
    test = pl.DataFrame(
        [("a", "x", 5, "view"), ("b", "new", 2, "buy"), ("b", "x", 2, "buy")],
        schema=["user", "item", "timestamp", "event"],
        orient="row",
    )
    test.write_parquet(tmp_path / "test.parquet")
    rule = {"method": "given", "valid": 0, "test_events": [str(tmp_path / "test.parquet")]}
    dataset = prepared(tmp_path, log, rule, min_item_events=least)
    whole = merge_parts(dataset, tmp_path / "merged")
    tested = [row for row in test.rows() if least == 1 or row[1] != "new"]
    assert rows_of(whole) == in_order(dataset, [*log, *tested])
    assert whole.artifact.figures["train"] == len(whole.train)


def test_repeats_that_new_items_only_does_not_test_are_kept(tmp_path: Path) -> None:
    events = [("a", "x", 1, "buy"), ("a", "y", 2, "buy"), ("a", "x", 3, "buy")]
    dataset = prepared(tmp_path, events, {"new_items_only": True})
    assert not (dataset.test.label > 0).any()
    assert rows_of(merge_parts(dataset, tmp_path / "merged")) == in_order(dataset, events)


def test_popularity_counts_every_event_by_its_type(tmp_path: Path) -> None:
    # Held-out users' earlier events have label 0 in the data set: they were bought all the same.
    dataset = prepared(tmp_path, EVENTS, {"method": "user", "valid": 0.3, "test": 0.3})
    assert (dataset.valid.label[dataset.labels(dataset.valid) > 0] == 0).any()
    bought = [item for _, item, _, kind in EVENTS if kind == "buy"]
    expected = {item: bought.count(item) for item in list(dataset.items)[1:]}
    counts = dataset.positive_counts(*dataset.parts)
    assert dict(zip(dataset.items, counts.tolist(), strict=True)) == {"": 0, **expected}
    whole = merge_parts(dataset, tmp_path / "merged")
    assert whole.popularity.tolist() == counts.tolist()


def test_a_merged_data_set_opens_anywhere_and_keeps_its_features(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", negatives=3)
    whole = merge_parts(dataset, tmp_path / "merged")
    opened = Dataset.open(tmp_path / "merged")  # verifies every file
    assert opened.artifact.digest == whole.artifact.digest != dataset.artifact.digest
    assert len(opened.train) == sum(len(part) for part in (dataset.train, dataset.valid, dataset.test))
    assert opened.test.negatives is None
    assert list(opened.items) == list(dataset.items)
    for name in ("item_dense", "item_category", "user_dense", "user_category"):
        assert np.array_equal(opened.feature(name), dataset.feature(name))
    assert opened.artifact.figures["train"] == len(opened.train)
    assert opened.artifact.parents == {"dataset": dataset.artifact.digest}
    assert whole.train.user.base is not None  # a view of the file, not a copy


def test_a_data_set_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    path = dataset.path / "schema.json"
    path.write_text(path.read_text().replace('"positive"', '"other"'))
    with pytest.raises(ArtifactError, match=r"schema\.json.*positive.*prepare"):
        Dataset.open(dataset.path, verify=False)
