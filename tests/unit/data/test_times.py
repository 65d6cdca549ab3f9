"""Times of any spelling: the value that a person would read, whatever stands in other rows."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.values.time_format import advice, ambiguous_formats, contradiction
from app.data.values.times import order_of, times_of
from app.errors import RecipeError
from app.recipe import Data


def read(values: list[object], **data: str) -> list[datetime | None]:
    micros, good = times_of(pl.Series(values, strict=False), Data(**data))
    start = datetime(1970, 1, 1)
    return [
        start + timedelta(microseconds=int(m)) if ok else None for m, ok in zip(micros, good, strict=True)
    ]


DAY, MOMENT = datetime(2024, 1, 31), datetime(2024, 1, 31, 10, 15, 30)
SPELLINGS: dict[str, datetime | None] = {
    "20240131": DAY,
    "2024-01-31": DAY,
    "2024/1/31": DAY,
    "2024.01.31": DAY,
    "31 Jan 2024": DAY,
    "January 31, 2024": DAY,
    "2024-W05-3": DAY,
    "20240131T101530": MOMENT,
    "20240131T101530Z": MOMENT,
    "20240131101530": MOMENT,
    "2024-01-31T11:15:30+01:00": MOMENT,
    "2024-01-31 05:15:30-0500": MOMENT,
    "2024-01-31 10:15:30+00": MOMENT,
    "2024-01-31T10:15:30.000Z": MOMENT,
    "2024-01-31 10:15:30 UTC": MOMENT,
    "2024-01-31T10:15:30Z": MOMENT,
    "2024/01/31 10:15:30": MOMENT,
    "2024-01-31 10:15:30 AM": MOMENT,
    "Wed Jan 31 10:15:30 +0000 2024": MOMENT,
    "Wed Jan 31 10:15:30 2024": MOMENT,
    "Wed, 31 Jan 2024 10:15:30 GMT": MOMENT,
    "Wed, 31 Jan 2024 11:15:30 +0100": MOMENT,
    "31/Jan/2024:10:15:30 +0000": MOMENT,
    "1706696130": MOMENT,
    "1706696130000": MOMENT,
    "1706696130.0": MOMENT,
    "202401311015": datetime(2024, 1, 31, 10, 15),
    "2024-01-31T10:15": datetime(2024, 1, 31, 10, 15),
    "2024-01-31 10:15:30.25 UTC": datetime(2024, 1, 31, 10, 15, 30, 250_000),
    "1706696130123456789": datetime(2024, 1, 31, 10, 15, 30, 123_457),
    "20241331": None,  # a date with a thirteenth month, and no second of 1970
    "2024-02-30": None,
    "1/31/2024 5:15 PM": None,  # nobody says which is the month, so no value may decide
    "31/1/2024": None,
    "99-01-01": None,
    "0001-01-01": None,
    "10:15:30": None,
    "soon": None,
    " ": None,
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_text_is_read_as_a_person_would(text: str) -> None:
    assert read([text]) == [SPELLINGS[text]]
    assert read([f" {text} "]) == [SPELLINGS[text]]


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(SPELLINGS)), max_size=30), st.randoms())
def test_each_value_counts_by_itself_in_any_order(texts: list[str], order: random.Random) -> None:
    shuffled = sorted(texts, key=lambda _: order.random())
    assert read(shuffled) == [SPELLINGS[text] for text in shuffled]


def test_a_spelling_that_changes_late_in_a_file() -> None:
    late = ["20240131T101530Z", "Wed, 31 Jan 2024 10:15:30 GMT", "2024-W05-3", "soon"]
    assert read(["2024-01-31"] * 500 + late)[500:] == [MOMENT, MOMENT, DAY, None]
    assert read(late + ["2024-01-31"] * 500)[:4] == [MOMENT, MOMENT, DAY, None]


@given(st.dates(date(1900, 1, 1), date(2100, 12, 31)), st.times())
def test_basic_and_extended_forms_agree(day: date, clock: time) -> None:
    moment = datetime.combine(day, clock.replace(microsecond=0))
    assert read([int(f"{day:%Y%m%d}"), None]) == [datetime.combine(day, time()), None]
    assert (
        read([f"{moment:%Y%m%dT%H%M%S}", f"{moment:%Y-%m-%d %H:%M:%S}", f"{moment:%Y%m%d%H%M%S}"])
        == [moment] * 3
    )


def test_numbers_of_each_type_and_unit() -> None:
    assert read([20240131, 1706696130, None]) == [DAY, MOMENT, None]
    assert read([20240131.0, 1706696130.0, None, float("nan")]) == [DAY, MOMENT, None, None]
    assert read([Decimal(20240131), Decimal(1706696130)]) == [DAY, MOMENT]
    assert read([1706696130123456789]) == [datetime(2024, 1, 31, 10, 15, 30, 123_457)]
    assert read([20240131], time_unit="s") == [datetime(1970, 8, 23, 6, 15, 31)]
    assert read(["20240131"], time_unit="s") == [datetime(1970, 8, 23, 6, 15, 31)]
    assert read([20240131], time_format="%Y%m%d") == [DAY]


def test_typed_times_and_dictionaries() -> None:
    zoned = pl.Series([datetime(2024, 1, 31, 10, 15, 30, tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo")
    assert times_of(zoned, Data())[0].tolist() == [1706696130000000]
    texts = pl.Series(["2024-01-31", None, "20240131"], dtype=pl.Categorical)
    micros, good = times_of(texts, Data())
    assert (micros[good].tolist(), good.tolist()) == ([1706659200000000] * 2, [True, False, True])
    assert not times_of(pl.Series([time(10, 15)]), Data())[1].any()


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("%H:%M %p %Y-%m-%d", "24 hours"),
        ("%Y-%m-%d %I:%M", "no %p says which"),
        ("%Y-%m-%d %M", "minutes without hours"),
        ("%Y-%m-%d %Q", "%Q is no directive"),
        ("%Y-%m-%d %Z", "%Z is no directive"),
        ("%m/%m/%Y", "%m stands twice"),
        ("%H:%M:%S", "no year"),
        ("%Y-%m-%d %H:%M:%S %f", "write .%f"),
        ("now", "no year"),
    ],
)
def test_a_pattern_that_contradicts_itself_is_refused(pattern: str, reason: str) -> None:
    assert reason in contradiction(pattern)
    with pytest.raises(RecipeError) as error:
        times_of(pl.Series(["2024-01-31 10:15"]), Data(time_format=pattern))
    assert error.value.where == "data.time_format"
    assert reason in error.value.what


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("1/31/2024 10:15 AM", "%m/%d/%Y %I:%M %p"),
        ("31.1.24 10:15", "%d.%m.%y %H:%M"),
        ("2024-01-31 10:15:00.000", "%Y-%m-%d %H:%M:%S.%f"),
        ("2024013110", "%Y%m%d%H"),
        ("Wed Jan 31 2024", "%a %b %d %Y"),
        ("1706659200", "%s"),
    ],
)
def test_a_pattern_that_can_be_reads(text: str, pattern: str) -> None:
    (moment,) = read([text], time_format=pattern)
    assert moment is not None
    assert moment.date() == DAY.date()


def test_advice_names_both_orders_unless_the_text_decides() -> None:
    assert '"%m/%d/%Y" or "%d/%m/%Y"' in advice("1/2/2024")
    assert 'data.time_format = "%m/%d/%Y %I:%M %p",' in advice("1/31/2024 5:15 PM")
    assert "data.time_unit" in advice("soon")
    assert ambiguous_formats(["1/2/2024", "13/2/2024"]) == ["%d/%m/%Y"]
    assert ambiguous_formats(["31.12.99", "x"]) == []


def test_what_orders_events_within_their_time() -> None:
    keys, good, added = order_of(pl.Series(["10:15", "5:15 pm", "12:00 AM", None, "x", "25:00"]), Data())
    assert good.tolist() == [True, True, True, False, False, False]
    assert keys[:3].tolist() == added[:3].tolist() == [36_900_000_000, 62_100_000_000, 0]
    keys, good, added = order_of(pl.Series(["9007199254740993", "9007199254740992", ""]), Data())
    assert keys.tolist()[:2] == [9007199254740993, 9007199254740992]
    assert (good.tolist(), added.tolist()) == ([True, True, False], [0, 0, 0])
    assert order_of(pl.Series([0.5, None]), Data())[0].tolist() == [0.5, 0]
    assert order_of(pl.Series([time(0, 0, 1)]), Data())[2].tolist() == [1_000_000]
