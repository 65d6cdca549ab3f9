"""Features of a moment: hand-worked values, bounds of what training saw, and a batch equals its requests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.features.context import DAY, HOUR, Context, ages, context_width, fit_bounds, gaps, median_gap

MINUTE = HOUR // 60
NAMES = ["hour", "weekday", "recency", "session"]
TIMES = st.integers(0, 4_102_444_800_000_000)
Ints = npt.NDArray[np.int64]


def micros(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[misc]


NOW = micros(2024, 5, 1)


def history(*times: int) -> Ints:
    return np.array([times], np.int64)


@dataclass
class Log:
    """Training events of one user after another."""

    user: Ints
    time: Ints
    label: npt.NDArray[np.float32]
    indptr: Ints


def log(*users: list[int], label: list[int] | None = None) -> Log:
    """The times of each user's events; there is no user 0."""
    counts = [len(times) for times in users]
    time = np.array([when for times in users for when in times], np.int64)
    labels = np.ones(len(time)) if label is None else np.array(label)
    indptr = np.concatenate([[0, 0], np.cumsum(counts)])
    return Log(np.repeat(np.arange(1, len(users) + 1), counts), time, labels.astype(np.float32), indptr)


def test_hour_and_weekday_turn_once_a_day_and_once_a_week() -> None:
    monday_six = micros(2024, 1, 1, 6)
    now = np.array([monday_six, monday_six - 6 * HOUR])
    cycles = Context(["hour", "weekday"])(now, np.zeros((2, 3), np.int64))
    assert cycles[0, :2] == pytest.approx([1, 0], abs=1e-6)
    assert cycles[1] == pytest.approx([0, 1, 0, 1], abs=1e-6)


def test_recency_is_the_logarithm_of_hours_and_whether_there_is_a_history() -> None:
    last = np.array([[NOW - 3 * HOUR], [0], [NOW + HOUR], [NOW - 1000 * DAY]])
    recency = Context(["recency"])(np.full(4, NOW), last)
    assert recency[:, 0] == pytest.approx([np.log(4), 0, 0, np.log1p(90 * 24)], abs=1e-6)
    assert recency[:, 1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("times", "count"),
    [
        pytest.param(
            [NOW - 9 * HOUR, NOW - 20 * MINUTE, NOW - 5 * MINUTE], 2, id="a pause before the last two"
        ),
        pytest.param([NOW - 30 * MINUTE, NOW - 29 * MINUTE, NOW], 3, id="no pause: all that is known"),
        pytest.param([NOW - 9 * HOUR, NOW - 8 * HOUR, NOW - 31 * MINUTE], 0, id="the pause is just over"),
        pytest.param([NOW - 9 * HOUR, NOW - 8 * HOUR, NOW - 30 * MINUTE], 1, id="a pause as long as allowed"),
        pytest.param([0, 0, NOW - MINUTE], 1, id="the first event ever"),
        pytest.param([0, 0, 0], 0, id="no event"),
    ],
)
def test_a_session_counts_the_events_since_the_last_pause(times: list[int], count: int) -> None:
    session = Context(["session"], (), 30 * MINUTE)(np.array([NOW]), history(*times))
    assert session[0] == pytest.approx([np.log1p(count), float(count == 0)])


def test_never_differs_from_just_now() -> None:
    never, just_now = Context(NAMES, (), HOUR)(np.full(2, NOW), np.array([[0], [NOW]]))
    assert (never != just_now).any()


def test_width_counts_what_context_makes() -> None:
    for names in ([], ["hour"], NAMES):
        context = Context(names)
        floats = context(np.zeros(2, np.int64), np.zeros((2, 1), np.int64))
        assert floats.shape == (2, context_width(names)) == (2, context.width)
        assert floats.dtype == np.float32


def test_ages_count_from_the_last_event_and_so_do_not_change_while_nothing_happens() -> None:
    aged = ages(history(0, NOW - 1000 * DAY, NOW - 3 * HOUR, NOW))
    assert aged[0] == pytest.approx([0, np.log1p(90 * 24), np.log(4), 0], abs=1e-6)
    assert aged.dtype == np.float32
    assert not ages(history(0, 0)).any()


class TestBounds:
    def test_they_are_those_of_requests_as_they_occurred(self) -> None:
        """Gaps of 1 hour and of 3 hours; the first event of each user has no gap, but counts for the flag."""
        events = log([NOW, NOW + HOUR, NOW + 4 * HOUR], [NOW + HOUR])
        (low, high), flag = fit_bounds(["recency"], 0, 2, events)
        # .1 % and 99.9 % between two values, log 2 and log 4
        assert [low, high] == pytest.approx([np.log(2) * 1.001, np.log(2) * 1.999])
        assert flag == [0, 1]

    def test_events_of_one_moment_do_not_come_before_each_other(self) -> None:
        basket = [NOW, NOW, NOW, NOW + 2 * HOUR, NOW + 2 * HOUR]
        (low, high), _ = fit_bounds(["recency"], 0, 3, log(basket))
        assert [low, high] == pytest.approx([np.log(3)] * 2)

    def test_an_event_that_is_not_to_be_predicted_is_history_and_no_request(self) -> None:
        events = log([NOW, NOW + HOUR, NOW + 8 * HOUR], label=[1, 0, 1])
        (low, high), _ = fit_bounds(["recency"], 0, 3, events)
        assert [low, high] == pytest.approx([np.log(8)] * 2)

    def test_they_are_narrow_where_training_knew_one_hour_and_one_day(self) -> None:
        """A log of days without hours, of one Monday: no other hour and day may reach the model."""
        monday = micros(2024, 1, 1)
        bounds = fit_bounds(["hour", "weekday"], 0, 2, log([monday, monday], [monday]))
        assert np.array(bounds) == pytest.approx(np.array([[0, 0], [1, 1], [0, 0], [1, 1]]), abs=1e-6)
        context = Context(["hour", "weekday"], bounds)
        learned, served = context(np.array([monday, micros(2031, 7, 4, 17)]), np.zeros((2, 2), np.int64))
        assert learned.tobytes() == served.tobytes()

    def test_a_request_years_later_is_as_late_as_training_saw(self) -> None:
        events = log([NOW, NOW + HOUR], [NOW, NOW + 5 * HOUR])
        context = Context(["recency"], fit_bounds(["recency"], 0, 2, events))
        years, hours = context(np.array([NOW + 3000 * DAY, NOW + 5 * HOUR]), np.array([[0, NOW], [0, NOW]]))
        assert years.tobytes() == hours.tobytes()

    def test_they_survive_json_bit_for_bit(self) -> None:
        bounds = fit_bounds(NAMES, HOUR, 2, log([NOW + 17, NOW + 3 * HOUR, NOW + 77 * HOUR], [NOW + 99]))
        assert all(float(np.float32(bound)) == bound for pair in bounds for bound in pair)

    @pytest.mark.parametrize(
        ("names", "events", "expected"),
        [
            pytest.param([], log([NOW]), [], id="no context"),
            pytest.param(["recency"], log([NOW], [NOW]), [[0, 0], [1, 1]], id="nobody has a history"),
            pytest.param(["recency"], log([NOW], label=[0]), [], id="nothing is to be predicted"),
            pytest.param(["recency"], log([]), [], id="no event"),
        ],
    )
    def test_of_nothing_there_are_none(self, names: list[str], events: Log, expected: list[object]) -> None:
        assert fit_bounds(names, 0, 3, events) == expected

    def test_the_median_gap_is_that_between_moments(self) -> None:
        events = log([NOW, NOW, NOW + HOUR, NOW + 3 * HOUR, NOW + 10 * HOUR], [NOW])
        assert median_gap(events) == 2 * HOUR
        assert median_gap(log([NOW], [NOW])) == 0

    def test_a_large_log_is_sampled_evenly(self) -> None:
        """Twice as many events as are looked at, the first half an hour apart, the others two hours."""
        count = 1 << 18
        gaps = np.repeat([HOUR, 2 * HOUR], count)
        events = log((NOW + np.cumsum(gaps)).tolist())
        (low, high), _ = fit_bounds(["recency"], 0, 1, events)
        assert [low, high] == pytest.approx([np.log(2), np.log(3)])


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(TIMES, TIMES, TIMES), min_size=1, max_size=40))
def test_a_batch_equals_its_requests_bit_for_bit(rows: list[tuple[int, int, int]]) -> None:
    now = np.array([row[0] for row in rows], np.int64)
    time = np.array([sorted(row[1:]) for row in rows], np.int64)
    bounds = fit_bounds(NAMES, DAY, 2, log([NOW, NOW + HOUR, NOW + 30 * DAY]))
    context = Context(NAMES, bounds, DAY)
    single = [context(now[i : i + 1], time[i : i + 1]) for i in range(len(rows))]
    assert context(now, time).tobytes() == np.concatenate(single).tobytes()


def test_ages_of_a_batch_equal_those_of_each_request_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    time = np.sort(NOW - rng.integers(0, 120 * DAY, (257, 50)), 1)
    time = np.where(np.arange(50) < rng.integers(0, 51, (257, 1)), 0, time)
    batch = ages(time)
    assert batch.tobytes() == np.concatenate([ages(row[None]) for row in time]).tobytes()
    assert (batch[time == 0] == 0).all() and batch.max() <= np.log1p(90 * 24) + 1e-6


def test_a_gap_is_the_logarithm_of_the_hours_since_the_event_before() -> None:
    times = history(0, NOW, NOW + HOUR, NOW + HOUR, NOW + 200 * DAY)
    assert gaps(times)[0] == pytest.approx([0, 0, np.log1p(1), 0, np.log1p(90 * 24)], rel=1e-5)


@given(st.lists(TIMES.filter(bool), min_size=1, max_size=8), st.integers(1, 8))
def test_gaps_are_the_same_from_whatever_event_a_history_is_seen(times: list[int], seen: int) -> None:
    times = sorted(times)
    cut = times[:seen]
    assert gaps(history(*cut))[0].tolist() == gaps(history(*times))[0, : len(cut)].tolist()


def test_without_times_there_are_no_gaps() -> None:
    assert not gaps(np.zeros((2, 5), np.int64)).any()
