"""Evaluation by logged labels: what is known of an event, figures by hand, intervals, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from app.bundle.export.card import _table
from app.data.dataset import COLUMNS, Array, Dataset, Part
from app.errors import DataError, RecipeError
from app.evaluation.compare import paired
from app.evaluation.evaluate import evaluate
from app.evaluation.logged.events import logged_events, scores_of
from app.evaluation.logged.label_means import LabelMeans
from app.evaluation.logged.measure import measure_labels
from app.evaluation.report import write_report
from app.evaluation.validate import validate, validated
from app.features.context import DAY
from app.models.base import Batch, Reads
from app.recipe import Recipe, parse
from app.recipe_check import check_recipe
from app.terminal.summary import of_run
from app.training.train import fit
from tests.tiny import tiny_dataset

VIEW, SKIP = 1, 3


def recipe(**changes: Any) -> Recipe:
    logged = {"candidates": "logged", "baselines": [], **changes}
    return parse({"model": {"name": "dcn"}, "evaluate": logged}, "test")


def with_parts(folder: Path, users: int, items: int, **parts: list[tuple[int, int, float, int]]) -> Dataset:
    """A data set of the events (user, item, day, label)."""
    dataset = tiny_dataset(folder / "dataset", users=users, items=items, history=3, content=False)
    for name in ("train", "valid", "test"):
        rows = sorted(parts.get(name, []), key=lambda row: (row[0], row[2]))
        table = np.array([(u, i, day * DAY, VIEW if y else SKIP, 1, y) for u, i, day, y in rows])
        columns: dict[str, Array] = dict(
            zip(COLUMNS, table.reshape(-1, len(COLUMNS)).astype(np.int64).T, strict=True)
        )
        Part.save(dataset.path / name, columns, dataset.schema.users)
    return Dataset.open(dataset.path, verify=False)


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    return with_parts(
        tmp_path,
        2,
        6,
        train=[(1, 1, 1, 1), (1, 2, 3, 0), (1, 3, 7, 1), (2, 1, 1, 0)],
        valid=[(1, 4, 2, 1), (1, 6, 3, 0)],
        test=[(1, 5, 3, 1), (1, 6, 0.5, 0), (1, 4, 8, 0), (2, 5, 4, 1), (0, 3, 9, 1)],
    )


class ByItem:
    """Scores each item by a table, and keeps what it was shown."""

    reads: Reads = "recent"

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.shown = torch.tensor(scores), list[Batch]()

    def all(self, batch: Batch) -> Tensor:
        return self.scores.expand(len(batch.user), -1)

    def candidates(self, batch: Batch) -> Tensor:
        self.shown.append(batch)
        return self.scores[batch.item]


def test_an_event_sees_what_came_before_its_moment_in_the_earlier_parts(small: Dataset) -> None:
    scorer = ByItem([0.0] * 7)
    scores_of(small, logged_events(small, "test"), scorer)
    (batch,) = scorer.shown
    shown = dict(zip(batch.item[:, 0].tolist(), batch.history.item.tolist(), strict=True))
    assert batch.item[:, 0].tolist() == [3, 6, 5, 4, 5]  # by user, then time
    assert batch.history.item.tolist() == [
        [0, 0, 0],  # nobody knows the user
        [0, 0, 0],  # before the first event
        [0, 1, 4],  # not item 2 and 6, which are of the same moment
        [2, 6, 3],  # the last three; test events are not known
        [0, 0, 1],
    ], shown


def test_validation_knows_the_training_part_alone(small: Dataset) -> None:
    scorer = ByItem([0.0] * 7)
    scores_of(small, logged_events(small, "valid"), scorer)
    assert scorer.shown[0].history.item.tolist() == [[0, 0, 1], [0, 0, 1]]


def test_without_times_the_whole_past_is_known(small: Dataset) -> None:
    schema = msgspec.structs.replace(
        small.schema, timed=False, context=[], context_width=0, context_bounds=[]
    )
    (small.path / "schema.json").write_bytes(msgspec.json.encode(schema))
    for name in ("train", "valid", "test"):
        np.save(small.path / name / "time.npy", np.zeros(len(getattr(small, name)), np.int64))
    scorer, untimed = ByItem([0.0] * 7), Dataset.open(small.path, verify=False)
    scores_of(untimed, logged_events(untimed, "valid"), scorer)
    assert scorer.shown[0].history.item.tolist() == [[1, 2, 3], [1, 2, 3]]


def test_labels_that_the_split_hides_are_not_evaluated(small: Dataset) -> None:
    label = np.array(small.test.label)
    label[1] = 1 - label[1]
    np.save(small.path / "test" / "label.npy", label)
    assert logged_events(Dataset.open(small.path, verify=False), "test").row.tolist() == [0, 2, 3, 4]


def test_figures_worked_out_by_hand(small: Dataset) -> None:
    events = logged_events(small, "test")  # users 0, 1, 1, 1, 2 with labels 1, 0, 1, 0, 1
    scores = np.array([2.0, 1.0, 1.0, -1.0, 0.0], np.float32)
    measured = measure_labels(events, scores)
    chance = 1 / (1 + np.exp(-scores.astype(float)))
    label = np.array([1, 0, 1, 0, 1])
    loss = -np.log(np.where(label, chance, 1 - chance))
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    # Negatives 1 and -1: of the positives 2 beats both, 1 beats one and ties with one, 0 beats one.
    assert measured.figures["auc"] == pytest.approx((2 + 1.5 + 1) / 6)
    assert measured.figures["gauc"] == pytest.approx(0.75)  # user 1 alone has both labels
    assert measured.figures["log_loss"] == pytest.approx(loss.mean())
    assert measured.figures["information_gain"] == pytest.approx(1 - loss.mean() / entropy)
    assert measured.figures["accuracy"] == pytest.approx(3 / 5)
    assert measured.figures["calibration_ratio"] == pytest.approx(chance.sum() / 3)
    assert measured.count == 3


def test_the_interval_of_the_area_is_that_of_resampled_users(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    users = 60
    test = [
        (u, int(random.integers(1, 6)), d, int(random.random() < 0.4)) for u in range(1, 61) for d in range(8)
    ]
    dataset = with_parts(tmp_path, users, 10, train=[(1, 1, 0, 1)], test=test)
    events = logged_events(dataset, "test")
    scores = (
        events.label + random.normal(0, 1.5, len(events)) + random.normal(0, 1, 61)[events.user]
    ).astype(np.float32)
    measured = measure_labels(events, scores)
    drawn = []
    for _ in range(400):
        chosen = random.integers(1, users + 1, users)
        rows = np.concatenate([np.flatnonzero(events.user == user) for user in chosen])
        own = type(events)(events.part, events.past, events.row[rows])
        drawn.append(measure_labels(own, scores[rows]).figures["auc"])
    low, high = measured.intervals(2000, 0)["auc"]
    assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.012)
    assert high - low > 0.05
    difference = paired(measured, measure_labels(events, -scores), "auc", 500, 0)
    assert difference.value == pytest.approx(2 * measured.figures["auc"] - 1)
    assert difference.low == pytest.approx(2 * low - 1, abs=0.02)


def test_label_means_add_what_an_item_and_a_user_are_on_the_whole(small: Dataset) -> None:
    means = LabelMeans(small)
    mean, item1 = 0.5, (0.5 - 0.5) / (2 + 25)  # item 1 has labels 1 and 0
    item2, item3 = -0.5 / 26, 0.5 / 26
    user1 = ((0.5 - item1) + (-0.5 - item2) + (0.5 - item3)) / (3 + 10)
    assert means.mean == mean
    batch = logged_events(small, "test").batch(small, slice(2, 3), "recent")
    batch.item = torch.tensor([[1, 2, 3, 0]])
    chance = np.array([mean + user1 + item1, mean + user1 + item2, mean + user1 + item3, mean + user1])
    np.testing.assert_allclose(means.candidates(batch)[0].sigmoid(), chance, rtol=1e-5)
    np.testing.assert_allclose(means.all(batch)[0, :4].sigmoid(), chance[[3, 0, 1, 2]], rtol=1e-5)


def test_the_report_is_of_the_logged_events(small: Dataset, tmp_path: Path) -> None:
    scorer = ByItem([0.0, 0.1, 0.2, 0.3, -1.0, 2.0, 1.0])
    report = evaluate(recipe(baselines=["popularity"]), small, scorer)
    assert report.protocol == {"candidates": "logged", "requests": 3, "targets": 5, "positives": 3}
    assert set(report.baselines) == {"label_means", "popularity"}
    assert set(report.baselines["popularity"]) == {"auc", "gauc"}  # a count is no probability
    assert "log_loss" in report.baselines["label_means"]
    assert report.differences["popularity"]["auc"][0] == pytest.approx(
        report.figures["auc"] - report.baselines["popularity"]["auc"]
    )
    assert any("1 events are of users that training does not know" in note for note in report.notes)
    written = write_report(
        report, tmp_path / "report", curve=[{"epoch": 1, "loss": 0.5, "auc": 0.6, "seconds": 1}]
    )
    page = (tmp_path / "report" / "report.md").read_text()
    assert "5 logged events of 3 users, 60.0% with label 1" in page and "gauc is the same within" in page
    assert "NDCG" not in page and json.loads((tmp_path / "report" / "report.json").read_text())["ratios"]
    assert "| auc |" in "\n".join(_table(written.figures))
    rows = of_run(
        {
            **written.figures,
            "data": {"rejected": {}, "rows_in": 1, "rows_kept": 1, "users": 2, "items": 6},
            "training": {"epochs": 1, "best_epoch": 1},
            "bytes": {"bundle": 1, "float32": 1},
            "seconds": {},
        }
    )
    assert dict(rows)["auc"].startswith(f"{report.figures['auc']:.4f}, label_means ")


def test_the_area_that_compression_keeps_is_that_of_the_same_events(small: Dataset) -> None:
    full, left = ByItem([0, 0, 0, 2, -1, 1, 0]), ByItem([0, 0, 0, 1, 0, -1, 2])
    report = evaluate(recipe(bootstrap=0), small, left, uncompressed=full)
    whole = evaluate(recipe(bootstrap=0), small, full)
    share, *_ = report.kept["auc"]
    assert share == pytest.approx(report.figures["auc"] / whole.figures["auc"]) and 0 < share < 1
    assert any(
        note.startswith(f"compressed, the model keeps {share:.1%} of its auc") for note in report.notes
    )
    assert "uncompressed" not in report.baselines and whole.kept == {}


def test_scores_that_are_nan_are_counted_and_lose(small: Dataset) -> None:
    report = evaluate(recipe(), small, ByItem([0.0, 0.0, 0.0, 0.0, -1.0, float("nan"), 1.0]))
    assert any(note.startswith("2 scores were NaN") for note in report.notes)
    assert report.figures["auc"] < 0.5


def test_users_are_drawn_with_all_their_events(small: Dataset) -> None:
    events = logged_events(small, "test")
    drawn = events.of_users(1, 0)
    assert len(set(drawn.user)) == 1 and len(drawn) == (events.user == drawn.user[0]).sum()
    assert len(events.of_users(0, 0)) == len(events.of_users(9, 0)) == 5


def test_a_part_of_one_label_is_refused_and_validates_to_nan(tmp_path: Path) -> None:
    dataset = with_parts(tmp_path, 2, 6, train=[(1, 1, 1, 1)], valid=[(1, 2, 2, 1)], test=[(1, 2, 3, 1)])
    with pytest.raises(DataError, match=r"all 1 events of the test part have label 1"):
        evaluate(recipe(), dataset, ByItem([0.0] * 7))
    assert np.isnan(validate(recipe(), dataset, ByItem([0.0] * 7), 0, 0)["auc"])


def test_nothing_to_validate_by_has_no_figures(tmp_path: Path) -> None:
    dataset = with_parts(tmp_path, 2, 6, train=[(1, 1, 1, 1)])
    assert validated(recipe(), dataset, ByItem([0.0] * 7), 0, 0) is None


LIKED = {"event": "kind", "positive": ["like"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"split": {"method": "random"}}, "every event is to be predicted"),
        ({"data": LIKED}, "'leave_last' holds out events by their label"),
        ({"data": LIKED, "split": {"method": "given"}}, "'given' holds out events by their label"),
        (
            {"data": LIKED, "split": {"method": "random"}, "train": {"metric": "ndcg@10"}},
            "no figure 'ndcg@10'",
        ),
        ({"data": LIKED, "split": {"method": "random"}, "train": {"metric": "log_loss"}}, "information_gain"),
    ],
)
def test_recipes_that_have_no_labels_to_evaluate_by_are_refused(
    content: dict[str, Any], message: str
) -> None:
    content = {"evaluate": {"candidates": "logged"}, **content}
    with pytest.raises(RecipeError, match=message):
        check_recipe(parse(content, "test"))


@pytest.mark.parametrize("metric", ["auc", "gauc", "information_gain"])
def test_recipes_by_logged_labels_learn_them_and_choose_by_them(metric: str) -> None:
    content = {"data": LIKED, "split": {"method": "random"}, "evaluate": {"candidates": "logged"}}
    assert (parse(content, "test").train.negatives, parse(content, "test").train.metric) == (0, "auc")
    chosen = parse({**content, "train": {"metric": metric}}, "test")
    check_recipe(chosen)
    assert (chosen.train.negatives, chosen.train.metric) == (0, metric)


def test_training_by_logged_labels_finds_what_users_like(tmp_path: Path) -> None:
    """Users like the items of their own parity: neither an item nor a user is liked more than others."""
    random = np.random.default_rng(0)
    rows = [
        (u, int(i), float(d), int((u + i) % 2 == 0))
        for u in range(1, 41)
        for d, i in enumerate(random.permutation(20) + 1)
    ]
    parts = random.integers(0, 10, len(rows))
    dataset = with_parts(
        tmp_path,
        40,
        20,
        train=[row for row, part in zip(rows, parts, strict=True) if part > 1],
        valid=[row for row, part in zip(rows, parts, strict=True) if part == 1],
        test=[row for row, part in zip(rows, parts, strict=True) if part == 0],
    )
    training = {
        "epochs": 15,
        "batch_size": 64,
        "learning_rate": 0.01,
        "table_learning_rate": 0.2,
        "workers": 0,
    }
    learned = recipe().override({f"train.{key}": value for key, value in training.items()})
    artifact = fit(learned, dataset, tmp_path / "checkpoint")
    assert artifact.figures["best_auc"] > 0.9
    from app.evaluation.scorer import ModelScorer
    from app.training.checkpoint import load_checkpoint

    model = load_checkpoint(tmp_path / "checkpoint", dataset).model
    report = evaluate(learned, dataset, ModelScorer(model))
    assert report.figures["auc"] > 0.85 > 0.65 > report.baselines["label_means"]["auc"]
    assert report.figures["information_gain"] > 0.2 and not report.behind
