"""An item that nobody met: learned by its content, put into a bundle, recommended to whom it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.bundle.export.export import export
from app.bundle.request.requests import RecommendRequest
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.data.stage import prepare
from app.recipe import Recipe, parse
from app.training.checkpoint import load_checkpoint
from app.training.train import fit

pytestmark = pytest.mark.usefixtures("ray_local")

TASTES = ["lamps", "chairs", "hats", "books"]
USERS, ITEMS, EVENTS = 200, 80, 12  # a quarter of either for each taste; events of a user
K = 10


def write_shop(folder: Path) -> None:
    """A log in which three events of four are on items of the user's taste, which the category tells."""
    rng = np.random.default_rng(0)
    taste = np.arange(USERS) % len(TASTES)
    rows = []
    for user in range(USERS):
        own = rng.permutation(np.arange(taste[user], ITEMS, len(TASTES)))[: EVENTS * 3 // 4]
        other = rng.permutation(ITEMS)[: EVENTS - len(own)]
        items = rng.permutation(np.unique(np.concatenate([own, other])))
        rows += [(f"u{user}", f"i{item}", moment) for moment, item in enumerate(items)]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_csv(folder / "log.csv")
    categories = [TASTES[item % len(TASTES)] for item in range(ITEMS)]
    words = [f"{name[:-1]} number {item}" for item, name in enumerate(categories)]
    items = {"item": [f"i{item}" for item in range(ITEMS)], "category": categories, "title": words}
    pl.DataFrame(items).write_csv(folder / "items.csv")


def recipe_of(folder: Path, model: str, features: list[dict[str, Any]]) -> Recipe:
    data = {
        "events": [str(folder / "log.csv")],
        "items": {"files": [str(folder / "items.csv")], "id": "item"},
    }
    return parse(
        {
            "data": data,
            "features": {"history": 20, "context": [], "item": features},
            "model": {"name": model, "width": 16},
            "train": {"workers": 0, "epochs": 30, "batch_size": 512, "learning_rate": 0.01},
        },
        "test",
    )


def bundle(folder: Path, model: str, features: list[dict[str, Any]]) -> Ranker:
    recipe = recipe_of(folder, model, features)
    dataset = Dataset.open(prepare(recipe, folder / f"{model}-dataset").path)
    checkpoint = fit(recipe, dataset, folder / f"{model}-checkpoint")
    out = folder / f"{model}-bundle"
    export(recipe, dataset, load_checkpoint(checkpoint.path, dataset), out, {}, {}, {})
    return Ranker.open(out)


def positions(ranker: Ranker, item: str) -> tuple[list[int], list[int]]:
    """Where an item stands in the recommendations of the users of its taste, lamps, and of the others."""
    lists: tuple[list[int], list[int]] = ([], [])
    for user in range(0, USERS, 5):
        (answer,) = ranker.recommend([RecommendRequest(user=f"u{user}", k=50)])
        items = [scored.item for scored in answer.items]
        lists[user % len(TASTES) > 0].append(items.index(item) if item in items else ITEMS)
    return lists


def test_a_new_item_is_recommended_to_those_who_like_its_kind(tmp_path: Path) -> None:
    write_shop(tmp_path)
    features = [
        {"kind": "category", "column": "category"},
        {"kind": "text", "column": "title", "vocabulary": 20},
    ]
    ranker = bundle(tmp_path, "fusion", features)
    ranker.put_items({"new": {"category": "lamps", "title": "lamp number 99"}})
    own, others = positions(ranker, "new")
    assert np.mean(np.array(own) < K) > 0.9
    assert np.mean(np.array(others) < K) < 0.3
    by_ids = bundle(tmp_path, "two_tower", [])
    by_ids.put_items({"new": {"category": "lamps"}})
    own, others = positions(by_ids, "new")
    assert np.mean(np.array(own) < K) < 0.5
