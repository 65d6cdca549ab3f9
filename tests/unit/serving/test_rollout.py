"""When a new version is promoted and when it is rolled back: the state machine over made-up reports."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe import Rollout as Limits
from app.serving.rollout.canary import Rollout
from app.serving.rollout.state import Snapshot, VersionState
from app.serving.versions.stats import BOUNDS, Comparison, Scores, VersionStats, plus, quantile_ms

LIMITS = Limits(
    shadow_requests=50, shadow_s=10, canary_requests=100, canary_s=15, canary_longest_s=45, load_s=60
)


def stats(requests: int, seconds: float = 0.002, errors: int = 0, score: float = 1.0) -> VersionStats:
    total = VersionStats()
    for count in range(requests):
        total.answered(seconds, count < errors)
        total.scores.add(score + count % 2)
    return total


def compared(count: int, agreement: float = 0.9, slower: float = 1.0, errors: int = 0) -> Comparison:
    old, new = stats(count), stats(count, 0.002 * slower)
    sums = agreement * count, count * 0.8
    return Comparison(count, errors, count, *sums, old.times, new.times, stats(count).scores)


def report(
    new: VersionStats | None = None, comparison: Comparison | None = None, replica: str = "r1", **state: Any
) -> Snapshot:
    """A replica that has loaded both versions."""
    versions = {
        "old": VersionState("ready", stats=stats(1000)),
        "new": VersionState(
            **{
                "state": "ready",
                "stats": new or VersionStats(),
                "compared": comparison or Comparison(),
                **state,
            }
        ),
    }
    return Snapshot(replica, 0.0, 1, 0, 1.0, versions)


def at_canary(**options: Any) -> Rollout:
    """A rollout whose canary began at second 3."""
    rollout = Rollout("old", "new", options.pop("limits", LIMITS), 0.0, **options)
    rollout.step(0, [Snapshot("r1", 0.0, 1, 0, 1.0, {"old": VersionState("ready", stats=stats(10))})])
    rollout.step(1, [report()])
    rollout.step(2, [report()])
    assert rollout.state == "shadow"
    rollout.step(3, [report(comparison=compared(60))])
    return rollout


def later(rollout: Rollout, now: float, new: VersionStats, old: VersionStats | None = None) -> Rollout:
    snapshot = report(new, compared(60))
    if old is not None:
        snapshot.versions["old"].stats = plus(stats(1000), old)
    rollout.step(now, [snapshot])
    return rollout


def test_a_good_version_is_promoted_after_enough_time_and_requests() -> None:
    rollout = at_canary()
    assert rollout.state == "canary"
    assert later(rollout, 17.9, stats(100)).state == "canary"
    assert later(rollout, 18.1, stats(99)).state == "canary"
    assert later(rollout, 18.2, stats(100)).state == "promoted"
    assert rollout.reason == ""


def at_idle_canary(**limits: Any) -> Rollout:
    """A rollout whose canary began at second 10, without any request so far."""
    rollout = Rollout("old", "new", LIMITS.model_copy(update=limits), 0.0)
    rollout.step(0, [report()])
    assert rollout.state == "shadow"
    rollout.step(10, [report()])
    assert rollout.state == "canary"
    return rollout


def test_with_little_traffic_some_requests_and_time_promote() -> None:
    rollout = at_idle_canary()
    rollout.step(54, [report(stats(20))])
    assert (rollout.state, rollout.note) == ("canary", "20 requests answered")
    rollout.step(55, [report(stats(20))])
    assert rollout.state == "promoted"


def test_without_requests_time_alone_never_promotes() -> None:
    rollout = at_idle_canary()
    for now in (54, 55, 1_000_000):
        rollout.step(now, [report()])
        assert rollout.state == "canary"
    assert rollout.note == "waiting for requests, at least 20: 0 requests answered"
    rollout.step(1_000_001, [report(stats(19))])
    assert (rollout.state, rollout.note.startswith("waiting for requests")) == ("canary", True)
    rollout.step(1_000_002, [report(stats(20))])
    assert rollout.state == "promoted"


def test_where_it_is_asked_for_time_alone_promotes() -> None:
    rollout = at_idle_canary(promote_idle=True)
    rollout.step(54, [report()])
    assert rollout.state == "canary"
    rollout.step(55, [report()])
    assert rollout.state == "promoted"
    few = at_idle_canary(canary_requests=3)
    few.step(25, [report(stats(3))])
    assert few.state == "promoted"


def test_a_phase_says_when_it_ends() -> None:
    rollout = Rollout("old", "new", LIMITS, 100.0)
    assert rollout.ends == 160
    rollout.step(101, [report()])
    assert (rollout.state, rollout.ends) == ("shadow", 111)
    rollout.step(111, [report()])
    assert (rollout.state, rollout.ends) == ("canary", 156)
    assert at_canary(keep=True).ends == 0


def test_it_waits_until_every_replica_has_loaded_it() -> None:
    rollout = Rollout("old", "new", LIMITS, 0.0)
    other = Snapshot("r2", 0.0, 1, 0, 1.0, {"new": VersionState("loading")})
    rollout.step(1, [])
    rollout.step(2, [report(), other])
    assert rollout.state == "loading"
    rollout.step(60, [report(), other])
    assert (rollout.state, rollout.reason) == (
        "rolled back",
        "loaded by 1 of 2 replicas within 60 s, not by r2",
    )


def test_a_silent_replica_that_has_not_loaded_it_blocks_until_it_is_back_or_gone() -> None:
    stalled = Snapshot("r2", -1000.0, 1, 0, 1.0, {"old": VersionState("ready")})
    for last in ([report(), report(replica="r2")], [report()]):
        rollout = Rollout("old", "new", LIMITS, 0.0)
        rollout.step(1, [report(), stalled])
        assert rollout.state == "loading"
        rollout.step(2, last)
        assert rollout.state == "shadow"


def test_a_replica_that_starts_during_the_canary_must_have_loaded_it() -> None:
    rollout = at_canary()
    starting = Snapshot("r2", 0.0, 1, 0, 1.0, {"old": VersionState("ready"), "new": VersionState("loading")})
    rollout.step(18.1, [report(stats(100), compared(60)), starting])
    assert rollout.state == "canary"
    assert rollout.note.startswith("waiting for replicas that have not loaded it (r2)")
    rollout.step(18.2, [report(stats(100), compared(60)), report(replica="r2")])
    assert rollout.state == "promoted"


def test_a_replica_that_refuses_it_ends_the_trial_in_any_state() -> None:
    refusal = report(replica="r2", state="refused", error="model.onnx: damaged")
    for rollout in (Rollout("old", "new", LIMITS, 0.0), at_canary()):
        rollout.step(4, [report(), refusal])
        assert (rollout.state, rollout.reason) == ("rolled back", "model.onnx: damaged")


@pytest.mark.parametrize(
    ("comparison", "reason"),
    [
        (compared(20, agreement=0.1), "agrees"),
        (compared(20, slower=30), "slow"),
        (compared(40, errors=1), "failed on 1 of 40"),
        (compared(5, errors=5), "failed on 5 of 5"),
    ],
)
def test_shadow_finds_what_is_wrong_before_a_user_gets_it(comparison: Comparison, reason: str) -> None:
    rollout = Rollout("old", "new", LIMITS, 0.0)
    rollout.step(0, [report()])
    rollout.step(1, [report(comparison=comparison)])
    assert rollout.state == "rolled back"
    assert reason in rollout.reason


@pytest.mark.parametrize(
    "comparison", [compared(19, agreement=-1), compared(19, slower=30), compared(4, 1, 1, 4)]
)
def test_too_few_requests_decide_nothing(comparison: Comparison) -> None:
    rollout = Rollout("old", "new", LIMITS, 0.0)
    rollout.step(0, [report()])
    rollout.step(1, [report(comparison=comparison)])
    assert rollout.state == "shadow"


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (stats(30, errors=2), stats(600), "failed on 2 of 30"),
        (stats(60, seconds=0.1), stats(600), "slow"),
        (stats(60, score=9.0), stats(600), "standard deviations"),
    ],
)
def test_a_bad_canary_goes(new: VersionStats, old: VersionStats, reason: str) -> None:
    rollout = later(at_canary(), 4, new, old)
    assert rollout.state == "rolled back"
    assert reason in rollout.reason


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (stats(30, errors=2), stats(600, errors=60)),  # the old one fails as often
        (stats(60, seconds=0.1), stats(600, seconds=0.08)),  # the machine is slow
        (stats(60, seconds=0.02), stats(600)),  # slower, but still quick
    ],
)
def test_what_the_old_version_suffers_too_is_not_the_new_ones_fault(
    new: VersionStats, old: VersionStats
) -> None:
    assert later(at_canary(), 4, new, old).state == "canary"


def test_what_ended_replicas_did_still_counts_and_what_was_before_does_not() -> None:
    rollout = Rollout("old", "new", LIMITS, 0.0)
    rollout.step(0, [report(stats(500, errors=500))])  # of an earlier trial
    rollout.step(10, [report(stats(500, errors=500), replica="r1")])
    assert rollout.state == "canary"
    rollout.step(30, [report(stats(560, errors=500), replica="r1")])
    rollout.step(31, [report(stats(40), replica="r2")])  # r1 is gone: 60 and 40
    assert rollout.state == "promoted"


def test_an_experiment_stays_until_something_is_wrong() -> None:
    rollout = at_canary(keep=True)
    assert rollout.state == "experiment"
    assert later(rollout, 10_000, stats(5000), stats(5000)).state == "experiment"
    assert later(rollout, 10_001, stats(6000, errors=1000), stats(6000)).state == "rolled back"


def test_without_a_trial_it_is_promoted_once_loaded() -> None:
    rollout = Rollout("old", "new", LIMITS, 0.0, now=True)
    rollout.step(1, [report()])
    assert rollout.state == "promoted"


def test_stats_add_differ_and_have_quantiles() -> None:
    one, two = stats(10, 0.001), stats(30, 1.0, errors=3)
    both = plus(one, two)
    assert (both.requests, both.errors, both.scores.count) == (40, 3, 40)
    assert plus(both, two, -1) == one
    assert quantile_ms(both.times, 0.25) == pytest.approx(1e3 * next(b for b in BOUNDS if b >= 0.001))
    assert 1000 <= quantile_ms(both.times, 0.95) < 1200
    assert quantile_ms(VersionStats().times, 0.95) == 0
    assert (Scores(2, 4.0, 10.0).mean, Scores(2, 4.0, 10.0).deviation) == (2.0, 1.0)
