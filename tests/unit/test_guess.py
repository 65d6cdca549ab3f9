"""`rayrec init --from`: the recipe that the look of files gives, for the forms that public logs have."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.errors import UserError
from app.recipe import Recipe
from app.recipe_check import load_checked
from app.terminal.guess.names import event_word, likeness
from app.terminal.guess.times import find_spelling
from app.terminal.scaffold import init

ROWS = 600
EPOCH = 1_700_000_000


def rows_of(line: Callable[[int, int, int], str], rows: int = ROWS, seed: int = 1) -> str:
    """Lines of a log: a number, a user of 40 and an item of 60 each, in the order of users."""
    rng = random.Random(seed)
    pairs = sorted((rng.randrange(1, 41), rng.randrange(1, 61)) for _ in range(rows))
    return "\n".join(line(number, user, item) for number, (user, item) in enumerate(pairs)) + "\n"


def guess(folder: Path, files: dict[str, str | bytes], changes: Sequence[str] = ()) -> Recipe:
    """The recipe that init writes for files, read again and checked."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    init(folder / "r", [str(folder / name) for name in files], changes)
    return load_checked(folder / "r" / "recipe.toml")


def text_of(folder: Path) -> str:
    return (folder / "r" / "recipe.toml").read_text()


def test_a_shop_log_with_items(tmp_path: Path) -> None:
    events = ["view", "view", "cart", "purchase"]
    log = "CustomerID,StockCode,action,Quantity,InvoiceDate,Country\n" + rows_of(
        lambda n, u, i: (
            f"{u},S{i},{events[n % 4]},{n % 7 - 1},2024-01-{1 + n % 28:02} 10:00:00,{'FR' if u % 2 else 'UK'}"
        )
    )
    items = "code,title,price,category,image\n" + "".join(
        f"S{i},A lamp number {i},{i}.5,{'abc'[i % 3]},http://x/{i}.jpg\n" for i in range(1, 61)
    )
    recipe = guess(tmp_path, {"log.csv": log, "items.csv": items})
    data = recipe.data
    assert (data.user, data.item, data.timestamp) == ("CustomerID", "StockCode", "InvoiceDate")
    assert (data.event, data.value, data.user_columns) == ("action", "Quantity", ["Country"])
    assert data.items is not None and data.items.id == "code"
    kinds = {feature.column: feature.cells for feature in recipe.features.item}
    assert kinds == {"title": "text", "price": "number", "category": "category"}
    assert recipe.serve.columns == ["title", "image"]
    text = text_of(tmp_path)
    assert "# guess: the only column of times" in text
    assert '"Quantity > 0"' in text
    assert "100% of the items of the log" in text


def test_event_types_by_file(tmp_path: Path) -> None:
    header = "visitorid\titemid\tevent\n"
    files = {f"{name}_shop.dat": header + rows_of(lambda n, u, i: f"{u}\t{i}\t1", 200, seed)
             for seed, name in enumerate(("view", "add_to_cart", "purchase"))}  # fmt: skip
    data = guess(tmp_path, dict(files)).data
    assert {source.event for source in data.sources} == {"view", "cart", "purchase"}
    assert (data.user, data.item, data.timestamp, data.events) == ("visitorid", "itemid", "", [])
    assert data.event == "event_type"  # the column "event" is the same throughout and says nothing


def test_files_of_dates_are_one_log(tmp_path: Path) -> None:
    files = {f"log-2024-0{m}.csv": "user,item,ts\n" + rows_of(lambda n, u, i: f"{u},{i},{EPOCH + n}", 100, m)
             for m in range(1, 6)}  # fmt: skip
    data = guess(tmp_path, dict(files)).data
    assert data.events == [str(tmp_path / "*.csv")]
    assert data.sources == []


def test_a_session_stands_for_an_empty_user(tmp_path: Path) -> None:
    log = "session_id;user_id;item_id;timeframe;eventdate\n" + rows_of(
        lambda n, u, i: f"{u};NA;{i};{n * 997 % 5000};2016-05-{1 + n % 9:02}"
    )
    data = guess(tmp_path, {"views.csv": log}).data
    assert (data.user, data.item, data.timestamp) == ("session_id", "item_id", ["eventdate", "timeframe"])
    assert data.user_columns == data.item_columns == []
    assert "because user_id is mostly empty" in text_of(tmp_path)


def test_movielens_without_headers(tmp_path: Path) -> None:
    ratings = rows_of(lambda n, u, i: f"{u}::{i}::{1 + n % 5}::{EPOCH + n * 60}")
    movies = "".join(
        f"{i}::Café number {i} (19{i + 30})::{['Drama', 'Comedy|Drama'][i % 2]}\n" for i in range(1, 61)
    )
    users = "".join(f"{u}::{'MF'[u % 2]}::{[1, 18, 25][u % 3]}::{u % 4}::0{1000 + u}\n" for u in range(1, 41))
    recipe = guess(
        tmp_path, {"ratings.dat": ratings, "movies.dat": movies.encode("latin-1"), "users.dat": users}
    )
    data = recipe.data
    assert data.columns == ["user", "item", "value", "timestamp"]
    assert (data.user, data.item, data.value, data.timestamp) == ("user", "item", "value", "timestamp")
    assert data.items is not None and data.items.files == [str(tmp_path / "movies.dat")]
    assert data.items.encoding != ""
    assert data.users is not None and data.users.files == [str(tmp_path / "users.dat")]
    assert [feature.cells for feature in recipe.features.item] == ["text", "text"]  # genres are several words
    assert [(f.column, f.cells) for f in recipe.features.user] == [
        ("column2", "category"),
        ("column3", "category"),
        ("column4", "category"),
    ]  # a postal code is no quantity


def test_clicks_of_sessions_without_a_header(tmp_path: Path) -> None:
    clicks = rows_of(
        lambda n, u, i: f"{u},2014-04-07T10:{n % 60:02}:09.277Z,2145{i:02},{'S' if n % 3 else n % 13}"
    )
    data = guess(tmp_path, {"yoochoose-clicks.dat": clicks}).data
    assert data.columns[:3] == ["user", "timestamp", "item"]
    assert data.value == ""


def test_another_log_of_few_repeats_is_a_log_and_no_file_of_items(tmp_path: Path) -> None:
    clicks = rows_of(
        lambda n, u, i: f"{u},2014-04-07T10:{n % 60:02}:09.277Z,2145{i:02},{'S' if n % 3 else n % 13}"
    )
    bought = sorted(random.Random(3).sample([(u, i) for u in range(1, 41) for i in range(1, 61)], 60))
    bought = [(n % 40 + 1, i) for n, (_, i) in enumerate(bought)]
    buys = "".join(
        f"{u},2014-04-08T10:{n % 60:02}:09.277Z,2145{i:02},{100 + n},1\n" for n, (u, i) in enumerate(bought)
    )
    data = guess(tmp_path, {"yoochoose-clicks.dat": clicks, "yoochoose-buys.dat": buys}).data
    assert {source.event: source.columns for source in data.sources} == {
        "click": ["user", "timestamp", "item", "column4"],
        "buy": ["user", "timestamp", "item", "column4_2", "column5_2"],  # they may mean something else
    }
    assert data.items is None


def test_check_ins_with_coordinates(tmp_path: Path) -> None:
    log = rows_of(lambda n, u, i: f"{u}\t2010-10-1{n % 9}T12:23:5{n % 9}Z\t30.{i}59\t-97.{i}749\t22{i:03}")
    data = guess(tmp_path, {"checkins.txt": log}).data
    assert [data.columns.index(name) for name in (data.user, data.timestamp, data.item)] == [0, 1, 4]
    assert data.value == ""


def test_impressions(tmp_path: Path) -> None:
    log = rows_of(
        lambda n, u, i: (
            f"{n}\tU{u}\t11/{11 + n % 5}/2019 9:05:{n % 60:02} AM\tN{i} N2\tN{i}-1 N{i + 1}-0 N{i + 2}-0"
        )
    )
    news = "".join(f"N{i}\tnews\tsub{i % 4}\tA headline of number {i}\n" for i in range(1, 63))
    data = guess(tmp_path, {"behaviors.tsv": log, "news.tsv": news}).data
    assert data.layout == "impressions"
    assert (data.user, data.positive, data.timestamp) == ("user", ["click"], "timestamp")
    # The number of the row comes again only as the row becomes several events, and column 4 lists items.
    assert data.columns == ["column1", "user", "timestamp", "column4", "item"]
    assert data.user_columns == []
    assert data.items is not None and (data.items.id, data.items.header[0]) == ("item", "item")
    assert data.time_format == "%m/%d/%Y %I:%M:%S %p"
    assert data.columns.index(data.item) == 4
    assert data.items is not None and data.items.files == [str(tmp_path / "news.tsv")]


def test_lists_of_items(tmp_path: Path) -> None:
    rng = random.Random(2)
    lines = [" ".join(map(str, [u, *rng.sample(range(100, 200), rng.randrange(2, 9))])) for u in range(80)]
    data = guess(tmp_path, {"train.txt": "\n".join(lines) + "\n"}).data
    assert (data.layout, data.user, data.item, data.timestamp) == ("lists", "user", "item", "")


def test_reviews_as_json_lines(tmp_path: Path) -> None:
    def review(number: int, user: int, item: int) -> str:
        entry = {
            "reviewerID": f"A{user}",
            "asin": f"B{item}",
            "reviewerName": "J. D.",
            "overall": number % 5 + 1.0,
            "reviewText": f"I like number {number} and all that comes with it",
            "reviewTime": "09 13, 2009",
            "unixReviewTime": EPOCH + number * 86400,
        }
        return json.dumps(entry)

    data = guess(tmp_path, {"reviews.json": rows_of(review)}).data
    assert (data.user, data.item, data.value) == ("reviewerID", "asin", "overall")
    assert data.timestamp == "unixReviewTime"


def test_typed_names_and_parquet(tmp_path: Path) -> None:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows_of(
        lambda n, u, i: f"{u}\t{i}\t{n % 5 + 1}\t{EPOCH + n}"
    )
    data = guess(tmp_path, {"ml.inter": inter}).data
    assert (data.user, data.item, data.value, data.timestamp) == ("user_id", "item_id", "rating", "timestamp")
    numbers = range(300)
    columns = {"CUSTOMER_KEY": [n % 30 for n in numbers], "PRODUCT_KEY": [n % 50 for n in numbers]}
    columns |= {"EVENT_TS": [EPOCH * 1000 + n for n in numbers], "REGION": [7 for _ in numbers]}
    frame = pl.DataFrame(columns)
    frame.write_parquet(tmp_path / "log.parquet")
    init(tmp_path / "p", [str(tmp_path / "log.parquet")])
    data = load_checked(tmp_path / "p" / "recipe.toml").data
    assert (data.user, data.item, data.timestamp) == ("CUSTOMER_KEY", "PRODUCT_KEY", "EVENT_TS")
    assert data.user_columns == data.item_columns == []  # REGION is the same throughout


def test_users_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    log = "a,b\n" + rows_of(lambda n, u, i: f"{n}.25,{i}")
    with pytest.raises(UserError, match="cannot be told; it has a, b") as caught:
        guess(tmp_path, {"log.csv": log})
    assert "--set data.item=COLUMN" in caught.value.remedy
    assert not (tmp_path / "r").exists()


def test_what_is_given_is_not_guessed(tmp_path: Path) -> None:
    log = "user,owner,item\n" + rows_of(lambda n, u, i: f"{u},{u % 7},{i}")
    data = guess(tmp_path, {"log.csv": log}, ["data.user=owner", "train.epochs=3"]).data
    assert (data.user, data.item) == ("owner", "item")


@pytest.mark.parametrize(
    ("values", "pattern", "other", "days"),
    [
        (["2024-01-31", "2024-02-01"], "", "", True),
        (["2024-01-31 10:00:01", "2024-02-01 00:00:00"], "", "", False),
        (["31/12/2024", "01/02/2024"], "%d/%m/%Y", "", True),
        (["12/31/2024 1:05 PM", "1/2/2024 11:59 AM"], "%m/%d/%Y %I:%M %p", "", False),
        (["1/2/2024", "3/4/2024"], "%d/%m/%Y", "%m/%d/%Y", True),
        (["1700000000", "1700000001"], "", "", False),
        (["20240131", "20240201"], "", "", True),
    ],
)
def test_spellings_of_times(values: list[str], pattern: str, other: str, days: bool) -> None:
    spelling = find_spelling(pl.Series(values))
    assert spelling is not None
    assert (spelling.format, spelling.other, spelling.days) == (pattern, other, days)


@pytest.mark.parametrize(
    "values", [["1", "2"], ["red", "blue"], ["4.5", "3.0"], ["99999", "12"], ["A1-2", "B3-4"]]
)
def test_what_is_no_time(values: list[str]) -> None:
    assert find_spelling(pl.Series(values)) is None


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (["userID", "visitorid", "CustomerID", "reviewerID", "user-mboxsha1", "CUSTOMER_KEY", "uid"], "user"),
        (["asin", "itemid", "StockCode", "movieId", "track_id", "business_id", "sku", "Game_ID"], "item"),
        (["InvoiceDate", "eventdate", "unixReviewTime", "created_at", "ts", "timestamp"], "time"),
        (["rating", "Hours", "Quantity", "overall", "playCount"], "value"),
    ],
)
def test_names_of_columns_mean_a_role(names: list[str], role: str) -> None:
    def best(name: str) -> str:
        return max(("user", "item", "time", "value"), key=lambda other: likeness(name, other))

    assert {name: best(name) for name in names} == dict.fromkeys(names, role)
    for name in ("Game Name", "user_age", "Image-URL-S", "item category"):
        assert max(likeness(name, other) for other in ("user", "item")) == 0


def test_names_of_files_mean_a_type_of_events() -> None:
    found: dict[str, Any] = {
        name: event_word(name) for name in ("yoochoose-buys.dat", "x/clicks.csv", "log.csv")
    }
    assert found == {"yoochoose-buys.dat": "buy", "x/clicks.csv": "click", "log.csv": ""}


def test_attributes_that_the_file_calls_lists_are_texts(tmp_path: Path) -> None:
    log = "user_id:token\titem_id:token\ttimestamp:float\n" + rows_of(
        lambda n, u, i: f"{u}\t{i}\t{EPOCH + n}"
    )
    genres = ["Crime Drama", "Drama", "Comedy"]
    items = "item_id:token\tclass:token_seq\n" + "".join(f"{i}\t{genres[i % 3]}\n" for i in range(1, 61))
    recipe = guess(tmp_path, {"ml.inter": log, "ml.item": items})
    assert [(f.column, f.cells) for f in recipe.features.item] == [("class", "text")]
