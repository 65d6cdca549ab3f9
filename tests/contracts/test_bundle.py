"""What a bundle of any model promises: it ranks as the model does, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.bundle.format.histories import Events
from app.bundle.format.layout import Info
from app.bundle.request.encode import EncodedRequest, model_inputs
from app.bundle.request.requests import Context, RankRequest, RecommendRequest
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.events import HistoryEvent
from app.models.base import Model
from app.models.batch import batch_of
from app.models.discovery import model_names
from tests.bundles import NOW, bundle_of, random_model, requests_batch
from tests.tiny import Datasets

MOMENT = Context(timestamp=float(NOW))
USERS = [1, 7, 30, 119]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("bundle"), events=1500)


@pytest.fixture(scope="module", params=model_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dataset(name: str, datasets: Datasets) -> Dataset:
    return datasets[name]


@pytest.fixture(scope="module")
def model(name: str, dataset: Dataset) -> Model:
    return random_model(name, dataset)


@pytest.fixture(scope="module")
def ranker(model: Model, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return bundle_of(model, dataset, tmp_path_factory.mktemp("out") / "bundle")


def torch_scores(model: Model, dataset: Dataset, users: list[int], items: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    with torch.no_grad():
        return model(requests_batch(dataset, users, items, model.reads)).numpy()  # type: ignore[no-any-return]


def ranked(ranker: Ranker, user: int, items: list[int]) -> dict[str, float]:
    request = RankRequest(user=f"u{user}", items=[f"i{i}" for i in items], context=MOMENT)
    (answer,) = ranker.rank([request])
    return {one.item: one.score for one in answer.items}


def test_scores_equal_torch(model: Model, dataset: Dataset, ranker: Ranker) -> None:
    items = np.random.default_rng(0).permuted(np.tile(np.arange(1, 61), (4, 1)), axis=1)[:, :17]
    expected = torch_scores(model, dataset, USERS, items)
    for user, row, scores in zip(USERS, items, expected, strict=True):
        by_item = ranked(ranker, user, row.tolist())
        np.testing.assert_allclose([by_item[f"i{i}"] for i in row], scores, atol=1e-4, rtol=1e-4)


def test_a_history_in_the_request_replaces_what_training_knew(
    model: Model, dataset: Dataset, ranker: Ranker
) -> None:
    history = [HistoryEvent("i5", "view", NOW - 7200.0), HistoryEvent("i9", "buy", NOW - 60.0)]
    (answer,) = ranker.rank(
        [RankRequest("u7", [f"i{i}" for i in range(1, 11)], history=history, context=MOMENT)]
    )
    recent = tuple(np.zeros((1, dataset.schema.history), np.int64) for _ in range(3))
    for column, values in zip(
        recent, ([5, 9], [1, 2], [(NOW - 7200) * 10**6, (NOW - 60) * 10**6]), strict=True
    ):
        column[0, -2:] = values
    batch = batch_of(
        dataset,
        np.array([7]),
        recent,
        np.array([NOW * 10**6]),
        np.arange(1, 11)[None],  # type: ignore[arg-type]
    )
    with torch.no_grad():
        expected = model(batch)[0].numpy()
    by_item = {one.item: one.score for one in answer.items}
    np.testing.assert_allclose([by_item[f"i{i}"] for i in range(1, 11)], expected, atol=1e-4, rtol=1e-4)


def test_an_unknown_user_is_ranked_as_row_0(model: Model, dataset: Dataset, ranker: Ranker) -> None:
    request = RankRequest("nobody", [f"i{i}" for i in range(1, 11)], context=MOMENT)
    (answer,) = ranker.rank([request])
    expected = torch_scores(model, dataset, [0], np.arange(1, 11)[None])[0]
    by_item = {one.item: one.score for one in answer.items}
    assert answer.cold_start
    np.testing.assert_allclose([by_item[f"i{i}"] for i in range(1, 11)], expected, atol=1e-4, rtol=1e-4)


def test_a_batch_of_uneven_requests_scores_each_as_alone(ranker: Ranker) -> None:
    rng = np.random.default_rng(1)
    requests = [
        RankRequest(
            f"u{rng.integers(1, 120)}",
            [f"i{i}" for i in rng.permutation(60)[:count] + 1],
            context=MOMENT,
        )
        for count in (1, 2, 3, 17, 33, 60, 5, 60)
    ]
    together = ranker.rank(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = ranker.rank([request])
        assert len(answer.items) == len(request.items)
        by_item = {one.item: one.score for one in alone.items}
        for one in answer.items:
            assert one.score == pytest.approx(by_item[one.item], abs=1e-5, rel=1e-5)


def test_recommend_is_the_ranking_of_all_items(ranker: Ranker) -> None:
    everything = list(range(1, 61))
    requests = [RecommendRequest(f"u{u}", k=12, context=MOMENT, exclude_seen=False) for u in USERS]
    for user, answer in zip(USERS, ranker.recommend(requests), strict=True):
        full = ranked(ranker, user, everything)
        best = sorted(full.values(), reverse=True)[:12]
        np.testing.assert_allclose([one.score for one in answer.items], best, atol=1e-5, rtol=1e-5)
        for one in answer.items:
            assert one.score == pytest.approx(full[one.item], abs=1e-5, rel=1e-5)


def test_recommend_leaves_out_what_the_user_met(dataset: Dataset, ranker: Ranker) -> None:
    met = {f"i{item}" for part in dataset.parts for item in part.item[part.indptr[7] : part.indptr[8]]}
    assert len(met) > dataset.schema.history, "the user must have more events than a history"
    (answer,) = ranker.recommend([RecommendRequest("u7", k=60, context=MOMENT, exclude=["i1"])])
    named = [one.item for one in answer.items]
    assert set(named) == {f"i{i}" for i in range(2, 61)} - met
    assert len(named) == len(set(named))


def test_int8_rows_rank_nearly_alike(model: Model, dataset: Dataset, ranker: Ranker, tmp_path: Path) -> None:
    if not model.quantisable:
        pytest.skip(f"{type(model).__name__} keeps float32 rows")
    narrow = bundle_of(model, dataset, tmp_path / "bundle", precision="int8")
    everything = list(range(1, 61))
    for user in USERS:
        full, less = ranked(ranker, user, everything), ranked(narrow, user, everything)
        a, b = (np.array([scores[f"i{i}"] for i in everything]) for scores in (full, less))
        assert np.abs(a - b).max() < 0.1 * max(a.std(), 0.05)
    assert narrow.figures["bytes"]["bundle"] < ranker.figures["bytes"]["bundle"]


def test_int8_dense_layers_rank_nearly_alike(
    model: Model, dataset: Dataset, ranker: Ranker, tmp_path: Path
) -> None:
    narrow = bundle_of(model, dataset, tmp_path / "bundle", dense="int8")
    everything = list(range(1, 61))
    for user in USERS:
        full, less = ranked(ranker, user, everything), ranked(narrow, user, everything)
        a, b = (np.array([scores[f"i{i}"] for i in everything]) for scores in (full, less))
        assert np.abs(a - b).max() < 0.25 * max(a.std(), 0.05)


def test_history_matters_exactly_where_the_model_uses_it(model: Model, ranker: Ranker) -> None:
    """Leaving one item out of the history changes scores by what `because` says."""
    history = [HistoryEvent(f"i{i}", "view", NOW - 3600.0 * i) for i in (3, 8, 12)]
    items = ["i1", "i2", "i4"]
    (why,) = ranker.rank([RankRequest("u7", items, history=history, context=MOMENT, explain=True)])
    for left_out in history:
        rest = [event for event in history if event is not left_out]
        (without,) = ranker.rank([RankRequest("u7", items, history=rest, context=MOMENT)])
        scores = {one.item: one.score for one in without.items}
        for one in why.items:
            assert one.because is not None
            change = one.because.get(left_out.item, 0.0)
            assert change == pytest.approx(one.score - scores[one.item], abs=1e-5)


def test_sizes_are_those_on_disk(ranker: Ranker) -> None:
    assert ranker.figures["bytes"]["bundle"] == ranker.artifact.bytes
    assert ranker.figures["bytes"]["float32"] == ranker.artifact.bytes, "nothing was compressed"


def test_a_model_without_times_is_served_without_a_moment() -> None:
    """Feedback and requests have times; a model that learned none of them sees ages and context of none."""
    events = Events(np.array([1, 2]), np.array([1, 1]), np.array([0, 1_700_000_000_000_000]))
    info = Info("m", "", "mlp", 5, 5, 3, ["", "view"], 1, [], [], 0, False, 18)
    request = EncodedRequest(1, 1_800_000_000_000_000, events, np.array([1]))
    inputs = model_inputs([request], info, ("history", "history_age", "context"))
    assert inputs["history"].tolist() == [[0, 1, 2]]
    assert inputs["history_age"].tolist() == [[0, 0, 0]] and inputs["context"].shape == (1, 0)
