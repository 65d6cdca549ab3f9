"""What a model that reads a user's whole past promises: evaluation, bundle and service see the same of it.

Checked of every model that does, and of one that does not by itself, so that there is always one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from app.artifact import publish
from app.bundle.export.export import export
from app.bundle.export.formats.onnx import read as read_onnx
from app.bundle.format.layout import read_info
from app.bundle.request.requests import Context, RankRequest
from app.bundle.runtime import Ranker
from app.data.dataset import Array, Dataset, Part
from app.evaluation.scorer import ModelScorer
from app.events import WHOLE_PAST, Event, HistoryEvent
from app.models.base import Model
from app.models.batch import batch_of, distinct, recent_of
from app.models.discovery import model_class, model_names
from app.recipe import parse
from app.serving.feedback.user_events import Lookup, UserEventCache
from app.stores.sqlite_store import SqliteStore
from tests.bundles import bundle_of, checkpoint_of, random_model
from tests.tiny import START, tiny_dataset

MINUTE = 60_000_000
NOW = START // 1_000_000 + 10_000 * 60
MOMENT = Context(timestamp=float(NOW))
FEEDBACK = NOW - 500  # seconds: the first event of it
ITEMS = list(range(1, 301))
EMPTY, SHORT, LONG, ENDLESS = 1, 2, 3, 4  # users
EVENTS = {SHORT: 5, LONG: 200, ENDLESS: 5000}
READS = {name: model_class(name).reads for name in model_names()}
CASES = [(name, reads) for name, reads in READS.items() if reads != "recent"]
CASES += [("item_knn", "all"), ("item_knn", "events")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Users of 0, 5, 200 and 5,000 events; the last tenth of each for validation and testing."""
    folder = tmp_path_factory.mktemp("reads")
    tiny = tiny_dataset(folder / "tiny", items=300, users=150, events=6000, history=8)
    columns = {name: np.asarray(getattr(tiny.train, name)) for name in ("user", "item", "time", "event")}
    others = columns["user"] > max(EVENTS)
    rng = np.random.default_rng(0)
    user = np.concatenate([[u] * n for u, n in EVENTS.items()])
    mine = {
        "user": user,
        "item": rng.integers(1, 301, len(user)),
        "time": START + np.concatenate([np.arange(n) for n in EVENTS.values()]) * MINUTE,
        "event": rng.integers(1, 3, len(user)),
    }
    columns = {name: np.concatenate([mine[name], column[others]]) for name, column in columns.items()}
    order = np.lexsort((columns["time"], columns["user"]))
    columns = {name: column[order] for name, column in columns.items()}
    columns |= {"value": np.ones(len(order)), "label": np.ones(len(order))}
    size = np.bincount(columns["user"])
    share = (np.arange(len(order)) - (np.cumsum(size) - size)[columns["user"]]) / size[columns["user"]]
    parts = {"train": share < 0.9, "valid": (share >= 0.9) & (share < 0.95), "test": share >= 0.95}
    with publish(folder / "dataset", "dataset", {"of": "test"}, {}) as draft:
        for name, rows in parts.items():
            Part.save(draft.path / name, {c: v[rows] for c, v in columns.items()}, tiny.schema.users)
        for name in ("features", "users", "items", "columns"):
            (draft.path / name).mkdir()
            for file in (tiny.path / name).iterdir():
                (draft.path / name / file.name).write_bytes(file.read_bytes())
        (draft.path / "schema.json").write_bytes(msgspec.json.encode(tiny.schema))
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def model(request: pytest.FixtureRequest, dataset: Dataset) -> Model:
    name, reads = request.param
    patch = pytest.MonkeyPatch()
    patch.setattr(model_class(name), "reads", reads)
    request.addfinalizer(patch.undo)
    return random_model(name, dataset)


@pytest.fixture(scope="module")
def ranker(model: Model, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return bundle_of(model, dataset, tmp_path_factory.mktemp("out") / "bundle")


def evaluated(model: Model, dataset: Dataset, user: int, feedback: Sequence[int] = ()) -> Array:
    """Scores of ITEMS as the evaluation computes them.

    Args:
        user: its row.
        feedback: items that were viewed after the log, a second apart, the first at FEEDBACK.
    """
    users = np.array([user])
    recent = recent_of(dataset, users, dataset.parts, model.reads)
    if len(feedback):
        rows = [slice(part.indptr[user], part.indptr[user + 1]) for part in dataset.parts]
        logged = list(zip(dataset.parts, rows, strict=True))
        times = (FEEDBACK + np.arange(len(feedback))) * 1_000_000
        item = np.concatenate([*(part.item[kept] for part, kept in logged), feedback])
        event = np.concatenate([*(part.event[kept] for part, kept in logged), np.ones(len(feedback))])
        time = np.concatenate([*(part.time[kept] for part, kept in logged), times])
        recent = tuple(c[None, -WHOLE_PAST:].astype(np.int64) for c in (item, event, time))
        recent = distinct(recent) if model.reads == "all" else recent
    batch = batch_of(dataset, users, recent, np.array([NOW * 1_000_000]), np.array([ITEMS]))
    scores: Array = ModelScorer(model).candidates(batch)[0].numpy()
    return scores


def served(ranker: Ranker, user: int, stored: list[HistoryEvent] | None = None) -> Array:
    (answer,) = ranker.rank([RankRequest(f"u{user}", names(), context=MOMENT)], [stored])
    return by_item(answer.items)


def names() -> list[str]:
    return [f"i{item}" for item in ITEMS]


def by_item(scored: list[object]) -> Array:
    scores = {one.item: one.score for one in scored}  # type: ignore[attr-defined]
    return np.array([scores[name] for name in names()])


@pytest.mark.parametrize("user", [EMPTY, SHORT, LONG, ENDLESS])
def test_a_bundle_sees_the_past_that_the_evaluation_saw(
    model: Model, dataset: Dataset, ranker: Ranker, user: int
) -> None:
    np.testing.assert_allclose(served(ranker, user), evaluated(model, dataset, user), atol=1e-5, rtol=1e-5)


def test_the_past_matters_beyond_the_recent_events(model: Model, dataset: Dataset, ranker: Ranker) -> None:
    history = dataset.schema.history
    met = np.concatenate([part.item[part.indptr[LONG] : part.indptr[LONG + 1]] for part in dataset.parts])
    recent = [HistoryEvent(f"i{item}", "view", NOW - 9.0) for item in met[-history:]]
    (short,) = ranker.rank([RankRequest(f"u{LONG}", names(), history=recent, context=MOMENT)])
    assert np.abs(by_item(short.items) - served(ranker, LONG)).max() > 1e-3


@pytest.mark.parametrize("user", [EMPTY, SHORT, LONG, ENDLESS])
def test_feedback_is_the_end_of_the_past(
    model: Model, dataset: Dataset, ranker: Ranker, user: int, tmp_path: Path
) -> None:
    store = SqliteStore(tmp_path)
    more = np.random.default_rng(1).integers(1, 301, 250).tolist()
    store.append([Event(f"u{user}", f"i{n}", "view", FEEDBACK + i) for i, n in enumerate(more)])
    cache = UserEventCache(store)
    cache.need(ranker.info.history)
    lookups: list[Lookup] = []
    cache.look_up([f"u{user}"], lookups.append)  # at once, of a store on this machine
    expected = evaluated(model, dataset, user, more)
    np.testing.assert_allclose(
        served(ranker, user, lookups[0].of(f"u{user}")), expected, atol=1e-5, rtol=1e-5
    )


def test_requests_of_all_lengths_score_together_as_alone(ranker: Ranker) -> None:
    users = [EMPTY, ENDLESS, SHORT, LONG, 0, 20, 21]
    requests = [RankRequest(f"u{user}", names(), context=MOMENT) for user in users]
    for request, answer in zip(requests, ranker.rank(requests), strict=True):
        (alone,) = ranker.rank([request])
        np.testing.assert_allclose(by_item(answer.items), by_item(alone.items), atol=1e-5, rtol=1e-5)


def test_the_past_is_bounded(model: Model, dataset: Dataset, ranker: Ranker) -> None:
    info = read_info(ranker.artifact.path / "bundle.json")
    assert (info.history, info.reads) == (WHOLE_PAST, model.reads)
    assert len(ranker.histories.events(ENDLESS)) == WHOLE_PAST
    assert len(ranker.histories.events(LONG)) == EVENTS[LONG]
    met = np.concatenate(
        [part.item[part.indptr[ENDLESS] : part.indptr[ENDLESS + 1]] for part in dataset.parts]
    )
    older = set(ranker.histories.older_items(ENDLESS).tolist())
    assert older | set(ranker.histories.recent_items(ENDLESS).tolist()) == set(met.tolist())


def test_one_onnx_file_takes_histories_of_any_length(
    model: Model, dataset: Dataset, ranker: Ranker, tmp_path: Path
) -> None:
    recipe = parse({"name": "tiny"}, "test")
    export(recipe, dataset, checkpoint_of(model, dataset), tmp_path / "o", {}, {}, {}, format="onnx")
    score = read_onnx(tmp_path / "o")
    rng = np.random.default_rng(2)
    for length in (0, 1, 7, 200):
        history = [
            HistoryEvent(f"i{n}", "view", float(NOW - 5000 + i))
            for i, n in enumerate(rng.integers(1, 301, length).tolist())
        ]
        request = RankRequest(f"u{SHORT}", names(), history=history, context=MOMENT)
        scores, (answer,) = score(request), ranker.rank([request])
        expected = np.array([scores[name] for name in names()])
        np.testing.assert_allclose(by_item(answer.items), expected, atol=1e-5, rtol=1e-5)
