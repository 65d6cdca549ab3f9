"""A stored feedback log as a source of events, alone and beside files."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from app.data import stage
from app.data.dataset import Dataset
from app.data.stage import check, prepare, source_digests
from app.errors import DataError, RecipeError
from app.events import Event
from app.recipe import Recipe, parse
from app.recipe_toml import load
from app.stores.base import ItemRecord
from app.stores.schema import FILE
from app.stores.sqlite_store import SqliteStore

pytestmark = pytest.mark.usefixtures("ray_local")
COLUMNS = {"user": "customer", "item": "product", "timestamp": "time", "event": "action", "value": "number"}
LOG = "customer,product,time,action,number,price,invoice\n"


def stored(folder: Path, *events: Event, items: dict[str, dict[str, Any]] | None = None) -> str:
    store = SqliteStore(folder)
    if events:
        store.append(events)
    for item, columns in (items or {}).items():
        store.put_item(item, msgspec.json.encode(ItemRecord(columns)))
    store.close()
    return f"store:{folder}"


def recipe_of(*events: str, **sections: Any) -> Recipe:
    data = {"events": list(events), **sections.pop("data", {})}
    return parse({"data": data, "split": {"valid": 0, "test": 0}, **sections}, "test")


def prepared(recipe: Recipe, folder: Path) -> Dataset:
    return Dataset.open(prepare(recipe, folder / "out").path)


def rows_of(dataset: Dataset) -> list[tuple[str, str, float, str, float]]:
    part = dataset.train
    return sorted(
        (dataset.users[int(u)], dataset.items[int(i)], int(t) / 1e6, dataset.schema.events[e], float(v))
        for u, i, t, e, v in zip(part.user, part.item, part.time, part.event, part.value, strict=True)
    )


def test_a_log_and_files_of_other_columns_are_one_list(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG + "a,x,2020-01-01,buy,2,9.5,i1\nb,y,2020-01-02,view,1,3,C2\n")
    second = 1_600_000_000.25
    log = stored(
        tmp_path / "store",
        Event("a", "z", "buy", second, 3.0, "v1"),
        Event("a", "z", "buy", second, 3.0, "v2"),  # by another version: the same event
        Event("c", "x", "view", second + 1),  # without a value, as a file without the column: 1
        Event("c", "x", "", second + 2),
        Event("c", "x", "hover", second + 3),
        Event("c", "y", "view", second + 4, -1.0),
        Event("c", "y", "view", 9e9),
    )
    data = {
        **COLUMNS,
        "time_format": "%Y-%m-%d",
        "event_types": ["view", "buy"],
        "where": "number > 0 and not invoice like 'C%'",  # what names a column of the files holds for files
        "outliers": [{"column": "price", "threshold": 100}],
        "item_columns": ["price"],
        "duplicate_key": [],
    }
    dataset = prepared(recipe_of(str(tmp_path / "log.csv"), log, data=data), tmp_path)
    assert rows_of(dataset) == [
        ("a", "x", 1_577_836_800.0, "buy", 2.0),
        ("a", "z", second, "buy", 3.0),
        ("c", "x", second + 1, "view", 1.0),
    ]
    figures = dataset.artifact.figures
    assert figures["rejected"] == {
        "missing_event": 1, "filtered": 2, "unknown_event": 1, "bad_time": 1, "duplicate": 1,
    }  # fmt: skip
    assert figures["rows_in"] == 9 == figures["rows_kept"] + sum(figures["rejected"].values())
    aside = pl.concat(
        [pl.read_parquet(p) for p in (dataset.path / "rejected").iterdir()], how="diagonal_relaxed"
    )
    assert set(aside["_file"]) == {str(tmp_path / "log.csv"), str(tmp_path / "store")}
    ours = aside.filter(pl.col("_file") == str(tmp_path / "store")).sort("_row")
    assert ours["_row"].to_list() == [2, 4, 5, 6, 7]
    assert ours["product"].to_list() == ["z", "x", "x", "y", "y"]


def test_a_missing_value_goes_by_the_policy_where_there_is_one(tmp_path: Path) -> None:
    log = stored(tmp_path / "store", Event("a", "x", "v", 1.0, 4.0), Event("a", "y", "v", 2.0))
    for policy, values in (("constant:7", [4.0, 7.0]), ("drop", [4.0]), ("median", [4.0, 4.0])):
        recipe = recipe_of(log, data={"value": "value", "missing": {"value": policy}})
        (tmp_path / policy).mkdir()
        assert prepared(recipe, tmp_path / policy).train.value.tolist() == values


def test_roles_that_the_recipe_does_not_name_are_left_aside(tmp_path: Path) -> None:
    log = stored(tmp_path / "store", Event("a", "y", "v", 9.0, 4.0), Event("a", "x", "w", 2.0))
    dataset = prepared(recipe_of(log, data={"timestamp": ""}), tmp_path)
    assert [dataset.items[int(i)] for i in dataset.train.item] == ["y", "x"]  # in the order of storing
    assert dataset.schema.events == ["", "event"]
    assert dataset.train.value.tolist() == [1.0, 1.0]


def test_events_against_the_filters_are_counted_like_all_others(tmp_path: Path) -> None:
    log = stored(
        tmp_path / "store", *(Event(u, i, "v", float(n)) for n, (u, i) in enumerate(["ax", "bx", "ay", "by"]))
    )
    dataset = prepared(recipe_of(log, data={"where": "user != 'b'"}), tmp_path)
    assert dataset.artifact.figures["rejected"] == {"filtered": 2}
    assert list(dataset.users) == ["", "a"]


def test_items_that_were_put_are_attributes_and_the_latest_word_wins(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,timestamp\na,x,1\na,y,2\n")
    (tmp_path / "items.csv").write_text("id,colour,price\nx,red,1\ny,blue,2\n")
    first = stored(tmp_path / "first", items={"x": {"colour": "green"}, "new": {"colour": "grey"}})
    second = stored(
        tmp_path / "second",
        Event("a", "new", "v", 3.0),
        items={"new": {"colour": "white", "price": 2.5}, "y": {"price": None}, "z": {"price": True}},
    )
    recipe = recipe_of(
        str(tmp_path / "log.csv"), first, second,
        data={"items": {"files": [str(tmp_path / "items.csv")], "id": "id"}},
        features={"item": [{"column": "price", "kind": "number"}]},
    )  # fmt: skip
    dataset = prepared(recipe, tmp_path)
    columns = pl.read_parquet(dataset.path / "columns" / "items.parquet")
    attributes = dict(zip(dataset.items, columns.select("colour", "price").rows(), strict=True))
    assert attributes == {
        "": (None, None), "new": ("white", 2.5), "x": ("green", 1.0), "y": ("blue", 2.0), "z": (None, None),
    }  # fmt: skip


def test_a_log_of_another_bundle_adds_its_rows_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,timestamp,kind\na,x,1,buy\n")
    log = stored(tmp_path / "store", Event("song fan", "song", "play", 2.0), items={"song": {"length": 180}})
    dataset = prepared(recipe_of(str(tmp_path / "log.csv"), log, data={"event": "kind"}), tmp_path)
    assert [row[:2] for row in rows_of(dataset)] == [("a", "x"), ("song fan", "song")]
    assert dataset.schema.events == ["", "buy", "play"]
    (tmp_path / "strict").mkdir()
    strict = {"event": "kind", "event_types": ["buy"]}
    figures = prepared(
        recipe_of(str(tmp_path / "log.csv"), log, data=strict), tmp_path / "strict"
    ).artifact.figures
    assert figures["rejected"] == {"unknown_event": 1}


def test_what_a_service_stores_meanwhile_waits_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stored(tmp_path / "store", Event("a", "x", "v", 1.0), Event("", "y", "v", 2.0))
    recipe = recipe_of(log)
    write, store = stage._write, SqliteStore(tmp_path / "store")
    arrived: list[Event] = []

    def write_later(*arguments: Any) -> Any:
        arrived.append(Event("b", "y", "v", 3.0))
        store.append(arrived)
        return write(*arguments)

    monkeypatch.setattr(stage, "_write", write_later)
    figures = prepare(recipe, tmp_path / "out").figures
    assert arrived
    assert (figures["rows_in"], figures["rejected"]) == (2, {"missing_user": 1})
    store.close()
    monkeypatch.undo()
    assert prepare(recipe, tmp_path / "out").figures["rows_in"] == 3


def test_the_digest_of_a_source_is_that_of_its_content(tmp_path: Path) -> None:
    log = stored(tmp_path / "store", Event("a", "x", "v", 1.0))
    before = source_digests(recipe_of(log))
    assert list(before) == [str(tmp_path / "store")]
    assert source_digests(recipe_of(log)) == before
    stored(tmp_path / "store", items={"x": {"colour": "red"}})
    assert source_digests(recipe_of(log)) != before


def test_check_shows_the_log(tmp_path: Path) -> None:
    log = stored(tmp_path / "store", Event("a", "x", "v", 1.0), Event("", "y", "v", 2.0))
    shown = check(recipe_of(log, data={"event": "action"}))
    assert shown["columns"] == {str(tmp_path / "store"): ["user", "item", "timestamp", "action"]}
    assert (shown["rows_in"], shown["rejected"]) == (2, {"missing_user": 1})
    assert (shown["users"], shown["items"], shown["events"]) == (1, 1, ["v"])


def test_a_path_counts_from_the_recipe_and_a_password_stays_out_of_the_manifest(tmp_path: Path) -> None:
    stored(tmp_path / "runs" / "store", Event("a", "x", "v", 1.0))
    (tmp_path / "recipe.toml").write_text(
        '[data]\nevents = ["store:runs/store", "redis://me:secret@host:1/0"]\n'
    )
    recipe = load(tmp_path / "recipe.toml")
    assert recipe.data.events == [f"store:{tmp_path / 'runs' / 'store'}", "redis://me:secret@host:1/0"]
    assert "secret" not in str(recipe.part("data"))
    assert recipe.part("data")["data"]["events"][1] == "redis://host:1/0"


def emptied(folder: Path) -> str:
    return stored(folder)


def of_a_newer_version(folder: Path) -> str:
    log = stored(folder, Event("a", "x", "v", 1.0))
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'version'")
    return log


def without_events(folder: Path) -> str:
    folder.mkdir()
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("CREATE TABLE items (id)")
    return f"store:{folder}"


def damaged(folder: Path) -> str:
    log = stored(folder, *(Event("a", f"i{n}", "v", 1.0) for n in range(2000)))
    with (folder / FILE).open("r+b") as stream:
        stream.seek(8000)
        stream.write(b"\xff" * 20_000)
    return log


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (emptied, "no event"),
        (of_a_newer_version, "format 99"),
        (without_events, "not a feedback log"),
        (damaged, "cannot be read"),
        (lambda folder: f"store:{folder}", "no feedback log"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_by_name(tmp_path: Path, make: Any, message: str) -> None:
    log = make(tmp_path / "store")
    with pytest.raises(DataError, match=message) as caught:
        prepare(recipe_of(log), tmp_path / "out")
    assert str(tmp_path / "store") in str(caught.value)
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_an_empty_log_beside_files_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,timestamp\na,x,1\n")
    figures = prepare(
        recipe_of(emptied(tmp_path / "store"), str(tmp_path / "log.csv")), tmp_path / "out"
    ).figures
    assert figures["rows_in"] == 1


def test_a_filter_on_a_column_that_no_source_has_is_a_mistake(tmp_path: Path) -> None:
    log = stored(tmp_path / "store", Event("a", "x", "v", 1.0))
    with pytest.raises(RecipeError, match="no such column, 'price'"):
        prepare(recipe_of(log, data={"where": "price > 1"}), tmp_path / "out")
