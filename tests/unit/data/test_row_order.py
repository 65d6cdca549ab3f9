"""Rows that a recipe says to be in order, and that something else than time has sorted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.data.check import check
from app.errors import DataError
from app.recipe import parse

pytestmark = pytest.mark.usefixtures("ray_local")


def visits(*, users: int = 60, items: int = 40, seed: int = 1) -> pl.DataFrame:
    """Each user meets 10 items in an order drawn anew; item ids are numbers without a meaning."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{u}", int(i), int(rng.integers(1, 100)))
        for u in range(users)
        for i in rng.permutation(items)[:10]
    ]
    return pl.DataFrame(rows, schema=["user", "item", "value"], orient="row")


def look(folder: Path, log: pl.DataFrame | Path, **data: Any) -> dict[str, Any]:
    if isinstance(log, pl.DataFrame):
        log.write_csv(folder / "log.csv")
        log = folder / "log.csv"
    data = {"events": [str(log)], "timestamp": "", "row_order": True, **data}
    return check(parse({"data": data}, "test"))


def test_rows_in_order_are_taken(tmp_path: Path) -> None:
    assert look(tmp_path, visits(), value="value")["order"] == "rows"


def test_ids_numbered_by_first_appearance_rise_in_any_order_and_are_taken(tmp_path: Path) -> None:
    log = visits(items=2000)  # most items are met by one user, whose ids then rise
    items = log["item"].unique(maintain_order=True)
    log = log.with_columns(item=log["item"].replace_strict(items, range(len(items))))
    assert look(tmp_path, log)["order"] == "rows"


@pytest.mark.parametrize("descending", [False, True])
def test_rows_sorted_by_item_are_refused(tmp_path: Path, descending: bool) -> None:
    # As numbers: 9 comes before 10. Two users met too few of the items that others met before them.
    log = visits().sort("user", "item", descending=[False, descending], maintain_order=True)
    direction = "descending" if descending else "ascending"
    with pytest.raises(
        DataError, match=rf"log\.csv: 58 of 58 users .* {direction} order of 'item'.*row_order"
    ):
        look(tmp_path, log)


def test_rows_sorted_by_value_are_refused(tmp_path: Path) -> None:
    log = visits().sort("user", "value", descending=[False, True], maintain_order=True)
    with pytest.raises(DataError, match=r"users .* descending order of 'value'"):
        look(tmp_path, log)  # also where the recipe gives the column no role


def test_a_column_that_counts_time_is_no_sign(tmp_path: Path) -> None:
    log = visits().with_columns(position=pl.int_range(pl.len()).over("user"))
    assert look(tmp_path, log)["order"] == "rows"


def test_rows_sorted_by_a_column_that_is_not_there_are_refused(tmp_path: Path) -> None:
    log = visits(users=300).with_columns(title=pl.col("item").hash(7)).sort("user", "title").drop("title")
    with pytest.raises(DataError, match=r"of \d+ pairs of items \d+ stand in the same order for every user"):
        look(tmp_path, log)


def test_without_row_order_sorted_rows_are_no_fault(tmp_path: Path) -> None:
    assert look(tmp_path, visits().sort("user", "item"), row_order=False)["order"] == "none"


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_habits_of_users_are_no_order_of_the_file(tmp_path: Path, share: float) -> None:
    """Viewers who take series as they like and, in this share of cases, their episodes in order."""
    rng = np.random.default_rng(2)
    rows = []
    for user in range(300):
        for series in rng.permutation(12)[:4]:
            episodes = [3 * int(series) + n for n in range(3)]
            rows += [
                (f"u{user}", e) for e in (episodes if rng.random() < share else rng.permutation(episodes))
            ]
    log = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    assert look(tmp_path, log)["order"] == "rows"


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("steam/game_play.dat", {"user": "User_ID", "item": "Game_ID"}),
        ("retailrocket/view_ecommerce.dat", {"user": "visitorid", "item": "itemid"}),
        ("retailrocket/purchase_ecommerce.dat", {"user": "visitorid", "item": "itemid"}),
        ("book-crossing/book_ratings.dat", {"value": "rating"}),
    ],
)
def test_public_logs_that_are_sorted(
    tmp_path: Path, real_data: Path, name: str, columns: dict[str, str]
) -> None:
    log = real_data / "as-they-came" / name
    with pytest.raises(DataError, match="not in the order in which things happened"):
        look(tmp_path, log, format="csv", delimiter="\t", **columns)


def test_a_public_log_in_order(tmp_path: Path, real_data: Path) -> None:
    assert look(tmp_path, real_data / "s3rec-beauty" / "events.parquet")["test"] == 22_363
