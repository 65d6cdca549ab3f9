"""Every form that logs come in, read to the events that a person would read."""

# ruff: noqa: E501  (a case is easier to read on a line)
from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.data.input.form.files import find
from app.data.input.form.form import find_form
from app.data.input.reading import pieces
from app.data.input.source import cut, describe
from app.recipe import AttributeFile, Data

Events = list[tuple[str | None, ...]]


def read(path: Path, data: Data) -> Events:
    """User, item, and the times, types and values that the recipe names, as text."""
    columns = [c for c in (data.user, data.item, *data.time_columns, data.event, data.value) if c]
    rows: Events = []
    for source in [describe(str(path), data)] if not data.sources else _sources(data):
        for split in cut(source, 0):
            for piece in pieces(split):
                assert piece.bad == []
                rows += piece.frame.select(pl.col(columns).cast(pl.String)).rows()
    return rows


def _sources(data: Data) -> list[Any]:
    return [describe(name, data, own=own) for own in data.sources for name in find(own.files)]


PLAIN = [("a", "x", "1"), ("b", "y", "2")]
MIND = "1\tU1\t11/11/2019 9:05:58 AM\tN5 N4\tN55-1 N35-0\n2\tU2\t11/12/2019 6:11:30 PM\t\tN20-0 N39-0\n"
RATING = {"columns": ["user", "item", "rating", "timestamp"], "value": "rating"}
CASES: dict[str, tuple[str, str | bytes, dict[str, Any], Events]] = {
    "two characters between fields": (
        "ratings.dat", "1::1193::5::978300760\n2::661::3::978302109\n", RATING,
        [("1", "1193", "978300760", "5"), ("2", "661", "978302109", "3")],
    ),
    "latin-1": (
        "log.dat", "a::caf\xe9::5::1\n".encode("latin-1"), {**RATING, "encoding": "latin-1"},
        [("a", "caf\xe9", "1", "5")],
    ),
    "tabs and no ending": ("log", "a\tx\t1\nb\ty\t2\n", {"columns": ["user", "item", "timestamp"]}, PLAIN),
    "semicolons in a .csv": ("log.csv", "user;item;timestamp\na;x;1\nb;y;2\n", {}, PLAIN),
    "bars": ("log.txt", "user|item|timestamp\na|x|1\nb|y|2\n", {}, PLAIN),
    "blanks": ("log.txt", "a x 1\nb y 2\n", {"columns": ["user", "item", "timestamp"]}, PLAIN),
    "decimal commas": (
        "log.csv", "user;item;timestamp;value\na;x;1;3,5\nb;y;2;4,5\n", {"value": "value"},
        [("a", "x", "1", "3,5"), ("b", "y", "2", "4,5")],
    ),
    "UTF-16 by its mark": ("log.csv", "user,item,timestamp\na,x,1\nb,y,2\n".encode("utf-16"), {}, PLAIN),
    "UTF-8 with a mark": ("log.csv", b"\xef\xbb\xbfuser,item,timestamp\na,x,1\nb,y,2\n", {}, PLAIN),
    "a mark and no header": (
        "log.csv", b"\xef\xbb\xbfa,x,1\nb,y,2\n", {"columns": ["user", "item", "timestamp"]}, PLAIN,
    ),
    "no header": ("log.csv", "a,x,1\nb,y,2\n", {"columns": ["user", "item", "timestamp"]}, PLAIN),
    "no header, compressed": (
        "log.csv.gz", gzip.compress(b"a,x,1\nb,y,2\n"), {"columns": ["user", "item", "timestamp"]}, PLAIN,
    ),
    "columns that the header has, too": (
        "log.csv", "user,item,timestamp\na,x,1\nb,y,2\n", {"columns": ["user", "item", "timestamp"]}, PLAIN,
    ),
    "no header, columns by number": (
        "log.csv", "a,x,1\nb,y,2\n", {"user": "column1", "item": "column2", "timestamp": "column3"}, PLAIN,
    ),
    "surplus empty fields": ("log.csv", "user,item,timestamp\na,x,1,\nb,y,2,,\n", {}, PLAIN),
    "RecBole": (
        "ml.inter", "user_id:token\titem_id:token\ttimestamp:float\na\tx\t1\nb\ty\t2\n",
        {"user": "user_id", "item": "item_id"}, PLAIN,
    ),
    "RecBole's sequences": (
        "ml.inter", "session_id:token\titem_id_list:token_seq\ttime:float\ns\tx y\t1\nt\tz\t2\n",
        {"user": "session_id", "item": "item_id_list", "timestamp": "time", "layout": "lists"},
        [("s", "x", "1"), ("s", "y", "1"), ("t", "z", "2")],
    ),
    "a JSON array": (
        "log.json", json.dumps([{"user": "a", "item": "x", "timestamp": 1}, {"user": "b", "item": "y", "timestamp": 2}]),
        {}, PLAIN,
    ),
    "a JSON array over many lines": (
        "log.json",
        json.dumps([{"user": "a", "item": "[x\\\"}", "timestamp": 1}, {"user": "b", "item": "y\n,", "timestamp": 2}], indent=2),
        {}, [("a", "[x\\\"}", "1"), ("b", "y\n,", "2")],
    ),
    "nested JSON": (
        "log.jsonl", '{"u": {"id": "a"}, "item": {"sku": {"no": "x"}}, "timestamp": 1}\n',
        {"user": "u.id", "item": "item.sku.no"}, [("a", "x", "1")],
    ),
    "a list of items in JSON": (
        "log.jsonl", '{"user": "a", "item": ["x y", "z"], "timestamp": 1}\n{"user": "b", "item": [], "timestamp": 2}\n',
        {"layout": "lists"}, [("a", "x y", "1"), ("a", "z", "1"), ("b", None, "2")],
    ),
    "objects in a list in JSON": (
        "log.jsonl", '{"user": "a", "timestamp": 1, "lines": [{"sku": "x", "n": 2}, {"sku": "y", "n": 3}]}\n',
        {"item": "lines.sku", "value": "lines.n", "layout": "lists"},
        [("a", "x", "1", "2"), ("a", "y", "1", "3")],
    ),
    "user and items in a line": (
        "train.txt", "0 5 7 5\n1 6\n2\n", {"layout": "lists", "columns": ["user", "item"], "timestamp": ""},
        [("0", "5"), ("0", "7"), ("0", "5"), ("1", "6"), ("2", None)],
    ),
    "baskets": (
        "retail.dat", "30 31 32 \n33\n", {"layout": "lists", "columns": ["item"], "timestamp": ""},
        [("retail.dat:1", "30"), ("retail.dat:1", "31"), ("retail.dat:1", "32"), ("retail.dat:2", "33")],
    ),
    "baskets with a date": (
        "baskets.csv", 'user,timestamp,item\na,2020-01-01,"x,y"\nb,2020-01-02,z\n', {"layout": "lists"},
        [("a", "x", "2020-01-01"), ("a", "y", "2020-01-01"), ("b", "z", "2020-01-02")],
    ),
    "sessions with a time for each item": (
        "sessions.csv", "user,item,timestamp\ns,x y,1 2\nt,z,3\n", {"layout": "lists"},
        [("s", "x", "1"), ("s", "y", "2"), ("t", "z", "3")],
    ),
    "impressions": (
        "behaviors.tsv", MIND,
        {"layout": "impressions", "columns": ["n", "user", "timestamp", "before", "item"]},
        [
            ("U1", "N55", "11/11/2019 9:05:58 AM", "click"), ("U1", "N35", "11/11/2019 9:05:58 AM", "impression"),
            ("U2", "N20", "11/12/2019 6:11:30 PM", "impression"),
            ("U2", "N39", "11/12/2019 6:11:30 PM", "impression"),
        ],
    ),
    "impressions without a label": (
        "behaviors.tsv", "1\tU1\t1\t\tN55 N35-0\n",
        {"layout": "impressions", "columns": ["n", "user", "timestamp", "before", "item"]},
        [("U1", "N55", "1", None), ("U1", "N35", "1", "impression")],
    ),
    "quotes that enclose": ("log.csv", '"user","item","timestamp"\n"a","x, y","1"\n', {}, [("a", "x, y", "1")]),
    "a quote that is a letter": (
        "log.tsv", 'user\titem\ttimestamp\na\t"One\t1\nb\tTwo\t2\nc\tThree"\t3\nd\t"x"\t4\n', {},
        [("a", '"One', "1"), ("b", "Two", "2"), ("c", 'Three"', "3"), ("d", "x", "4")],
    ),
    "a quoted field over lines": (
        "log.csv", 'user,item,timestamp\na,"one\ntwo",1\nb,y,2\n', {}, [("a", "one\ntwo", "1"), ("b", "y", "2")],
    ),
    "a quoted field over lines in every row": (
        "log.csv", "user,item,timestamp,note\n" + "".join(f'a,i{n},{n},"one note\nover lines"\n' for n in range(3)), {},
        [("a", "i0", "0"), ("a", "i1", "1"), ("a", "i2", "2")],
    ),
    "no quotes by the recipe": (
        "log.csv", 'user,item,timestamp\na,"x",1\n', {"quote": ""}, [("a", '"x"', "1")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case)
def test_a_form_is_read_to_its_events(tmp_path: Path, case: str) -> None:
    name, content, settings, events = CASES[case]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert read(path, Data(events=[str(path)], **settings)) == events


def test_a_line_that_holds_a_column_of_the_recipe_is_a_header(tmp_path: Path) -> None:
    file = tmp_path / "users.csv"
    file.write_text("id,c\nu1,c\nu2,d\n")
    hints = AttributeFile(files=[str(file)], id="id")
    assert find_form(str(file), hints).columns == ("id", "c")
    without = find_form(str(file), AttributeFile(files=[str(file)], id="user"))
    assert without.columns == ("column1", "column2")  # three rows of two texts: nothing tells a header
