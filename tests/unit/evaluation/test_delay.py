"""Figures at serving moments: the same users and histories, asked later than the test event was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from torch import Tensor

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation.evaluate import evaluate
from app.evaluation.page import markdown
from app.evaluation.plots import _curve
from app.evaluation.requests import requests_of
from app.evaluation.scorer import ModelScorer
from app.features.context import DAY, HOUR, Context
from app.models.base import Batch
from app.models.build import build_model
from app.recipe import Recipe, parse
from tests.tiny import tiny_dataset


def recipe(**evaluate: Any) -> Recipe:
    return parse({"model": {"name": "mlp"}, "evaluate": {"baselines": [], **evaluate}}, "test")


class LivesOnRecency(ModelScorer):
    """Ranks as its model does within a day of the last event, and the other way round later."""

    def all(self, batch: Batch) -> Tensor:
        late = batch.context[:, :1] > np.log1p(24.0)
        scores = super().all(batch)
        return scores * (1 - 2 * late.float())


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """The only context is recency, and training has seen any."""
    plain = tiny_dataset(tmp_path / "dataset", users=80, events=1200)
    changes = {"context": ["recency"], "context_width": 2, "context_bounds": []}
    (plain.path / "schema.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(plain.schema, **changes))
    )
    return Dataset.open(plain.path, verify=False)


def test_requests_are_asked_so_long_after_the_last_event_of_their_user(dataset: Dataset) -> None:
    requests = requests_of(dataset, "test")
    delayed = requests.delayed(dataset, 3 * HOUR)
    assert (delayed.now - requests.last(dataset) == 3 * HOUR).all()
    assert delayed.target.tolist() == requests.target.tolist()


def test_a_model_that_lives_on_recency_is_shown_to(dataset: Dataset) -> None:
    scorer = LivesOnRecency(build_model("item_knn", {}, dataset))
    report = evaluate(recipe(delay=["1h", "30d"]), dataset, scorer)
    assert list(report.delayed) == ["test moment", "1h", "30d"]
    assert report.delayed["30d"]["ndcg@10"] < 0.8 * report.delayed["test moment"]["ndcg@10"]
    assert any(note.startswith("asked 30d after the last event, ndcg@10 is") for note in report.notes)
    assert not any(note.startswith("asked 1h") for note in report.notes)
    assert "| 30d after the last event" in markdown(report)


def test_a_model_that_does_not_is_not_warned_of_and_delays_can_be_left_out(dataset: Dataset) -> None:
    scorer = ModelScorer(build_model("item_knn", {}, dataset))
    report = evaluate(recipe(), dataset, scorer)
    assert list(report.delayed) == ["test moment", "median", "1d"]
    assert report.delayed["median"] == report.delayed["1d"] == report.delayed["test moment"]
    assert not any("after the last event" in note for note in report.notes)
    assert evaluate(recipe(delay=[]), dataset, scorer).delayed == {}


def test_a_log_without_times_has_no_moment(dataset: Dataset) -> None:
    changes = {"context": [], "context_width": 0, "context_bounds": [], "timed": False}
    schema = msgspec.structs.replace(dataset.schema, **changes)
    (dataset.path / "schema.json").write_bytes(msgspec.json.encode(schema))
    untimed = Dataset.open(dataset.path, verify=False)
    report = evaluate(recipe(), untimed, ModelScorer(build_model("item_knn", {}, untimed)))
    assert report.delayed == {}
    assert "the log has no times: a request is ranked alike whenever it is asked" in report.notes


def test_a_delay_that_is_no_length_of_time_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate.delay.+1h"):
        recipe(delay=["soon"])


def test_a_curve_shows_the_time_so_far_and_the_figure_nearest_to_ten() -> None:
    from matplotlib import pyplot

    curve = [
        {"epoch": 1, "loss": 0.6, "ndcg@5": 0.2, "ndcg@10": 0.3, "seconds": 40.0},
        {"epoch": 2, "loss": 0.5, "ndcg@5": 0.3, "ndcg@10": 0.4, "seconds": 89.0},
    ]
    figure, axes = pyplot.subplots()
    _curve(axes, curve)
    assert axes.get_title(loc="center") + axes.get_title(loc="left") == "Training: 2 epochs, 89 s"
    assert figure.axes[1].get_ylabel() == "validation NDCG@10"
    pyplot.close(figure)


def test_bounds_reach_the_model_from_the_schema(dataset: Dataset) -> None:
    schema = msgspec.structs.replace(dataset.schema, context_bounds=[[0.5, 1.0], [0.0, 1.0]])
    floats = schema.moments(np.array([100 * DAY]), np.array([[DAY]]))
    assert floats.tolist() == [[1.0, 0.0]]
    assert Context(["recency"])(np.array([100 * DAY]), np.array([[DAY]]))[0, 0] > 1
