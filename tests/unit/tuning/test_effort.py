"""Where the seconds of a search go: to the kind of trial that gains the most for them."""

from __future__ import annotations

from tuning.effort import LEAST, Effort


def filled(trained: list[tuple[float, float]], reused: list[tuple[float, float]]) -> Effort:
    """An effort with trials of a cost and seconds, first those that were trained."""
    effort = Effort()
    for kind, trials in ((False, trained), (True, reused)):
        for cost, seconds in trials:
            effort.add([cost], seconds, reused=kind)
    return effort


def test_a_kind_that_was_not_tried_comes_next() -> None:
    assert Effort().chance_of_reuse() == 0
    assert filled([(5, 10)], []).chance_of_reuse() == 1
    assert filled([], [(5, 10)]).chance_of_reuse() == 0


def test_what_gains_alike_is_drawn_by_its_seconds() -> None:
    """One gain each in 30 s and in 10 s, worked out by hand: 1.5 / 10 against 1.5 / 30."""
    effort = filled([(5, 30)], [(4, 10)])
    assert abs(effort.chance_of_reuse() - 0.75) < 1e-9


def test_cheap_trials_that_find_nothing_give_way() -> None:
    gaining = filled([(9, 30)], [(8, 3), (7, 3), (6, 3)]).chance_of_reuse()
    idle = filled([(5, 30), (4, 30), (3, 30)], [(9, 30)] * 8).chance_of_reuse()
    assert gaining == 1 - LEAST
    assert idle < 0.4


def test_a_point_that_equals_an_earlier_one_is_no_gain() -> None:
    effort = filled([(5, 1), (5, 1)], [])
    assert effort.trained.gains == 0.8
