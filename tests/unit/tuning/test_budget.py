"""Budgets: how they are read, and which point they choose."""

from __future__ import annotations

import pytest

from app.errors import RecipeError
from tuning.budget import Limit, choose, parse
from tuning.points import Point


def point(trial: int, quality: float, p95_ms: float, mb: float) -> Point:
    return Point(trial, {}, quality, p95_ms, int(mb * 1e6), False, "ndcg@10")


POINTS = [point(0, 0.30, 9.0, 30.0), point(1, 0.28, 5.0, 18.0), point(2, 0.20, 1.0, 4.0)]


def test_a_budget_is_read() -> None:
    assert parse("p95_ms<=8, mb <= 20", "ndcg@10") == [Limit("p95_ms", 8.0), Limit("mb", 20.0)]
    assert parse("ndcg@10>=.25", "ndcg@10") == [Limit("ndcg@10", 0.25)]
    assert parse("", "ndcg@10") == []
    assert parse("ndcg@10>=0.98*best", "ndcg@10") == [Limit("ndcg@10", 0.98, of_best=True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p95_ms", "'p95_ms' is no condition"),
        ("p95_ms<8", "'p95_ms<8' is no condition"),
        ("p95<=8", "unknown figure 'p95'"),
        ("mb>=8", "write mb<="),
        ("ndcg@10<=0.1", "write ndcg@10>="),
        ("mb<=many", "'many' is no number"),
        ("mb<=nan", "'nan' is no number"),
        ("mb<=2,mb<=3", "mb is bounded twice"),
        (" , ", "names no figure"),
        ("ndcg@10>=best", "'best' is no number"),
        ("ndcg@10>=1.2*best", "no trial has 1.2 times the best quality"),
        ("mb<=0.5*best", "'0.5*best' is no number"),
    ],
)
def test_a_bad_budget_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match="budget") as caught:
        parse(text, "ndcg@10")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "trial", "within"),
    [
        ("", 0, True),
        ("p95_ms<=8, mb<=20", 1, True),
        ("mb<=4", 2, True),
        ("ndcg@10>=0.25, p95_ms<=6", 1, True),
        ("mb<=3", 2, False),
        ("ndcg@10>=0.93*best, p95_ms<=6", 1, True),
        ("ndcg@10>=0.9*best", 1, True),  # the smallest that keeps it
        ("ndcg@10>=0.95*best, mb<=20", 1, False),
        ("ndcg@10>=0.25, mb<=4", 2, False),  # misses by 20 %; trial 1 misses 4 MB by 350 %
    ],
)
def test_the_choice(budget: str, trial: int, within: bool) -> None:
    best, kept = choose(POINTS, parse(budget, "ndcg@10"))
    assert (best.trial, kept) == (trial, within)


def test_of_equal_quality_the_smaller_counts() -> None:
    best, _ = choose([point(0, 0.3, 1.0, 9.0), point(1, 0.3, 2.0, 5.0)], [])
    assert best.trial == 1
