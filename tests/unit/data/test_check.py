"""What `check` shows is what `prepare` does, to the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.data.check import check, estimate
from app.data.stage import prepare
from app.recipe import Recipe, parse

pytestmark = pytest.mark.usefixtures("ray_local")
SHARED = {
    "events": [],
    "user": "who",
    "item": "what",
    "timestamp": "when",
    "event": "did",
    "value": "price",
    "event_types": ["view", "buy"],
    "where": "shop = 'A'",
    "missing": {"note": "drop"},
    "outliers": [{"column": "price"}],
    "min_item_events": 2,
}


def dirty_log(folder: Path) -> Path:
    """A log of 300 good rows, with one for every reason to reject it among them, and some at the end."""
    good = [f"u{n % 30},i{n % 11},2024-01-{1 + n % 28:02},view,{1 + n % 5},A,n" for n in range(300)]
    bad = [
        "u1,i1,2024-01-05,view,2,A,n,surplus",
        ",i1,2024-01-05,view,2,A,n",
        "u1,,2024-01-05,view,2,A,n",
        "u1,i1,,view,2,A,n",
        "u1,i1,2024-01-05,,2,A,n",
        "u1,i1,2024-01-05,view,,A,n",
        "u1,i1,2024-01-05,view,2,A,",
        "u1,i1,2024-01-05,view,2,B,n",
        "u1,i1,2024-01-05,stare,2,A,n",
        "u1,i1,soon,view,2,A,n",
        good[4],
        "u1,i1,2024-01-05,view,9999,A,n",
        "u1,rare,2024-01-05,view,2,A,n",
    ]
    lines = ["who,what,when,did,price,shop,note", *good[:150], *bad, *good[150:], *bad[7:9] * 3]
    path = folder / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def agrees(recipe: Recipe, out: Path) -> dict[str, Any]:
    """The check of a recipe, whose figures and examples are those of the data set's manifest and rows."""
    shown, artifact = check(recipe), prepare(recipe, out)
    assert {key: shown.get(key) for key in artifact.figures} == dict(artifact.figures)
    kept_aside = pl.concat([pl.read_parquet(p) for p in (out / "rejected").iterdir()], how="diagonal")
    assert dict(kept_aside["_reason"].value_counts().iter_rows()) == shown["rejected"]
    assert set(shown["examples"]) == set(shown["rejected"])
    for reason, examples in shown["examples"].items():
        first = kept_aside.filter(_reason=reason).sort("_file", "_row").head(3)
        assert [(e["file"], e["row"]) for e in examples] == first.select("_file", "_row").rows()
        for example, row in zip(examples, first.iter_rows(named=True), strict=True):
            assert all(row[c] == v for c, v in example["values"].items() if c != "text")
    return shown


@pytest.mark.parametrize("buckets", [1, 5])
def test_the_figures_of_a_check_are_those_of_the_data_set(tmp_path: Path, buckets: int) -> None:
    data = {**SHARED, "events": [str(dirty_log(tmp_path))], "buckets": buckets}
    shown = agrees(parse({"data": data, "split": {"method": "time"}}, "test"), tmp_path / "out")
    reasons = ["missing_user", "missing_item", "missing_timestamp", "missing_event", "missing_value"]
    reasons += ["missing_note", "bad_time", "duplicate", "outlier", "core", "unreadable"]
    assert shown["rejected"] == {**dict.fromkeys(reasons, 1), "filtered": 4, "unknown_event": 4}
    assert (shown["rows_in"], shown["rows_kept"], shown["users"], shown["items"]) == (319, 300, 30, 11)
    assert shown["train"] + shown["valid"] + shown["test"] == 300
    assert shown["events"] == ["view", "buy"]
    assert shown["columns"] == {data["events"][0]: ["who", "what", "when", "did", "price", "shop", "note"]}


def test_examples_are_the_first_three_rows_of_a_reason_as_they_came(tmp_path: Path) -> None:
    path = str(dirty_log(tmp_path))
    examples = check(parse({"data": {**SHARED, "events": [path]}}, "test"))["examples"]
    names = ["who", "what", "when", "did", "price", "shop", "note"]
    value = dict(zip(names, ["u1", "i1", "2024-01-05", "view", "2", "B", "n"], strict=True))
    assert examples["filtered"] == [{"file": path, "row": row, "values": value} for row in (158, 314, 316)]
    assert [e["values"]["price"] for e in examples["outlier"]] == ["9999"]
    assert examples["missing_user"][0]["values"]["who"] is None
    assert "surplus" in examples["unreadable"][0]["values"]["text"]
    assert [e["row"] for e in examples["unreadable"]] == [151]


def test_a_check_writes_nothing_beside_the_log(tmp_path: Path) -> None:
    path = dirty_log(tmp_path)
    check(parse({"data": {**SHARED, "events": [str(path)]}}, "test"))
    assert list(tmp_path.iterdir()) == [path]


def test_the_real_log_of_a_shop(tmp_path: Path, real_data: Path) -> None:
    data = {
        "events": [str(real_data / "online-retail" / "online_retail.csv.gz")],
        "user": "CustomerID",
        "item": "StockCode",
        "timestamp": "InvoiceDate",
        "value": "Quantity",
        "where": "not InvoiceNo like 'C%'",
        "outliers": [{"column": "UnitPrice"}],
        "min_user_events": 5,
        "min_item_events": 5,
    }
    shown = agrees(parse({"data": data}, "test"), tmp_path / "out")
    assert set(shown["rejected"]) == {"missing_user", "filtered", "duplicate", "outlier", "core"}


def test_an_estimate_grows_with_what_is_trained_ranked_and_written() -> None:
    small = {"rows_in": 1000, "train": 800, "valid": 100, "test": 100, "users": 100, "items": 50}
    large = {name: 100 * count for name, count in small.items()}
    recipe = parse({"data": {"events": ["log.csv"]}, "model": {"name": "mlp"}}, "test")
    times = [estimate(recipe, figures) for figures in (small, large)]
    assert (
        times[0].keys() == times[1].keys() >= {"prepare", "train", "validate", "evaluate", "export", "total"}
    )
    for estimated in times:
        stages = [seconds for stage, seconds in estimated.items() if stage != "total"]
        assert estimated["total"] == pytest.approx(sum(stages), abs=0.3)
    assert all(times[0][stage] < times[1][stage] for stage in ("prepare", "train", "validate", "evaluate"))


def test_what_the_choice_of_a_model_has_trained_is_not_counted_twice() -> None:
    figures = {"rows_in": 10**6, "train": 10**6, "valid": 10**4, "test": 10**4, "users": 10**4, "items": 5000}
    recipe = parse({"data": {"events": ["log.csv"]}, "train": {"minutes": 4}}, "test")
    seconds = estimate(recipe, figures)
    assert (seconds["choose"], seconds["train"], seconds["validate"]) == (240, 0, 0)
    several = estimate(recipe.override({"train.workers": 2}), figures)
    assert several["choose"] == 240
    assert several["train"] > 0
