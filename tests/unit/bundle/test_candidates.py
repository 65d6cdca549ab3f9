"""Candidates of several sources: co-consumed, popular, of the segment, fresh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.export.from_dataset import popularity_of
from app.bundle.export.item_columns import write_candidates
from app.bundle.format.item_columns import Texts
from app.bundle.format.layout import load_array
from app.bundle.retrieval.candidates import CandidateGenerators, first_allowed
from app.bundle.retrieval.item_filter import Match
from app.bundle.retrieval.pool import EligibleItems, ScoredCandidates
from app.data.dataset import Dataset
from app.errors import ArtifactError
from app.models.item_knn import neighbours, sets_of
from app.tables.strings import Strings
from tests.tiny import tiny_dataset

ITEMS = 10
ALL = EligibleItems(ITEMS, np.zeros(1, np.int64))
POPULAR = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1])
CODES = np.array([0, 1, 1, 1, 2, 2, 2, 0, 0, 0])  # 1, 2, 3 are hats, 4, 5, 6 shoes


def generators() -> CandidateGenerators:
    neighbour, similarity = np.zeros((ITEMS, 2), np.uint8), np.zeros((ITEMS, 2), np.float16)
    neighbour[1], similarity[1] = [2, 4], [0.5, 0.4]
    neighbour[5], similarity[5] = [4, 0], [0.25, 0.0]
    arrays = {"popular": POPULAR, "fresh": np.array([3, 6]), "neighbour": neighbour, "similarity": similarity}
    rows, starts = np.array([3, 2, 1, 6, 5, 4]), np.array([0, 3, 6])
    texts = Strings(np.array([0, 4, 9]), np.frombuffer(b"hatsshoes", np.uint8))
    return CandidateGenerators(arrays, Texts(rows, texts, starts, CODES))


def without(*rows: int) -> EligibleItems:
    return EligibleItems(ITEMS, np.array(sorted({0, *rows})))


def test_neighbours_add_up_and_recent_events_weigh_more() -> None:
    near = generators().co_consumed
    assert near(np.array([1]), ALL, 5).tolist() == [2, 4]
    assert near(np.array([1, 5]), ALL, 5).tolist() == [4, 2], ".4 and .25 together beat .5"
    assert near(np.array([1]), without(2), 5).tolist() == [4]
    assert near(np.array([1, 5]), ALL, 1).tolist() == [4]
    assert near(np.array([7]), ALL, 5).tolist() == [] == near(np.zeros(0, np.int64), ALL, 5).tolist()


def test_a_segment_is_the_category_met_most() -> None:
    segment = generators().segment
    assert segment(np.array([4, 1, 5]), ALL, 2).tolist() == [6, 5]
    assert segment(np.array([4, 1, 5]), without(6, 5), 2).tolist() == [4]
    assert segment(np.array([7, 8]), ALL, 2).tolist() == []
    assert CandidateGenerators({}, None).segment(np.array([4]), ALL, 2).tolist() == []


def test_fresh_items_take_turns_by_user() -> None:
    firsts = {int(generators().fresh(f"u{n}", ALL, 1)[0]) for n in range(20)}
    assert firsts == {3, 6}
    assert generators().fresh("u", ALL, 5).tolist() == generators().fresh("u", ALL, 5).tolist()


@given(
    st.lists(st.integers(1, ITEMS - 1), max_size=6),
    st.sets(st.integers(1, ITEMS - 1)),
    st.integers(1, 12),
    st.booleans(),
)
def test_a_mix_has_as_many_as_wanted_and_none_twice(
    history: list[int], left_out: set[int], count: int, filtered: bool
) -> None:
    match = Match(np.arange(ITEMS) % 2 > 0) if filtered else None
    allowed = EligibleItems(ITEMS, np.array(sorted({0, *left_out})), match)
    mixed = generators().mixed(np.array(history, np.int64), "u", allowed, count).tolist()
    assert len(mixed) == len(set(mixed)) == min(count, allowed.count)
    assert mixed == sorted(mixed) and allowed.keeps(np.array(mixed, np.int64)).all()


@given(st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)), st.integers(0, 9))
def test_the_first_are_the_first_that_may(left_out: set[int], taken: set[int], count: int) -> None:
    expected = [row for row in POPULAR if row not in left_out | taken][:count]
    allowed = without(*left_out)
    assert (
        first_allowed(POPULAR, allowed, count, without=np.array(sorted(taken), np.int64)).tolist() == expected
    )


def test_allowed_items_are_counted() -> None:
    match = Match(np.arange(ITEMS) > 6)
    allowed = EligibleItems(ITEMS, np.array([0, 2, 7]), match)
    assert allowed.count == 2 and allowed.among(np.array([9, 7, 2, 8])).tolist() == [9, 8]
    assert allowed.matching(Match(np.arange(ITEMS) < 9)).among(np.arange(ITEMS)).tolist() == [8]


def test_pools_join_in_order() -> None:
    one, other = (
        ScoredCandidates(np.array([2, 5]), np.array([1.0, 2.0])),
        ScoredCandidates(np.array([4, 1]), np.array([3.0, 4.0])),
    )
    both = one.join(other)
    assert (both.rows.tolist(), both.scores.tolist()) == ([1, 2, 4, 5], [4.0, 1.0, 3.0, 2.0])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("sources") / "dataset", users=30, items=40, events=400)


def test_what_export_writes(dataset: Dataset, tmp_path: Path) -> None:
    write_candidates(dataset, popularity_of(dataset), tmp_path / "candidates", consumed=True)
    arrays = {n: load_array(tmp_path / f"candidates/{n}.npy") for n in ("popular", "fresh", "neighbour")}
    counts = popularity_of(dataset)
    assert arrays["popular"].tolist() == sorted(range(1, 41), key=lambda row: (-counts[row], row))
    met: dict[int, int] = {}
    for part in dataset.parts:
        for item, time in zip(part.item.tolist(), part.time.tolist(), strict=True):
            met[item] = min(met.get(item, time), time)
    latest = sorted(met, key=lambda item: (-met[item], item))
    assert arrays["fresh"][: len(met)].tolist() == latest
    assert sorted(arrays["fresh"].tolist()) == list(range(1, 41))
    expected, _ = neighbours(sets_of(dataset, *dataset.parts), 40, 10.0)
    assert arrays["neighbour"].tolist() == expected.tolist()
    assert CandidateGenerators.open(tmp_path / "candidates", 41, None).all_fresh.dtype.itemsize == 1, "narrow"


@pytest.mark.parametrize("name", ["popular", "neighbour"])
def test_arrays_that_do_not_fit_are_refused(dataset: Dataset, tmp_path: Path, name: str) -> None:
    write_candidates(dataset, popularity_of(dataset), tmp_path / "candidates", consumed=True)
    file = tmp_path / "candidates" / f"{name}.npy"
    np.save(file, np.load(file)[:-1])
    with pytest.raises(ArtifactError, match="do not fit"):
        CandidateGenerators.open(tmp_path / "candidates", 41, None)
