"""Vectors, title tokens and pictures of item files, prepared: what is there, what is missing, what is bad."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.data.dataset import Dataset
from app.data.stage import prepare
from app.errors import DataError, RecipeError
from app.features.columns import Block
from app.models.build import build_model
from app.recipe import parse

pytestmark = pytest.mark.usefixtures("ray_local")

ITEMS = [f"i{number:02d}" for number in range(20)]
WIDTH = 3


def run(folder: Path, items: pl.DataFrame, *features: dict[str, Any]) -> Dataset:
    """Events on all of ITEMS but the last, which is in the item file alone."""
    events = pl.DataFrame(
        {
            "user": [user for user in "abcd" for _ in ITEMS[:-1]],
            "item": ITEMS[:-1] * 4,
            "timestamp": list(range(len(ITEMS) - 1)) * 4,
        }
    )
    events.write_parquet(folder / "events.parquet")
    items.write_parquet(folder / "items.parquet")
    data = {
        "events": [str(folder / "events.parquet")],
        "items": {"files": [str(folder / "items.parquet")], "id": "item"},
    }
    recipe = parse({"data": data, "features": {"item": list(features)}}, "test")
    return Dataset.open(prepare(recipe, folder / "out").path)


def vectors(**changes: list[float] | None) -> pl.DataFrame:
    """An item file with a vector of each item, i00 to i19; some of them changed."""
    rng = np.random.default_rng(0)
    cells = {item: [float(x) for x in rng.normal(size=WIDTH)] for item in ITEMS} | changes
    kinds = {"item": pl.String, "embedding": pl.List(pl.Float64)}
    return pl.DataFrame({"item": list(cells), "embedding": list(cells.values())}, schema=kinds)


def test_vectors_without_a_value_are_zeros_with_a_flag(tmp_path: Path) -> None:
    dataset = run(tmp_path, vectors(i03=None), {"kind": "vector", "column": "embedding"})
    dense = dict(zip(dataset.items, dataset.feature("item_dense"), strict=True))
    assert dense["i03"].tolist() == [0, 0, 0, 1]
    flags = {item: row[-1] for item, row in dense.items()}
    assert flags == {"": 0, **dict.fromkeys(ITEMS, 0.0), "i03": 1}
    assert dense["i19"][:WIDTH].any()  # an item that nobody met
    known = np.stack([dense[item][:WIDTH] for item in ITEMS[:-1] if item != "i03"])
    assert abs(known.mean(0)).max() < 0.5 and 0.5 < known.std() < 2
    assert dataset.schema.item_blocks == [Block("vector", "embedding", 0, WIDTH + 1)]
    assert "unusable_values" not in dataset.artifact.figures
    # Vectors are for models: no filter and no answer shows them.
    assert "embedding" not in pl.read_parquet_schema(dataset.path / "columns" / "items.parquet")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([1.0, 2.0], "another width than 3"),
        ([1.0, float("nan"), 2.0], "NaN or infinite"),
        ([1.0, float("-inf"), 2.0], "NaN or infinite"),
    ],
)
def test_few_bad_vectors_count_as_missing_and_are_put_aside(
    bad: list[float], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run(tmp_path, vectors(i07=bad), {"kind": "vector", "column": "embedding"})
    dense = dict(zip(dataset.items, dataset.feature("item_dense"), strict=True))
    assert dense["i07"].tolist() == [0, 0, 0, 1]
    aside = pl.read_parquet(dataset.path / "rejected" / "features-item.parquet").to_dicts()
    assert [(row["id"], row["column"], row["_reason"]) for row in aside] == [("i07", "embedding", reason)]
    assert dataset.artifact.figures["unusable_values"] == 1
    message = f"column 'embedding': 1 of 20 values of items cannot be used .* item 'i07' has '1.* {reason}"
    captured = capsys.readouterr()
    assert re.search(message, captured.out + captured.err)


def test_many_bad_vectors_are_refused(tmp_path: Path) -> None:
    bad = vectors(**{item: [1.0] for item in ITEMS[:3]})
    expected = r"'embedding'.*3 of 20 values of items.*item 'i00' has '1'.*another width than 3 - .*vector"
    with pytest.raises(DataError, match=expected):
        run(tmp_path, bad, {"kind": "vector", "column": "embedding"})


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="needs pillow")
def test_files_that_are_no_images_count_as_missing(tmp_path: Path) -> None:
    from PIL import Image

    for item in ITEMS:
        Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / f"{item}.png")
    (tmp_path / "i05.png").write_text("no image")
    items = pl.DataFrame({"item": ITEMS, "picture": [f"{item}.png" for item in ITEMS]})
    dataset = run(
        tmp_path, items, {"kind": "pixels", "column": "picture", "side": 4, "folder": str(tmp_path)}
    )
    dense = dict(zip(dataset.items, dataset.feature("item_dense"), strict=True))
    assert dense["i05"][-1] == 1 and not dense["i05"][:-1].any()
    assert dense["i06"][-1] == 0 and (dense["i06"][:-1] == 1).all()
    aside = pl.read_parquet(dataset.path / "rejected" / "features-item.parquet").to_dicts()
    assert aside == [{"id": "i05", "column": "picture", "_reason": "no image", "value": "i05.png"}]


def test_features_of_one_column_stand_side_by_side(tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ITEMS, "title": ["red lamp"] * len(ITEMS)})
    dataset = run(
        tmp_path,
        items,
        {"kind": "tokens", "column": "title", "length": 3},
        {"kind": "text", "column": "title", "buckets": 8},
        {"kind": "category", "column": "title"},
    )
    assert dataset.schema.item_blocks == [Block("tokens", "title", 0, 3), Block("text", "title", 3, 8)]
    assert dataset.schema.item_categories == [2]


def test_a_model_without_the_features_that_it_looks_at_says_which(tmp_path: Path) -> None:
    dataset = run(tmp_path, vectors(), {"kind": "vector", "column": "embedding"})
    expected = r"model\.name: text_cnn looks at item features of the kind tokens.*kind = \"tokens\""
    with pytest.raises(RecipeError, match=expected):
        build_model("text_cnn", {}, dataset)
    assert build_model("text_vectors", {}, dataset).inputs.item_dense == WIDTH + 1
