"""The parts of a bundle that come from the data set: ids, histories, popularity, features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from app.bundle.format.ids import Ids
from app.bundle.format.layout import Array, compact
from app.data.dataset import Dataset, Part
from app.recipe import Recipe

BLOCK = 1 << 15  # users at a time
SECOND = 1_000_000
VALUES = ("item_dense", "item_category", "user_dense", "user_category")  # in the rows already


def write_ids(dataset: Dataset, folder: Path) -> None:
    """users/ and items/."""
    Ids.write(folder / "users", dataset.users)
    Ids.write(folder / "items", dataset.items)


def write_popularity(dataset: Dataset, folder: Path) -> None:
    """popularity.npy."""
    np.save(folder / "popularity.npy", compact(dataset.popularity))


def write_features(recipe: Recipe, dataset: Dataset, folder: Path) -> None:
    """features.json, and what was fitted, so that a new item's attributes can be transformed."""
    features = recipe.features.model_dump(mode="json")
    (folder / "features.json").write_text(json.dumps(features, indent=1) + "\n")
    for source in sorted((dataset.path / "features").rglob("*")):
        place = source.relative_to(dataset.path)
        if source.is_file() and source.stem not in VALUES:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / place)


def write_histories(dataset: Dataset, folder: Path) -> None:
    """history/: the last L events of each user before the test part, as its evaluation sees them.

    What is older is listed by item alone, so that nothing a user has met is recommended.
    """
    folder.mkdir()
    parts = _past(dataset)
    unit = SECOND if all(_whole_seconds(part.time) for part in parts) else 1
    found: dict[str, list[Array]] = {name: [] for name in ("item", "event", "time", "older")}
    counts, older_counts = [], []
    narrow = np.min_scalar_type(dataset.schema.items)
    for users in np.array_split(np.arange(dataset.schema.users), -(-dataset.schema.users // BLOCK)):
        item, event, time = dataset.recent(users, *parts)
        item[users == 0] = 0  # the events of unknown users belong to many people
        present = item > 0
        counts.append(present.sum(1))
        found["item"].append(item[present].astype(narrow))
        found["event"].append(event[present].astype(np.uint8))
        found["time"].append((time[present] // unit).astype(np.uint32 if unit == SECOND else np.int64))
        owner, older = _older(users, item, parts, dataset.schema.items)
        older_counts.append(np.bincount(owner, minlength=len(users)))
        found["older"].append(older.astype(narrow))
    for name, arrays in found.items():
        np.save(folder / f"{name}.npy", np.concatenate(arrays))
    np.save(folder / "indptr.npy", _indptr(counts))
    np.save(folder / "older_indptr.npy", _indptr(older_counts))


def _past(dataset: Dataset) -> list[Part]:
    return [part for part in (dataset.train, dataset.valid) if len(part)]


def _whole_seconds(time: Array) -> bool:
    return all(
        bool((block % SECOND == 0).all() and block.min() >= 0 and block.max() < SECOND << 32)
        for block in _blocks(time)
    )


def _blocks(column: Array) -> Iterator[Array]:
    for start in range(0, len(column), 1 << 20):
        yield np.asarray(column[start : start + (1 << 20)])


def _older(users: Array, recent: Array, parts: list[Part], items: int) -> tuple[Array, Array]:
    """Items that users met before their `recent` events (B, L): owner (place in users) and item."""
    first, last = int(users[0]), int(users[-1]) + 1
    met = []
    for part in parts:
        rows = slice(int(part.indptr[first]), int(part.indptr[last]))
        met.append((np.asarray(part.user[rows], np.int64) - first) * items + part.item[rows])
    shown = (np.arange(len(users))[:, None] * items + recent)[recent > 0]
    keys = np.setdiff1d(np.concatenate(met), shown)
    owner, item = np.divmod(keys, items)
    known = (item > 0) & (owner + first > 0)
    return owner[known], item[known]


def _indptr(counts: list[Array]) -> Array:
    return compact(np.concatenate([[0], np.cumsum(np.concatenate(counts))]))
