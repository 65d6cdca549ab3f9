"""Logs of one item, one user, one day, or events that are all alike: a message each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.data.check import check
from app.data.stage import prepare
from app.errors import DataError
from app.recipe import parse

pytestmark = pytest.mark.usefixtures("ray_local")
DAY = 86_400
Rows = list[tuple[Any, ...]]


def recipe_of(folder: Path, rows: Rows, split: dict[str, Any] | None = None, **data: Any) -> Any:
    schema = ["user", "item", "timestamp", "event"][: len(rows[0])]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "log.parquet")
    return parse({"data": {"events": [str(folder / "log.parquet")], **data}, "split": split or {}}, "test")


def notes_of(folder: Path, rows: Rows, split: dict[str, Any] | None = None, **data: Any) -> str:
    """The notes of a check, which are those of the data set."""
    recipe = recipe_of(folder, rows, split, **data)
    figures = prepare(recipe, folder / "out").figures
    assert check(recipe).get("notes", []) == figures.get("notes", [])
    return "\n".join(figures.get("notes", []))


def test_one_item(tmp_path: Path) -> None:
    notes = notes_of(tmp_path, [(f"u{n}", "only", n) for n in range(20)])
    assert "all 20 events that are kept, of 20 rows, are on one item, 'only'" in notes
    assert "data.item" in notes


def test_one_user(tmp_path: Path) -> None:
    notes = notes_of(tmp_path, [("me", f"i{n}", n) for n in range(9)])
    assert "one user, 'me'" in notes
    assert "data.user" in notes


def test_one_day(tmp_path: Path) -> None:
    rows: Rows = [(f"u{n % 9}", f"i{n}", 20_000 * DAY) for n in range(90)]
    assert "all events have the time 2024-10-04" in notes_of(tmp_path, rows)
    with pytest.raises(DataError, match=r"split\.method = 'time'.*2024-10-04"):
        check(recipe_of(tmp_path, rows, {"method": "time"}))


def test_all_events_alike(tmp_path: Path) -> None:
    notes = notes_of(tmp_path, [("a", "x", 1)] * 50)
    assert "49 of 50 rows repeat another in all columns" in notes
    assert "all 1 events that are kept, of 50 rows, are on one item, 'x'" in notes


def test_many_duplicates_may_be_events(tmp_path: Path) -> None:
    rows: Rows = [(f"u{n % 5}", f"i{n % 3}") for n in range(60)]
    notes = notes_of(tmp_path, rows, timestamp="")
    assert "45 of 60 rows repeat another in all columns" in notes
    assert "the log has no times and its rows no order" in notes


def test_nothing_to_say_of_a_common_log(tmp_path: Path) -> None:
    assert notes_of(tmp_path, [(f"u{n % 9}", f"i{n % 7}", n) for n in range(90)]) == ""


def test_no_event_of_a_type_to_predict(tmp_path: Path) -> None:
    rows: Rows = [(f"u{n % 9}", f"i{n % 7}", n, "view") for n in range(90)]
    with pytest.raises(DataError, match=r"data\.positive: no training event is of a type to predict.*view"):
        check(recipe_of(tmp_path, rows, event="event", event_types=["view", "buy"], positive=["buy"]))


def test_a_split_by_time_takes_the_nearest_moment_and_says_what_it_got(tmp_path: Path) -> None:
    # Of ten days the last holds 30 % and the others 7 or 8 %. 10 % tested is the last day's 30 %.
    rows: Rows = [(f"u{n}", f"i{n % 5}", min(n // 8, 9) * DAY) for n in range(100)]
    notes = notes_of(tmp_path, rows, {"method": "time"})
    figures = check(recipe_of(tmp_path, rows, {"method": "time"}))
    assert (figures["train"], figures["valid"], figures["test"]) == (64, 8, 28)
    assert "asked for valid 10.0% and test 10.0% of the events and gives 8.0% and 28.0%" in notes
    assert "28.0% at 1970-01-10, 8.0% at 1970-01-09, 8.0% at 1970-01-08" in notes


def test_a_day_that_holds_most_is_not_taken_where_a_smaller_one_is_nearer(tmp_path: Path) -> None:
    # Days of 20, 70 and 10 events: the share of 15 % tests the last day, not 80 %; 10 % to validate are
    # nearer to no day than to 70 %, but a part that is asked for gets one.
    rows: Rows = [(f"u{n}", f"i{n % 5}", (0 if n < 20 else 1 if n < 90 else 2) * DAY) for n in range(100)]
    figures = check(recipe_of(tmp_path, rows, {"method": "time", "test": 0.15}))
    assert (figures["train"], figures["valid"], figures["test"]) == (20, 70, 10)
    assert figures["order"] == "times"
    assert "15.0%" in figures["notes"][0]
