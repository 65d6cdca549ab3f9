"""Data sets of one user or one item, splits that hold nothing out, and users and items of each segment."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from app.data.dataset import COLUMNS, Array, Dataset, Part
from app.evaluation.evaluate import evaluate
from app.evaluation.report import write_report
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validate
from app.features.context import DAY
from app.models.build import build_model
from app.models.discovery import model_class, model_names
from app.recipe import Recipe, parse
from tests.tiny import tiny_dataset


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        yield


def recipe(model: str = "popularity", **evaluate: Any) -> Recipe:
    return parse({"model": {"name": model}, "evaluate": evaluate}, "test")


def with_parts(dataset: Dataset, **parts: list[tuple[int, ...]]) -> Dataset:
    """The data set with events (user, item, day) instead of its own, a skip where a fourth value follows."""
    for name in ("train", "valid", "test"):
        rows = sorted(parts.get(name, []), key=lambda row: (row[0], row[2]))
        table = np.array([(u, i, day * DAY, 3 if label else 1, 1, not label) for u, i, day, *label in rows])
        table = table.reshape(-1, len(COLUMNS)).astype(np.int64)
        columns: dict[str, Array] = dict(zip(COLUMNS, table.T, strict=True))
        Part.save(dataset.path / name, columns, dataset.schema.users)
    return Dataset.open(dataset.path, verify=False)


ONE_ITEM = {"train": [(1, 1, 1)], "valid": [(1, 1, 2)], "test": [(1, 1, 3)]}
ALL_SEEN = {"train": [(1, 1, 1), (2, 1, 1)], "valid": [(2, 1, 2)], "test": [(1, 1, 3), (2, 1, 3)]}
UNKNOWN_TARGET = {"train": [(1, 1, 1)], "test": [(1, 0, 3)]}
UNTRAINED_TARGET = {"train": [(1, 1, 1)], "valid": [(2, 2, 2)], "test": [(2, 2, 3)]}
CASES = [
    pytest.param(1, 1, ONE_ITEM, id="one user, one item"),
    pytest.param(2, 1, ALL_SEEN, id="one item, seen by all"),
    pytest.param(1, 1, UNKNOWN_TARGET, id="the only target is unknown"),
    pytest.param(2, 2, UNTRAINED_TARGET, id="the only target and its user are untrained"),
]


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize(("users", "items", "parts"), CASES)
def test_the_smallest_data_sets_are_evaluated_without_a_warning(
    model: str, exclude_seen: bool, users: int, items: int, parts: Any, tmp_path: Path
) -> None:
    kinds = [group[0] for group in model_class(model).NEEDS]
    log = tiny_dataset(tmp_path / "dataset", users=users + 4, items=40, events=200, kinds=kinds)
    dataset = with_parts(log, **parts)
    chosen = recipe(model, exclude_seen=exclude_seen, bootstrap=20)
    scorer = ModelScorer(build_model(model, {}, dataset))
    report = evaluate(chosen, dataset, scorer)
    assert 0 <= report.figures["ndcg@10"] <= 1
    validate(chosen, dataset, scorer, 10, 0)
    written = write_report(report, tmp_path / "report")
    text = (written.path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["figures"].keys() == report.figures.keys()


def test_a_figure_without_anything_to_compare_is_absent_and_no_number(tmp_path: Path) -> None:
    """One item in all: no pair of a target and another item, so there is no area under the curve."""
    dataset = with_parts(tiny_dataset(tmp_path / "dataset", users=5, items=40, events=50), **ONE_ITEM)
    one = msgspec.structs.replace(dataset.schema, items=2)
    (dataset.path / "schema.json").write_bytes(msgspec.json.encode(one))
    for name in ("item_dense", "item_category"):
        np.save(dataset.path / "features" / f"{name}.npy", dataset.feature(name)[:2])
    dataset = Dataset.open(dataset.path, verify=False)
    report = evaluate(recipe(), dataset, ModelScorer(build_model("popularity", {}, dataset)))
    assert math.isnan(report.figures["auc"])
    assert all(math.isnan(bound) for bound in report.intervals["auc"])
    assert "auc" not in report.ratios["popularity"]
    assert report.figures["hit_rate@10"] == 1


class TestNothingHeldOut:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        parts = {"train": [(1, 1, 1), (2, 2, 1)], "valid": [(1, 2, 2)]}
        return with_parts(tiny_dataset(tmp_path / "dataset", users=5, items=20, events=50), **parts)

    def test_the_report_says_so_and_has_no_figures(self, dataset: Dataset, tmp_path: Path) -> None:
        scorer = ModelScorer(build_model("popularity", {}, dataset))
        report = evaluate(recipe(), dataset, scorer)
        assert (report.figures, report.baselines, report.segments, report.intervals) == ({}, {}, {}, {})
        assert report.notes == ["nothing was held out to test on, so there are no figures; see [split] test"]
        written = write_report(report, tmp_path / "report", curve=[{"epoch": 1, "loss": 0.5}])
        page = (written.path / "report.md").read_text()
        assert "nothing was held out to test on" in page
        assert "NDCG" not in page and "| figure" not in page and "0 users" not in page
        assert written.figures["figures"] == {}
        assert "curve.png" in written.files and "figures.png" not in written.files

    def test_validation_is_empty_where_nothing_validates(self, dataset: Dataset) -> None:
        empty = with_parts(dataset, train=[(1, 1, 1), (2, 2, 1)])
        scorer = ModelScorer(build_model("popularity", {}, empty))
        assert validate(recipe(), empty, scorer, 10, 0) == {}


def test_each_user_and_each_target_belongs_to_one_segment(tmp_path: Path) -> None:
    """By events in training: users 1 to 4 have 1, 6, 51 and none; user 0 is any id that nobody knows."""
    plain = tiny_dataset(tmp_path / "dataset", users=6, items=60, events=60)
    train = [
        (1, 1, 1),
        *((2, item, item) for item in range(1, 7)),
        *((3, item, item) for item in range(1, 52)),
    ]
    test = [(0, 1, 90), (1, 2, 91), (2, 55, 92), (3, 56, 93), (4, 1, 94), (4, 0, 95)]
    dataset = with_parts(plain, train=train, valid=[(4, 57, 80)], test=test)
    report = evaluate(recipe(), dataset, ModelScorer(build_model("popularity", {}, dataset)))
    groups = {name: (s["requests"], s["targets"]) for name, s in report.segments.items()}
    assert groups == {
        "unknown users": (1, 1),
        "untrained users": (1, 2),
        "new users (1 to 5 events)": (1, 1),
        "light users (6 to 50)": (1, 1),
        "heavy users (over 50)": (1, 1),
        "head items (80% of events)": (3, 3),
        "untrained items": (2, 2),
        "unknown items": (1, 1),
    }


def test_an_item_with_skips_alone_is_trained_and_in_the_tail(tmp_path: Path) -> None:
    plain = tiny_dataset(tmp_path / "dataset", users=6, items=60, events=60)
    train = [(1, 1, 1), (1, 3, 2, True), (2, 1, 1)]
    dataset = with_parts(plain, train=train, test=[(2, 3, 9)])
    report = evaluate(recipe(), dataset, ModelScorer(build_model("popularity", {}, dataset)))
    assert "tail items" in report.segments and "untrained items" not in report.segments
