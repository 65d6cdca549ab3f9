"""How much of a user's past a model is shown: what is recent, or every item of the last 1,000 events once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.artifact import publish
from app.data.dataset import Dataset, Part
from app.evaluation import scorer
from app.evaluation.requests import requests_of
from app.evaluation.scorer import ModelScorer
from app.events import WHOLE_PAST
from app.models.base import History
from app.models.batch import distinct, recent_of
from app.models.build import build_model, inputs_of
from app.models.item_knn import ItemKnn
from tests.tiny import START, tiny_dataset

MINUTE = 60_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("reads") / "dataset", history=8)


def with_events(tiny: Dataset, folder: Path, items: dict[int, list[int]], held_out: int = 2) -> Dataset:
    """The data set with these items of users, a minute apart, the last `held_out` of them for validation."""
    rows = [
        (user, item, START + n * MINUTE, n < len(met) - held_out)
        for user, met in sorted(items.items())
        for n, item in enumerate(met)
    ]
    user, item, time, train = (np.array(column) for column in zip(*rows, strict=True))
    with publish(folder, "dataset", {"of": "test"}, {}) as draft:
        for name, kept in (("train", train), ("valid", ~train), ("test", np.zeros(len(train), bool))):
            columns = {"user": user[kept], "item": item[kept], "time": time[kept]}
            columns |= {name: np.ones(int(kept.sum())) for name in ("event", "value", "label")}
            Part.save(draft.path / name, columns, tiny.schema.users)
        (draft.path / "schema.json").write_bytes((tiny.path / "schema.json").read_bytes())
    return Dataset.open(folder)


def test_all_is_each_item_once_where_it_came_last(tiny: Dataset, tmp_path: Path) -> None:
    dataset = with_events(tiny, tmp_path / "d", {1: [3, 5, 3, 7, 5, 9], 2: [4, 4, 4]})
    item, event, time = recent_of(dataset, np.array([1, 2, 3, 0]), dataset.parts, "all")
    assert item.tolist() == [[3, 7, 5, 9], [0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert ((time[0] - START) // MINUTE).tolist() == [2, 3, 4, 5]
    assert event.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_all_goes_beyond_the_recent_history_and_ends_at_the_bound(tiny: Dataset, tmp_path: Path) -> None:
    many = np.random.default_rng(0).integers(1, 40, 5000)
    many[:4000] = 50  # an item that is met nowhere among the last thousand events
    dataset = with_events(tiny, tmp_path / "d", {1: list(range(1, 31)), 2: many.tolist()})
    (short,), (long,) = (
        recent_of(dataset, np.array([1]), dataset.parts, reads)[0] for reads in ("recent", "all")
    )
    assert short.tolist() == list(range(23, 31)) and long.tolist() == list(range(1, 31))
    item, _, _ = recent_of(dataset, np.array([2]), dataset.parts, "all")
    assert set(item[0]) == set(many[-WHOLE_PAST:])
    assert inputs_of(dataset, "all").history == WHOLE_PAST and inputs_of(dataset).history == 8


def test_events_are_those_of_the_same_past_with_repetitions(tiny: Dataset, tmp_path: Path) -> None:
    dataset = with_events(tiny, tmp_path / "d", {1: [3, 5, 3, 7, 5, 9], 2: [4] * 1500, 3: [8]})
    item, _, time = recent_of(dataset, np.array([1, 3, 0]), dataset.parts, "events")
    assert item.tolist() == [[3, 5, 3, 7, 5, 9], [0] * 5 + [8], [0] * 6]
    assert ((time[0] - START) // MINUTE).tolist() == list(range(6))
    assert recent_of(dataset, np.array([2]), dataset.parts, "events")[0].shape == (1, WHOLE_PAST)


def test_the_longest_history_is_that_of_a_known_user_over_all_parts(tiny: Dataset, tmp_path: Path) -> None:
    dataset = with_events(tiny, tmp_path / "d", {0: list(range(1, 30)), 1: [1, 2, 3, 4], 5: [1] * 7})
    assert dataset.longest == 7 == inputs_of(dataset, "all").history


def test_users_without_events_have_one_column_of_padding(tiny: Dataset, tmp_path: Path) -> None:
    dataset = with_events(tiny, tmp_path / "d", {1: [1, 2, 3]})
    assert [c.shape for c in recent_of(dataset, np.array([3, 0]), dataset.parts, "all")] == [(2, 1)] * 3
    nobody = np.zeros(0, np.int64)
    assert recent_of(dataset, nobody, dataset.parts, "all")[0].shape == (0, 1)


rows_of_items = st.integers(1, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 5), min_size=length, max_size=length), min_size=1, max_size=5
    )
)


@given(rows_of_items)
def test_distinct_is_what_a_loop_finds(rows: list[list[int]]) -> None:
    items = np.array(rows)
    times = np.arange(items.size).reshape(items.shape) + 1
    item, event, time = distinct((items, items, times))
    for row in range(len(rows)):
        last = {int(i): int(t) for i, t in zip(items[row], times[row], strict=True) if i}
        expected = sorted(last.items(), key=lambda pair: pair[1])
        padding = item.shape[1] - len(expected)
        assert item[row].tolist() == [0] * padding + [i for i, _ in expected] == event[row].tolist()
        assert time[row].tolist() == [0] * padding + [t for _, t in expected]
    assert item.shape[1] == max(1, *((item > 0).sum(1)))


@pytest.mark.parametrize("floats", [1, 200, 1 << 22])
def test_requests_scored_by_length_score_as_each_alone(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floats: int
) -> None:
    monkeypatch.setattr(ItemKnn, "reads", "all")
    monkeypatch.setattr(scorer, "FLOATS", floats)
    rng = np.random.default_rng(0)
    lengths = {user: rng.integers(1, 61, length).tolist() for user, length in enumerate((40, 3, 80, 4, 9), 1)}
    dataset = with_events(tiny, tmp_path / "d", lengths)
    (dataset.path / "features").symlink_to(tiny.path / "features")
    scores = ModelScorer(build_model("item_knn", {}, dataset))
    requests = requests_of(dataset, "valid")
    items = np.zeros((5, 0), np.int64)
    together = scores.all(requests.batch(dataset, slice(None), items, "all"))
    for row in range(5):
        alone = scores.all(requests.batch(dataset, slice(row, row + 1), items[:1], "all"))
        torch.testing.assert_close(together[row], alone[0])


def test_parts_of_a_history_are_its_last_events() -> None:
    columns = [torch.arange(6).view(2, 3) for _ in range(3)]
    part = History(*columns, gap=torch.zeros(2, 0)).part(torch.tensor([1]), 2)
    assert part.item.tolist() == [[4, 5]] and part.gap.shape == (1, 0)
