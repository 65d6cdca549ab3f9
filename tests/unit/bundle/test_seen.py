"""Items that a user met: none forgotten, in bounded memory, and none recommended again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.format.ids import Ids
from app.bundle.request.requests import Context, RecommendRequest
from app.bundle.request.seen import BITMAP_BYTES, CACHED_ROWS, EXACT, OVERHEAD, SeenItems
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.events import HistoryEvent
from tests.bundles import NOW, bundle_of, random_model
from tests.tiny import tiny_dataset

MANY = 20_000


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Ids:
    folder = tmp_path_factory.mktemp("ids")
    Ids.write(folder, ["", *(f"i{row}" for row in range(1, MANY))])
    return Ids.open(folder)


def names(rows: list[int]) -> list[str]:
    return [f"i{row}" for row in rows]


@given(st.lists(st.lists(st.integers(1, 2 * MANY), max_size=30), max_size=6))
def test_rows_are_those_of_the_known_items_added(ids: Ids, batches: list[list[int]]) -> None:
    seen = SeenItems()
    for batch in batches:
        seen.add(names(batch))
        seen.rows(ids)  # what was looked up before must not outlive an addition
    added = {row for batch in batches for row in batch}
    assert sorted(seen.rows(ids).tolist()) == sorted(row for row in added if row < MANY)


def test_an_item_that_came_after_training_is_known_from_then_on(tmp_path: Path) -> None:
    Ids.write(tmp_path, ["", "a", "b"])
    ids, seen = Ids.open(tmp_path), SeenItems()
    seen.add(["new", "b", "newer"])
    assert seen.rows(ids).tolist() == [2]
    assert ids.add("new") == 3
    assert sorted(seen.rows(ids).tolist()) == [2, 3]
    ids.add("newest")
    ids.add("newer")
    assert sorted(seen.rows(ids).tolist()) == [2, 3, 5]


def test_two_bundles_have_their_own_rows(tmp_path: Path) -> None:
    Ids.write(tmp_path / "one", ["", "a", "b"])
    Ids.write(tmp_path / "other", ["", "b", "c"])
    one, other, seen = Ids.open(tmp_path / "one"), Ids.open(tmp_path / "other"), SeenItems()
    seen.add(["b"])
    assert [seen.rows(ids).tolist() for ids in (one, other, one)] == [[2], [1], [2]]


def test_beyond_the_exact_number_nothing_is_forgotten_and_few_are_added(ids: Ids) -> None:
    seen = SeenItems()
    for start in range(1, 12_000, 500):
        seen.add(names(list(range(start, start + 500))))
        chosen = seen.rows(ids)
        assert set(range(1, start + 500)) <= set(chosen.tolist())
        assert len(chosen) - (start + 499) < MANY * 0.001
        assert seen.bytes <= OVERHEAD + max(12 * EXACT, BITMAP_BYTES + 4 * CACHED_ROWS)
    ids_in_memory = Ids(ids.strings, ids._hashes, ids._order)
    row = ids_in_memory.add("new")
    seen.add(["new"])
    assert row in seen.rows(ids_in_memory)


def test_memory_is_bounded_whatever_comes() -> None:
    seen = SeenItems()
    for start in range(0, 200_000, 20_000):
        seen.add(names(list(range(start, start + 20_000))))
    assert seen.bytes <= OVERHEAD + BITMAP_BYTES + 4 * CACHED_ROWS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("seen") / "dataset", users=20, items=90, events=700)


@pytest.fixture(scope="module", params=["two_tower", "popularity"])
def ranker(request: pytest.FixtureRequest, dataset: Dataset) -> Ranker:
    model = random_model(request.param, dataset)
    return bundle_of(model, dataset, dataset.path.with_name(f"bundle-{request.param}"))


def recommended(
    ranker: Ranker,
    stored: list[HistoryEvent] | None = None,
    seen: SeenItems | None = None,
    user: str = "u3",
    **changes: object,
) -> set[str]:
    request = RecommendRequest(user, k=100, **changes)  # type: ignore[arg-type]
    (answer,) = ranker.answer([ranker.read(request, stored, seen=seen)])
    return {one.item for one in answer.items}


def met_in_log(dataset: Dataset, user: int) -> set[str]:
    return {
        f"i{item}" for part in dataset.parts for item in part.item[part.indptr[user] : part.indptr[user + 1]]
    }


def everything() -> set[str]:
    return {f"i{row}" for row in range(1, 91)}


def test_seen_items_are_not_recommended(ranker: Ranker, dataset: Dataset) -> None:
    seen = SeenItems()
    seen.add(["i1", "i2", "nowhere"])
    assert recommended(ranker, seen=seen) == everything() - met_in_log(dataset, 3) - {"i1", "i2"}
    assert recommended(ranker, seen=seen, exclude_seen=False) == everything()
    assert recommended(ranker, seen=seen, user="stranger") == everything() - {"i1", "i2"}


def test_a_new_item_that_was_met_is_not_recommended(dataset: Dataset, tmp_path: Path) -> None:
    ranker = bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle")
    ranker.put_items({"new": {}, "newer": {}})
    seen = SeenItems()
    seen.add(["new"])
    assert recommended(ranker, seen=seen) == everything() - met_in_log(dataset, 3) | {"newer"}


def test_a_history_in_the_request_does_not_bring_back_what_was_met(ranker: Ranker, dataset: Dataset) -> None:
    met = met_in_log(dataset, 3)
    own = [HistoryEvent("i5", "view", NOW - 60.0)]
    stored = [HistoryEvent("i7", "view", NOW - 50.0)]
    assert recommended(ranker, stored, history=own) == everything() - met - {"i5", "i7"}
    assert recommended(ranker, stored, history=[]) == everything() - met - {"i7"}


def test_a_moment_does_not_bring_back_what_was_met_later(ranker: Ranker, dataset: Dataset) -> None:
    past = Context(timestamp=1000.0)
    own = [HistoryEvent("i5", "view", NOW - 60.0)]
    stored = [HistoryEvent("i7", "view", NOW - 50.0)]
    chosen = recommended(ranker, stored, history=own, context=past)
    assert chosen == everything() - met_in_log(dataset, 3) - {"i5", "i7"}


def test_an_event_of_a_type_that_training_did_not_know_counts_as_met(
    ranker: Ranker, dataset: Dataset
) -> None:
    stored = [HistoryEvent("i7", "hugged", NOW - 50.0), HistoryEvent("nowhere", "view", NOW - 40.0)]
    assert recommended(ranker, stored) == everything() - met_in_log(dataset, 3) - {"i7"}


def test_a_user_with_two_thousand_events_is_never_shown_one_of_them_again(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=10, items=2500, events=60)
    ranker = bundle_of(random_model("two_tower", dataset), dataset, tmp_path / "bundle")
    rng, seen, met = np.random.default_rng(0), SeenItems(), set[str]()
    for row in rng.permutation(2500)[:2000] + 1:
        seen.add([f"i{row}"])
        met.add(f"i{row}")
    assert not recommended(ranker, seen=seen) & met
