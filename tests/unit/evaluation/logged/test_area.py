"""Areas under the curve, worked out by hand and against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.dataset import Array
from app.evaluation.logged.area import area_within, placements
from app.evaluation.metrics import Floats

EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


def by_pairs(scores: Array, label: Array) -> float:
    pairs = [(a > b) + (a == b) / 2 for a in scores[label > 0] for b in scores[label == 0]]
    return float(np.mean(pairs)) if pairs else float("nan")


def test_placements_count_the_other_label_and_ties_half() -> None:
    scores = np.array([4.0, 3.0, 3.0, 2.0, 1.0], np.float32)
    label = np.array([1, 0, 1, 1, 0], np.float32)
    # Negatives: 3 and 1. Of the positives 4 has both below, 3 has 1 and a tie, 2 has 1.
    assert placements(scores, label) == pytest.approx([1.0, 1.5 / 3, 0.75, 0.5, 1.0])


def test_one_label_has_no_area() -> None:
    assert np.isnan(placements(np.array([1.0, 2.0]), np.array([1, 1]))).all()


def test_areas_within_users_are_of_their_own_events() -> None:
    owner = np.array([0, 1, 0, 2, 1, 1])
    scores = np.array([0.1, 5.0, 0.2, 3.0, 4.0, 5.0])
    label = np.array([1, 1, 0, 1, 0, 0])
    # User 0 is in the wrong order; user 1 has one negative below and one tied; user 2 has one label.
    area = area_within(owner, scores, label, 3)
    assert area[:2] == pytest.approx([0.0, 0.75]) and np.isnan(area[2])


@given(EVENTS)
def test_areas_are_those_of_all_pairs(events: list[tuple[int, int, bool]]) -> None:
    owner, scores, label = (np.array(column) for column in zip(*events, strict=True))
    label = label.astype(np.float32)
    placed: Floats = placements(scores, label)
    whole = by_pairs(scores, label)
    for chosen in (label > 0, label == 0):
        if chosen.any():
            assert placed[chosen].mean() == pytest.approx(whole, nan_ok=True)
    within = area_within(owner, scores, label, 3)
    own = [by_pairs(scores[owner == user], label[owner == user]) for user in range(3)]
    assert within == pytest.approx(own, nan_ok=True)
