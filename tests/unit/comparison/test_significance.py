"""Differences by hand: their intervals and p-values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.comparison.significance import p_values, paired_differences
from app.evaluation.measure import bootstrap, interval


def test_four_users_who_all_gain_alike_gain_by_one_choice_of_signs_in_eight() -> None:
    """Of the 16 choices of signs two sum as far from 0 as the one seen: all plus and all minus."""
    judged = paired_differences(np.full((4, 1), 0.5), 0)
    assert (judged.value[0], judged.low[0], judged.high[0]) == (0.5, 0.5, 0.5)
    assert judged.p[0] == pytest.approx(2 / 16)


def test_a_p_value_by_hand() -> None:
    """Differences 3, 1 and -1 sum to 3. Sums of all choices: 5, 3, 3, 1 and the same below 0: 6 of 8."""
    p = p_values(np.array([[3.0], [1.0], [-1.0]]), np.random.default_rng(0))
    assert p[0] == pytest.approx(6 / 8)


def test_users_without_a_difference_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    some = np.array([[3.0], [1.0], [-1.0]])
    padded = np.concatenate([some, np.zeros((500, 1))])
    assert p_values(padded, rng)[0] == pytest.approx(p_values(some, rng)[0])
    assert p_values(np.zeros((40, 2)), rng).tolist() == [1.0, 1.0]


def test_drawn_signs_agree_with_all_signs() -> None:
    """With 13 users all 8,192 choices are tried; one more user who hardly differs leads to drawing them."""
    rng = np.random.default_rng(3)
    few = rng.normal(0.3, 1, (13, 2))
    exact = p_values(few, rng)
    drawn = p_values(np.concatenate([few, np.full((1, 2), 1e-9)]), rng)
    assert drawn == pytest.approx(exact, abs=0.015)


def test_a_small_gain_of_everyone_is_found_where_the_intervals_of_the_figures_overlap() -> None:
    """2,000 users who reach anything from 0 to 1; the second model reaches .01 more for three of four."""
    rng = np.random.default_rng(1)
    first = rng.random((2000, 1))
    second = first + np.where(rng.random((2000, 1)) < 0.75, 0.01, -0.01)
    ones = np.ones_like(first)
    own, other = (interval(bootstrap(v, ones, 500, rng)[:, 0]) for v in (first, second))
    assert own[1] > other[0], "unpaired, the intervals overlap: nothing could be said"
    judged = paired_differences(second - first, 0)
    assert judged.low[0] > 0.004
    assert judged.p[0] < 0.001
    reversed_ = paired_differences(first - second, 0)
    assert reversed_.high[0] < -0.004


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_the_p_value_is_the_same_whichever_model_comes_first(seed: int, users: int) -> None:
    difference = np.random.default_rng(seed).integers(-2, 3, (users, 2)).astype(float)
    there, back = (p_values(sign * difference, np.random.default_rng(7)) for sign in (1, -1))
    assert there == pytest.approx(back)
    assert ((there > 0) & (there <= 1)).all()
