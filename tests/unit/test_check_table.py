"""What `rayrec check` shows on a terminal."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from app.data.check import check
from app.recipe import parse
from app.terminal.check_table import of_check
from app.terminal.console import table

LONG = "a note that is longer than anybody would read in a table"


def result(folder: Path) -> dict[str, Any]:
    """A check of a log without a header, with items beside it: 40 good rows and five that cannot be used."""
    good = [f"{n % 5}::{n % 8}::{1_700_000_000 + n}::ok" for n in range(40)]
    bad = [f"::{n}::{1_700_000_000 + n}::{LONG}" for n in range(4)] + ["1::2::no time::x"]
    (folder / "log.dat").write_text("\n".join([*good, *bad]) + "\n")
    (folder / "items.csv").write_text(
        "id,title\n" + "".join(f"{n},Café {n}\n" for n in range(40)) + "5,a,b,c\n", "latin-1"
    )
    data = {
        "events": [str(folder / "log.dat")], "columns": ["who", "what", "when", "note"], "user": "who",
        "item": "what", "timestamp": "when",
        "items": {"files": [str(folder / "items.csv")], "id": "id", "encoding": "latin-1"},
    }  # fmt: skip
    return check(parse({"data": data}, "test"))


@pytest.mark.usefixtures("ray_local")
def test_files_rejects_and_times_are_a_table_to_read(tmp_path: Path) -> None:
    rows = of_check(result(tmp_path))
    shown = dict(rows)
    assert shown["log.dat"] == "csv, fields between '::', no header, utf-8, a row an event"
    assert shown["items.csv"].startswith("csv, fields between ','")
    assert shown["items.csv"].endswith("iso8859-1, describes items")
    assert [value for name, value in rows if name == "  columns"] == ["who, what, when, note", "id, title"]
    assert shown["rows in, kept"] == "45, 40"
    assert shown["rejected"] == "5 (11.1%)"
    assert (shown["  missing_user"], shown["  bad_time"]) == ("4", "1")
    examples = [name for name, _ in rows if name.startswith("    log.dat, row")]
    assert examples == [f"    log.dat, row {row}" for row in (41, 42, 43, 45)]  # three of a reason at most
    assert (shown["rejected items"], shown["  unreadable"]) == ("1 in their files", "1")
    assert shown["    items.csv, row 41"] == "5,a,b,c"
    first = shown["    log.dat, row 41"]
    assert first == "who (missing), what 0, when 1700000000, note a note that is longer t…"
    assert re.fullmatch(r"train 30, valid 5, test 5; events in the order of their times", shown["split"])
    assert shown["evaluation"] == "what was held out is to be ranked high among all items"
    assert shown["expected time"].startswith("about ")


def test_files_that_are_read_alike_are_one_row() -> None:
    form = {
        "holds": "events", "format": "parquet", "gzip": False, "delimiter": ",", "encoding": "utf-8",
        "quote": '"', "header": True, "layout": "events", "columns": ["user", "item"], "guessed": [],
    }  # fmt: skip
    figures: dict[str, Any] = {
        "forms": {f"/logs/2024/{n}/part.parquet": form for n in range(30)}, "columns": {},
        "rows_in": 3, "rows_kept": 3, "rejected": {}, "examples": {}, "users": 1, "items": 1,
        "events": ["event"], "candidates": "logged",
        "train": 1, "valid": 1, "test": 1, "order": "none", "notes": ["one note", "another note"],
        "seconds": {"prepare": 7.0, "train": 300.0, "total": 307.0},
    }  # fmt: skip
    rows = of_check(figures)
    assert rows[0] == ("0/part.parquet and 29 more", "parquet, a row an event")
    assert ("rejected", "none") in rows
    assert [value for name, value in rows if name == "note"] == ["one note", "another note"]
    assert dict(rows)["evaluation"].startswith("every event that was held out is scored")
    assert rows[-1] == ("expected time", "about 5 min: prepare 7 s, train 5 min")


def test_a_long_name_leaves_room_for_its_value() -> None:
    shown = io.StringIO()
    with redirect_stdout(shown):
        table([("/a/path/of/more/than/eighty/letters" * 3, "value " * 30)])
    assert all(line.count("value") != 1 for line in shown.getvalue().splitlines()[:3])
