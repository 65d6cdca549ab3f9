"""The demo shop's planted structure, and the best ranking that it allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from app.artifact import publish
from app.data.dataset import Array, Dataset, Part, Schema
from app.data.demo_shop.generate import attainable, generate
from app.data.demo_shop.truth import START, Walks, _ndcg, ranked_by
from app.data.demo_shop.world import SPAN, World, build_world, walk
from app.errors import DataError
from app.tables.strings import Strings

SIZES = {"users": 400, "items": 120, "events": 14_000, "seed": 3}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    generate(folder, **SIZES)
    return folder


@pytest.fixture(scope="module")
def dataset(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return leave_last(shop, tmp_path_factory.mktemp("data") / "dataset")


def leave_last(shop: Path, out: Path, kept: Callable[[str], bool] = lambda item: True) -> Dataset:
    """The shop's clean events as `prepare` splits them, without features."""
    walks, world = Walks(shop / "truth"), World.load(shop / "truth")
    users = len(world.user_tier)
    names = ["", *(n for n in (f"i{n:05d}" for n in range(1, len(world.item_tier) + 1)) if kept(n))]
    number = {name: row for row, name in enumerate(names)}
    item = np.array([number.get(f"i{world.item_number[i]:05d}", 0) for i in walks.item])
    user = np.repeat(np.arange(1, users + 1), np.diff(walks.indptr))
    part = np.zeros(len(user), int)
    part[walks.indptr[1:] - 2], part[walks.indptr[1:] - 1] = 1, 2
    columns = {"user": user, "item": item, "time": (np.asarray(walks.time, np.int64) + START) * 1_000_000}
    columns |= {name: np.ones(len(user)) for name in ("event", "value", "label")}
    schema = Schema(users + 1, len(names), ["", "view"], 10, [], 0, 0, 0, [], [], 0, [False, True])
    with publish(out, "dataset", {}, {}) as draft:
        for code, name in enumerate(("train", "valid", "test")):
            rows = (part == code) & ((item > 0) | (code == 2))
            Part.save(draft.path / name, {c: v[rows] for c, v in columns.items()}, users + 1)
        Strings.save(draft.path / "users", ["", *(f"u{n:06d}" for n in range(1, users + 1))])
        Strings.save(draft.path / "items", names)
        (draft.path / "schema.json").write_bytes(msgspec.json.encode(schema))
    return Dataset.open(out)


def test_walks_follow_the_written_distribution() -> None:
    world = build_world(users=5, items=48, seed=1)
    draws = 40_000
    users, lengths = np.full(draws, 2), np.full(draws, 2)
    time = np.tile([[SPAN * 2 // 5, SPAN * 2 // 5 + 9]], (draws, 1))
    met = walk(world, users, time, lengths, np.random.default_rng(0))
    first = world.weights(users[:1], time[:1, 0], np.array([-1]))[0]
    assert distance(met[:, 0], first) < 0.02
    before = int(np.bincount(met[:, 0]).argmax())
    second = world.weights(users[:1], time[:1, 1], np.array([before]))[0]
    second[before] = 0
    assert distance(met[met[:, 0] == before, 1], second) < 0.06


def distance(drawn: Array, weights: Array) -> float:
    """Total variation between draws and a distribution."""
    share = np.bincount(drawn, minlength=len(weights)) / len(drawn)
    return float(np.abs(share - weights / weights.sum()).sum() / 2)


def test_the_fallback_draws_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.data.demo_shop.world.TRIES", 0)
    test_walks_follow_the_written_distribution()


def test_first_weights_are_probabilities() -> None:
    world = build_world(users=30, items=200, seed=2)
    weights = world.weights(np.arange(30), np.linspace(0, SPAN, 30), np.full(30, -1))
    assert weights.sum(1) == pytest.approx(np.ones(30))
    after = world.weights(np.arange(30), np.linspace(0, SPAN, 30), np.arange(30))
    assert after.sum(1) == pytest.approx(np.ones(30)) and (after > 0).all()


def test_items_call_for_their_complement_and_tastes_drift(shop: Path) -> None:
    walks, world = Walks(shop / "truth"), World.load(shop / "truth")
    category = world.item_category[walks.item]
    inside = np.ones(len(category), bool)
    inside[walks.indptr[:-1]] = False
    follows = category[inside] == world.complement[category[np.flatnonzero(inside) - 1]]
    assert follows.mean() > 3 / len(world.complement)
    user = np.repeat(np.arange(SIZES["users"]), np.diff(walks.indptr))
    favourite = np.array([np.bincount(slots).argmax() for slots in world.taste])
    early, late = (category == favourite[taste[user]] for taste in (world.user_early, world.user_late))
    begin, end = np.asarray(walks.time) < SPAN * 0.15, np.asarray(walks.time) > SPAN * 0.65
    assert late[end].mean() > 1.4 * late[begin].mean()
    assert early[begin].mean() > 1.4 * early[end].mean()


def test_popularity_falls_like_zipfs_law() -> None:
    world = build_world(users=3000, items=400, seed=0)
    met = walk(world, np.arange(3000), np.zeros((3000, 3)), np.full(3000, 3), np.random.default_rng(0))
    counts = np.sort(np.bincount(met.ravel(), minlength=400))[::-1][:200]
    slope = np.polyfit(np.log(np.arange(1, 201)), np.log(counts), 1)[0]
    assert -1.2 < slope < -0.5


def test_attainable_beats_popularity_and_any_disturbed_truth(shop: Path, dataset: Dataset) -> None:
    best = attainable(shop, dataset)
    rng = np.random.default_rng(0)
    counts = np.bincount(Walks(shop / "truth").item, minlength=SIZES["items"]).astype(float)
    popularity = ranked_by(shop, dataset, lambda weights: np.tile(counts, (len(weights), 1)))
    noisy = ranked_by(shop, dataset, lambda weights: weights * rng.lognormal(0, 1.5, weights.shape))
    backwards = ranked_by(shop, dataset, lambda weights: -weights)
    assert backwards < popularity < best / 2.5
    assert noisy < best < 1


def test_attainable_is_what_the_truth_expects_of_itself(shop: Path, dataset: Dataset) -> None:
    """The mean realised gain is near the gain that the probabilities promise."""
    promised: list[float] = []

    def promise(weights: Array) -> Array:
        share = np.sort(weights, 1)[:, ::-1]
        promised.extend(share[:, :10] @ (1 / np.log2(np.arange(2, 12))))
        return weights

    realised = ranked_by(shop, dataset, promise)
    # Items met before are still in `weights` here, so the promise is of a slightly easier task.
    assert realised == pytest.approx(np.mean(promised), rel=0.25)


def test_items_that_training_lacks_cannot_be_ranked(shop: Path, dataset: Dataset, tmp_path: Path) -> None:
    fewer = leave_last(shop, tmp_path / "dataset", kept=lambda item: item[-1] not in "02468")
    assert 0 < attainable(shop, fewer) < attainable(shop, dataset)


def test_the_data_set_of_another_shop_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    generate(tmp_path, **{**SIZES, "seed": 4})
    with pytest.raises(DataError, match="not of this shop"):
        attainable(tmp_path, dataset)
    with pytest.raises(DataError, match="no truth of a generated shop"):
        attainable(tmp_path / "nowhere", dataset)


def test_ndcg_by_hand_ties_share_their_ranks() -> None:
    scores = np.array([[3.0, 2.0, 1.0, -np.inf]] * 5 + [[1.0, 1.0, 0.0, -np.inf]])
    relevant = [np.array(items) for items in ([0], [1], [3], [-1], [0, 2], [0])]
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    expected = [1, second, 0, 0, (1 + third) / (1 + second), (1 + second) / 2]
    assert _ndcg(scores, relevant).tolist() == pytest.approx(expected)


def test_only_the_first_ten_count() -> None:
    scores = np.arange(20, 0, -1.0)[None].repeat(2, 0)
    assert _ndcg(scores, [np.array([9]), np.array([10])]).tolist() == pytest.approx([1 / math.log2(11), 0])
