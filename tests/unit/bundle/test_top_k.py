"""The best k, with ties in a fixed order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.ranking.top_k import best

few_values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])


def test_ties_go_to_the_popular_then_to_the_first() -> None:
    scores = np.array([1, 3, 1, 1, 3], np.float32)
    prior = np.array([5, 0, 9, 5, 0])
    assert best(scores, 4, prior).tolist() == [1, 4, 2, 0]


@given(st.lists(st.tuples(few_values, st.integers(0, 3)), max_size=30), st.integers(0, 40))
def test_it_is_a_full_sort_cut_at_k(rows: list[tuple[float, int]], k: int) -> None:
    scores, prior = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows], int)
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], -prior[i], i))
    expected = [i for i in order[:k] if scores[i] > -np.inf]
    assert best(scores, k, prior).tolist() == expected
