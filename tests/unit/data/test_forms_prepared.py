"""Recipes that mix forms of files, prepared whole: every row becomes an event, or is rejected by reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.data.dataset import Dataset
from app.data.input import source
from app.data.stage import check, prepare
from app.errors import DataError
from app.evaluation.evaluate import evaluate
from app.evaluation.scorer import ModelScorer
from app.models.build import build_model
from app.recipe import Recipe, parse
from tests.unit.data.test_values_prepared import raw

pytestmark = pytest.mark.usefixtures("ray_local")
Triple = tuple[str, str, str]


def recipe_of(split: dict[str, Any] | None = None, **data: Any) -> Recipe:
    return parse({"data": data, "split": split or {"valid": 0, "test": 0}}, "test")


def prepared(folder: Path, **data: Any) -> Dataset:
    return Dataset.open(prepare(recipe_of(**data), folder / "out").path)


def triples(dataset: Dataset) -> list[Triple]:
    """User, item and event type of every event, sorted."""
    part = dataset.train
    rows = zip(part.user.tolist(), part.item.tolist(), part.event.tolist(), strict=True)
    return sorted((dataset.users[u], dataset.items[i], dataset.schema.events[e]) for u, i, e in rows)


def written(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).write_text(content)


def test_files_whose_columns_have_other_names_and_another_type_of_event(tmp_path: Path) -> None:
    written(
        tmp_path,
        {
            "views.csv": "user,item,timestamp\na,x,1700000001\nb,y,1700000002\n",
            "bought.tsv": "when\tproduct\tcustomer\n1700000003\tx\ta\n1700000004\tz\tb\n",
            "rated.csv": "user;item;timestamp;kind\na;y;1700000005;rating\n",
        },
    )
    renamed = {"user": "customer", "item": "product", "timestamp": "when", "event": "purchase"}
    dataset = prepared(
        tmp_path,
        sources=[
            {"files": [str(tmp_path / "views.csv")], "event": "view"},
            {"files": [str(tmp_path / "bought.tsv")], **renamed},
            {"files": [str(tmp_path / "rated.csv")], "event_column": "kind"},
        ],
    )
    assert triples(dataset) == [
        ("a", "x", "purchase"),
        ("a", "x", "view"),
        ("a", "y", "rating"),
        ("b", "y", "view"),
        ("b", "z", "purchase"),
    ]


def test_files_with_and_without_a_header_side_by_side(tmp_path: Path) -> None:
    written(
        tmp_path,
        {
            "january.csv": "user,item,timestamp\na,x,1700000001\n",
            "february.csv": "b,y,1700000002\na,y,1700000003\n",
        },
    )
    columns = ["user", "item", "timestamp"]
    dataset = prepared(tmp_path, events=[str(tmp_path / "*.csv")], columns=columns)
    assert [event[:2] for event in triples(dataset)] == [("a", "x"), ("a", "y"), ("b", "y")]
    assert dataset.artifact.figures["rows_in"] == 3


def test_a_file_without_a_header_whose_columns_are_not_named_says_how_to_name_them(tmp_path: Path) -> None:
    written(
        tmp_path,
        {
            "january.csv": "user,item,timestamp\na,x,1700000001\n",
            "february.csv": "b,y,1700000002\na,y,1700000003\n",
        },
    )
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, events=[str(tmp_path / "*.csv")])
    assert "february.csv" in str(caught.value) and "data.columns" in str(caught.value)


def test_attributes_without_a_header(tmp_path: Path) -> None:
    written(
        tmp_path,
        {
            "log.csv": "user,item,timestamp\na,1,1700000001\nb,2,1700000002\n",
            "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n2::Jumanji (1995)::Adventure\n",
        },
    )
    dataset = prepared(
        tmp_path,
        events=[str(tmp_path / "log.csv")],
        items={"files": [str(tmp_path / "movies.dat")], "id": "id", "header": ["id", "title", "genres"]},
    )
    assert raw(dataset, "title") == {"1": "Toy Story (1995)", "2": "Jumanji (1995)"}
    assert raw(dataset, "genres") == {"1": "Animation|Comedy", "2": "Adventure"}


def test_structures_in_parquet_are_read_by_dots(tmp_path: Path) -> None:
    rows = [
        {"actor": {"id": "a"}, "object": {"sku": {"no": 7}}, "at": 1700000001},
        {"actor": {"id": "b"}, "object": {"sku": {"no": 8}}, "at": 1700000002},
        {"actor": None, "object": {"sku": {"no": 8}}, "at": 1700000003},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    names = {"user": "actor.id", "item": "object.sku.no", "timestamp": "at"}
    dataset = prepared(tmp_path, events=[str(tmp_path / "log.parquet")], **names)
    assert [event[:2] for event in triples(dataset)] == [("a", "7"), ("b", "8")]
    assert dataset.artifact.figures["rejected"] == {"missing_user": 1}


LINES = {
    "csv": ("user,item,timestamp,note\n", '{u},{i},{t},"a note of {u}\nover lines"\n'),
    "jsonl": ("", '{{"user": "{u}", "item": "{i}", "timestamp": {t}}}\n'),
    "tsv": ("user\titem\ttimestamp\n", "{u}\t{i}\t{t}\n"),
}


@pytest.mark.parametrize("ending", LINES)
@pytest.mark.parametrize("size", [64, 1000])
def test_no_event_is_lost_or_doubled_where_a_large_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, size: int
) -> None:
    monkeypatch.setattr(source, "SPLIT_BYTES", size)
    header, line = LINES[ending]
    expected = [(f"u{n % 7}", f"i{n}") for n in range(300)]
    lines = [line.format(u=u, i=i, t=1_700_000_000 + n) for n, (u, i) in enumerate(expected)]
    written(tmp_path, {f"log.{ending}": header + "".join(lines)})
    recipe = recipe_of(events=[str(tmp_path / f"log.{ending}")])
    split = source.cut(source.describe(str(tmp_path / f"log.{ending}"), recipe.data), 0)
    assert len(split) > 1, "the file is not cut, so that this test tells nothing"
    dataset = Dataset.open(prepare(recipe, tmp_path / "out").path)
    assert [event[:2] for event in triples(dataset)] == sorted(expected)
    assert dataset.artifact.figures["rows_in"] == 300


def test_impressions_of_which_none_was_clicked(tmp_path: Path) -> None:
    written(tmp_path, {"behaviors.tsv": "1\tU1\t11/11/2019 9:05:58 AM\t\tN55-0 N35-0\n"})
    names = {"layout": "impressions", "columns": ["n", "user", "timestamp", "before", "item"]}
    form = {"time_format": "%m/%d/%Y %I:%M:%S %p", **names}
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, events=[str(tmp_path / "behaviors.tsv")], **form)
    assert "click" in str(caught.value)


def test_sessions_of_one_event_train_and_are_not_ranked(tmp_path: Path) -> None:
    sessions = [{"user": f"s{n}", "item": ["x", "y"][: 1 + (n == 0)], "timestamp": n + 1} for n in range(6)]
    written(tmp_path, {"log.jsonl": "".join(json.dumps(session) + "\n" for session in sessions)})
    recipe = recipe_of({}, events=[str(tmp_path / "log.jsonl")], layout="lists", row_order=True)
    dataset = Dataset.open(prepare(recipe, tmp_path / "out").path)
    assert dataset.artifact.figures["rows_kept"] == 7
    assert len(dataset.train) >= 5
    scorer = ModelScorer(build_model("popularity", {}, dataset))
    report = evaluate(recipe, dataset, scorer, baselines=False)
    assert report.figures or any("nothing was held out" in note for note in report.notes)
    assert check(recipe)["rows_kept"] == 7


def test_the_frames_of_a_log_of_lists_keep_their_row(tmp_path: Path) -> None:
    written(tmp_path, {"log.txt": "a x y\nb\nc z\n"})
    dataset = prepared(
        tmp_path,
        events=[str(tmp_path / "log.txt")],
        layout="lists",
        columns=["user", "item"],
        timestamp="",
        format="csv",
    )
    assert [event[:2] for event in triples(dataset)] == [("a", "x"), ("a", "y"), ("c", "z")]
    rejected = pl.concat([pl.read_parquet(file) for file in (dataset.path / "rejected").glob("*.parquet")])
    assert rejected.select("_reason", "_row").rows() == [("missing_item", 2)]
