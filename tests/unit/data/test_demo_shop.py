"""The demo shop: reproducible, with dirt of exactly known counts."""

from __future__ import annotations

import csv
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.artifact import open_artifact
from app.data.demo_shop import log
from app.data.demo_shop.generate import Truth, generate
from app.data.demo_shop.truth import START, Walks
from app.data.stage import prepare
from app.errors import DataError
from app.recipe_toml import load


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    generate(folder, users=200, items=60, events=6000, seed=7)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def reason_of(row: list[str]) -> str:
    """Why a row is rejected by itself, by the recipe's rules in their order; empty: it is not."""
    if len(row) != 6:
        return "unreadable"
    user, item, time, event, _, quantity = row
    for reason, holds in (
        ("missing_user", not user),
        ("missing_item", not item),
        ("filtered", float(quantity) <= 0),
        ("unknown_event", event not in ("view", "cart", "purchase")),
        ("bad_time", not in_2024(time)),
    ):
        if holds:
            return reason
    return ""


def in_2024(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).year == 2024
    except ValueError:
        return False


def training_rows(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """All rows but the last two of each user who has three or more; the log is in the order of time."""
    events = Counter(row[0] for row in rows)
    left = Counter(events)
    kept = []
    for row in rows:
        left[row[0]] -= 1
        if left[row[0]] >= 2 or events[row[0]] < 3:
            kept.append(row)
    return kept


def counted(folder: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Rejected rows by reason, and the rows kept, by a reader that shares no code with the product."""
    with (folder / "events.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))[1:]
    reasons = Counter(reason_of(row) for row in rows)
    good = [row for row in rows if not reason_of(row)]
    distinct = list(dict.fromkeys(map(tuple, good)))
    low, high = np.percentile([float(row[4]) for row in training_rows(distinct)], [25, 75])
    reach = 15 * (high - low)
    plain = [row for row in distinct if low - reach <= float(row[4]) <= high + reach]
    events = Counter(row[0] for row in training_rows(plain))
    kept = [list(row) for row in plain if events[row[0]] >= 3]
    reasons |= Counter(
        duplicate=len(good) - len(distinct),
        outlier=len(distinct) - len(plain),
        core=len(plain) - len(kept),
    )
    del reasons[""]
    return dict(reasons), kept


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(shop: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", users=200, items=60, events=6000, seed=7)
    generate(tmp_path / "other", users=200, items=60, events=6000, seed=8)
    first, again, other = content(shop), content(tmp_path / "again"), content(tmp_path / "other")
    assert first == again
    for name in ("events.csv", "items.csv", "users.csv"):
        assert first[name] != other[name]


def test_a_shop_replaces_an_earlier_one(shop: Path, tmp_path: Path) -> None:
    generate(tmp_path, users=40, items=30, events=900, seed=1)
    generate(tmp_path, users=200, items=60, events=6000, seed=7)
    assert content(tmp_path) == content(shop)


@settings(deadline=None, max_examples=15)
@given(
    users=st.integers(1, 60),
    items=st.integers(12, 60),
    fill=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_the_planted_dirt_is_counted_exactly_at_any_size_and_seed(
    users: int, items: int, fill: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    least, most = 5 * users + 40, max(5 * users + 40, int(users * int(0.8 * items) * 0.9))
    events = least + int(fill * (most - least))
    if events - sum(log.planted(events).values()) > users * int(0.8 * items):
        events, users = 2000, 60 + users
    folder = tmp_path_factory.mktemp("any")
    truth = generate(folder, users=users, items=max(items, 48), events=events, seed=seed)
    rejected, kept = counted(folder)
    assert rejected == truth.rejected
    assert len(kept) == truth.rows_kept
    assert len({row[0] for row in kept}) == users
    assert truth.rows_kept + sum(truth.rejected.values()) == truth.rows_in == events


def test_prepare_counts_the_dirt_exactly(shop: Path, tmp_path: Path, ray_local: None) -> None:
    figures = prepare(load(shop / "recipe.toml"), tmp_path / "dataset").figures
    truth = Truth.load(shop)
    assert figures["rejected"] == truth.rejected
    assert (figures["rows_in"], figures["rows_kept"]) == (truth.rows_in, truth.rows_kept)
    assert (figures["users"], figures["items"]) == (truth.users, truth.items)
    assert (figures["valid"], figures["test"]) == (truth.users, truth.users)
    assert open_artifact(tmp_path / "dataset", "dataset").figures == figures


def test_many_bins_keep_the_order_of_time_and_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "ROWS", 700)
    truth = generate(tmp_path, users=200, items=60, events=6000, seed=7)
    rejected, kept = counted(tmp_path)
    assert (rejected, len(kept)) == (truth.rejected, truth.rows_kept)
    times = [row[2] for row in kept]
    assert times == sorted(times)
    assert not list(tmp_path.glob("*.tmp"))


def test_kept_rows_are_the_walks(shop: Path) -> None:
    walks = Walks(shop / "truth")
    world_numbers = np.load(shop / "truth" / "item_number.npy")
    expected = {
        (f"u{user + 1:06d}", f"i{world_numbers[walks.item[row]]:05d}", int(walks.time[row]) + START)
        for user in range(200)
        for row in range(walks.indptr[user], walks.indptr[user + 1])
    }
    _, kept = counted(shop)
    rows = {(r[0], r[1], int(datetime.fromisoformat(r[2] + "+00:00").timestamp())) for r in kept}
    assert rows == expected


def test_no_user_meets_an_item_twice_and_their_time_rises(shop: Path) -> None:
    walks = Walks(shop / "truth")
    for start, end in zip(walks.indptr[:-1], walks.indptr[1:], strict=True):
        assert len(set(walks.item[start:end].tolist())) == end - start >= 5
        assert (np.diff(walks.time[start:end]) > 0).all()


def test_the_catalogue_describes_every_item_and_user(shop: Path) -> None:
    with (shop / "items.csv").open(newline="", encoding="utf-8") as stream:
        items = list(csv.DictReader(stream))
    with (shop / "users.csv").open(newline="", encoding="utf-8") as stream:
        users = list(csv.DictReader(stream))
    assert [row["item_id"] for row in items] == [f"i{n:05d}" for n in range(1, 61)]
    assert [row["user_id"] for row in users] == [f"u{n:06d}" for n in range(1, 201)]
    named = [row for row in items if row["category"]]
    assert len(named) > 50 and all(row["category"] in row["title"].lower() for row in named)


def test_the_recipe_names_columns_that_are_there(shop: Path) -> None:
    recipe = load(shop / "recipe.toml")
    heads = {
        name: (shop / name).read_text().splitlines()[0].split(",") for name in ("items.csv", "users.csv")
    }
    data = recipe.data
    assert [data.user, data.item, data.timestamp, data.event] == log.HEADER[:4]
    assert recipe.data.items and set(recipe.data.items.columns) < set(heads["items.csv"])
    assert {f.column for f in recipe.features.item} == set(heads["items.csv"]) - {"item_id"}
    assert {f.column for f in recipe.features.user} == set(heads["users.csv"]) - {"user_id"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"users": 100, "items": 50, "events": 200}, "500 to 4000 are clean"),
        ({"users": 10, "items": 50, "events": 5000}, "50 to 400 are clean"),
        ({"users": 10, "items": 5, "events": 100}, "1 and 12 at least"),
        ({"users": 0, "items": 50, "events": 100}, "1 and 12 at least"),
    ],
)
def test_sizes_at_odds_are_refused_with_what_would_do(
    sizes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        generate(tmp_path / "shop", **sizes)
    assert not (tmp_path / "shop").exists()


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DataError, match="no folder"):
        generate(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_shop_that_was_cut_short_has_no_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tmp_path, users=40, items=30, events=900)
    faults = []

    def fail(*arguments: object) -> None:
        faults.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(log.LogWriter, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, users=40, items=30, events=900)
    assert faults
    with pytest.raises(DataError, match="generate the shop again"):
        Truth.load(tmp_path)
