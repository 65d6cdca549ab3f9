"""The rules of a list: caps, diversity, boosts, a floor for fresh items."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.retrieval.item_filter import Match
from app.bundle.retrieval.rules import Cap, Rules, choose

ROWS = np.array([5, 3, 8, 1, 9, 2])  # best first
CODES = np.array([0, 1, 1, 2, 0, 2, 0, 0, 2, 1])  # by item: 5, 3, 8 share a value, 1, 9, 2 another


def chosen(k: int, rules: Rules, **more: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    return ROWS[choose(ROWS, k, rules, **more)].tolist()


def test_without_rules_the_best_come() -> None:
    assert chosen(3, Rules()) == [5, 3, 8]
    assert chosen(9, Rules()) == ROWS.tolist()
    assert choose(np.zeros(0, np.int64), 3, Rules()) == []


def test_a_cap_lets_the_next_values_in() -> None:
    assert chosen(3, Rules(caps=[Cap(CODES, 1)])) == [5, 1]
    assert chosen(3, Rules(caps=[Cap(CODES, 2)])) == [5, 3, 1]


def test_items_without_a_value_are_not_capped() -> None:
    assert chosen(9, Rules(caps=[Cap(np.where(CODES == 2, 0, CODES), 1)])) == [5, 3, 8, 1]


def test_caps_of_two_columns_hold_together() -> None:
    other = np.array([0, 1, 2, 1, 0, 1, 0, 0, 2, 2])  # 5, 3, 1 | 8, 9, 2
    assert chosen(9, Rules(caps=[Cap(CODES, 2), Cap(other, 1)])) == [5, 8]


def test_caps_count_what_is_in_the_list_already() -> None:
    assert chosen(3, Rules(caps=[Cap(CODES, 2)]), taken=np.array([4, 3, 8])) == [1, 9]


def test_the_last_places_go_to_fresh_items() -> None:
    fresh = np.array([9, 2])
    assert chosen(3, Rules(floor=1), fresh=fresh) == [5, 3, 9]
    assert chosen(3, Rules(floor=2), fresh=fresh) == [5, 9, 2]
    assert chosen(3, Rules(floor=3), fresh=fresh) == [9, 2, 5], "no more fresh ones"


def test_fresh_items_that_are_good_enough_count() -> None:
    assert chosen(3, Rules(floor=1), fresh=np.array([3, 2])) == [5, 3, 8]


def test_diversity_by_hand() -> None:
    """Items 5 and 3 are alike, 8 is not: at one half 8 comes before 3."""
    scores = np.array([1.0, 0.9, 0.5, 0.0, 0.0, 0.0])
    vectors = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]], float)
    assert chosen(3, Rules(diversity=0.1), scores=scores, vectors=vectors) == [5, 3, 8]
    # then: 3 is worth .5 * .9 - .5 * 1 = -.05, and 8 is .5 * .5 - 0 = .25
    assert chosen(3, Rules(diversity=0.5), scores=scores, vectors=vectors) == [5, 8, 3]


def test_full_diversity_starts_with_the_best() -> None:
    vectors = np.eye(6)
    scores = np.arange(6, 0, -1.0)
    assert chosen(6, Rules(diversity=1.0), scores=scores, vectors=vectors) == ROWS.tolist(), "all differ"


def test_boosts_add_up() -> None:
    mask = np.zeros(10, bool)
    mask[[3, 8]] = True
    rules = Rules(boosts=[(Match(mask), 2.0), (Match(mask), -0.5)])
    assert rules.boosted(np.array([5, 3, 8]), np.float32([1, 1, 0])).tolist() == [1.0, 2.5, 1.5]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(0, 12),
)
def test_promises_hold_for_any_list(items: list[tuple[int, bool]], k: int, most: int, floor: int) -> None:
    rows = np.arange(len(items))
    codes, fresh = np.array([c for c, _ in items], int), np.flatnonzero([f for _, f in items])
    positions = choose(rows, k, Rules(caps=[Cap(codes, most)], floor=min(floor, k)), fresh=fresh)
    assert len(set(positions)) == len(positions) <= k
    counts = np.bincount(codes[positions], minlength=1)
    assert (counts[1:] <= most).all()
    room = sum(n if code == 0 else min(n, most) for code, n in enumerate(np.bincount(codes, minlength=1)))
    assert len(positions) == min(k, room), "k come where k can"
    if room == len(rows):  # caps go before the floor
        assert np.isin(positions, fresh).sum() >= min(floor, k, len(fresh))


@pytest.mark.parametrize("k", [1, 3, 6])
def test_one_cap_is_the_best_that_can_be_done(k: int) -> None:
    """Against every list that keeps the cap: none has a better score at any position."""
    scores = np.arange(6, 0, -1.0)
    positions = choose(ROWS, k, Rules(caps=[Cap(CODES, 2)]))
    codes = CODES[ROWS]
    kept = [
        c
        for c in itertools.combinations(range(6), len(positions))
        if (np.bincount(codes[list(c)])[1:] <= 2).all()
    ]
    assert scores[positions].sum() == max(scores[np.array(c)].sum() for c in kept)
