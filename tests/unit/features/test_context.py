"""Features of a moment: hand-worked values, and a batch equals its requests bit for bit."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.features.context import DAY, HOUR, age, context, context_width

NAMES = ["hour", "weekday", "recency"]
TIMES = st.integers(0, 4_102_444_800_000_000)


def micros(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[misc]


def test_hour_and_weekday_turn_once_a_day_and_once_a_week() -> None:
    monday_six = micros(2024, 1, 1, 6)
    now = np.array([monday_six, monday_six - 6 * HOUR])
    cycles = context(["hour", "weekday"], now, np.zeros(2, np.int64))
    assert cycles[0, :2] == pytest.approx([1, 0], abs=1e-6)
    assert cycles[1] == pytest.approx([0, 1, 0, 1], abs=1e-6)


def test_recency_is_the_logarithm_of_hours_and_whether_there_is_a_history() -> None:
    now = np.full(4, micros(2024, 5, 1))
    last = np.array([now[0] - 3 * HOUR, 0, now[0] + HOUR, now[0] - 1000 * DAY])
    recency = context(["recency"], now, last)
    assert recency[:, 0] == pytest.approx([np.log(4), 0, 0, np.log1p(90 * 24)], abs=1e-6)
    assert recency[:, 1].tolist() == [0, 1, 0, 0]


def test_never_differs_from_just_now() -> None:
    now = np.full(2, micros(2024, 5, 1))
    never, just_now = context(NAMES, now, np.array([0, now[0]]))
    assert (never != just_now).any()


def test_width_counts_what_context_makes() -> None:
    for names in ([], ["hour"], NAMES):
        floats = context(names, np.zeros(2, np.int64), np.zeros(2, np.int64))
        assert floats.shape == (2, context_width(names)) and floats.dtype == np.float32


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=40))
def test_a_batch_equals_its_requests_bit_for_bit(rows: list[tuple[int, int]]) -> None:
    now, last = (np.array(part, np.int64) for part in zip(*rows, strict=True))
    single = [context(NAMES, now[i : i + 1], last[i : i + 1]) for i in range(len(rows))]
    assert context(NAMES, now, last).tobytes() == np.concatenate(single).tobytes()


def test_ages_of_a_batch_equal_those_of_each_request_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    now = rng.integers(micros(2024, 1, 1), micros(2024, 6, 1), (257, 1))
    time = np.where(rng.random((257, 50)) < 0.2, 0, now - rng.integers(0, 120 * DAY, (257, 50)))
    batch = age(now, time)
    assert (
        batch.tobytes()
        == np.concatenate([age(n[None], t[None]) for n, t in zip(now, time, strict=True)]).tobytes()
    )
    assert (batch[time == 0] == 0).all() and batch.max() <= np.log1p(90 * 24) + 1e-6
