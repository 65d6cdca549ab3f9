"""A small data set with planted structure, published as `prepare` would, for tests of any room.

Every user has one taste and every item belongs to one; four picks of five follow the taste,
the rest popularity (Zipf). The content features tell an item's taste with noise. So a model
that learns either from ids or from content must beat popularity, which knows no tastes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.artifact import publish
from app.data.dataset import Array, Dataset, Part, Schema
from app.features.columns import Block
from app.features.context import DAY, context_width, fit_bounds
from app.models.discovery import model_class
from app.tables.strings import Strings

TASTES = 4
START = 1_704_067_200_000_000  # 2024-01-01
EVENTS = ["", "view", "buy", "skip"]
CONTEXT = ["hour", "weekday", "recency", "session"]
SESSION_GAP = DAY // 8


class Datasets:
    """A tiny data set for each model, with the item features that it needs; made once for the same ones."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, settings
        self.opened: dict[tuple[str, ...], Dataset] = {}

    def __getitem__(self, name: str) -> Dataset:
        kinds = tuple(group[0] for group in model_class(name).NEEDS)
        if kinds not in self.opened:
            folder = self.folder / "-".join(["dataset", *kinds])
            self.opened[kinds] = tiny_dataset(folder, kinds=kinds, **self.settings)
        return self.opened[kinds]


def tiny_dataset(
    folder: Path,
    *,
    users: int = 120,
    items: int = 60,
    events: int = 2400,
    history: int = 8,
    negatives: int = 0,
    skips: float = 0.0,
    content: bool = True,
    kinds: Sequence[str] = (),
    untrained: int = 0,
    seed: int = 0,
) -> Dataset:
    """Write and open a data set artefact at `folder`.

    Args:
        users, items: real ones, without row 0; ids are "u1".. and "i1".., in row order.
        events: about how many; a user has at least 5, the last is test, the one before valid.
        history: longest history that a model sees.
        negatives: listed for each test event; 0: none.
        skips: share of training events with label 0 ("skip"), on items against the taste.
        content: with item and user features; else of width 0.
        kinds: further item features that tell the taste: tokens, pixels, or any kind of vectors.
        untrained: how many of the last users and of the last items have no event before the test part.
    """
    rng = np.random.default_rng(seed)
    item_taste = np.arange(items) % TASTES
    user_taste = rng.integers(0, TASTES, users)
    columns = _events(rng, user_taste, item_taste, events, skips)
    if untrained:
        columns = _without_training(columns, users - untrained, items - untrained)
    settings = {"seed": seed, "tiny": [users, items, events, skips, *kinds]}
    with publish(folder, "dataset", settings, {}) as draft:
        parts = _split(columns)
        for name, rows in parts.items():
            listed = _listed(rng, columns, parts["test"], items, negatives) if name == "test" else None
            Part.save(draft.path / name, {c: v[rows] for c, v in columns.items()}, users + 1, listed)
        schema = _features(draft.path, rng, user_taste, item_taste, content)
        schema = _more_features(draft.path, rng, item_taste, schema, kinds)
        end = int(columns["time"][parts["train"]].max())
        bounds = fit_bounds(CONTEXT, SESSION_GAP, history, Part.load(draft.path / "train"))
        described = {"history": history, "end_time": end, "context_bounds": bounds}
        _describe(draft.path, msgspec.structs.replace(schema, **described), users, items, item_taste)
        counts = {name: int(rows.sum()) for name, rows in parts.items()}
        total = sum(counts.values())
        draft.figures.update(rows_in=total, rows_kept=total, rejected={}, users=users, items=items, **counts)
    return Dataset.open(folder)


def _events(
    rng: np.random.Generator, user_taste: Array, item_taste: Array, events: int, skips: float
) -> dict[str, Array]:
    """Columns sorted by user and time; a user meets an item at most once."""
    users, items = len(user_taste), len(item_taste)
    popularity = 1.0 / (1 + rng.permutation(items))
    liked = item_taste[None, :] == user_taste[:, None]
    weight = popularity * np.where(liked, 0.8 * TASTES, 0.2)
    disliked = popularity * np.where(liked, 0.0, 1.0) + 1e-12
    length = np.clip(rng.poisson(events / users, users), 5, items // 2)
    skip = rng.random((users, items)) < skips
    # Gumbel top-k draws without replacement; the order among the drawn is random, not by weight.
    keys = np.log(np.where(skip, disliked, weight)) + rng.gumbel(size=(users, items))
    order = np.argsort(-keys, axis=1)
    user, slot = np.nonzero(np.arange(items)[None, :] < length[:, None])
    item = order[user, slot]
    shuffled = np.lexsort((rng.random(len(user)), user))
    item, skipped = item[shuffled], skip[user[shuffled], item[shuffled]]
    gaps = rng.exponential(DAY / 2, len(user)).astype(np.int64) + 1
    first = np.searchsorted(user, np.arange(users))
    passed = np.cumsum(gaps)
    last_two = np.arange(len(user)) >= (first + length)[user] - 2
    skipped &= ~last_two  # what is to be predicted is always wanted
    event = np.where(skipped, 3, 1 + (rng.random(len(user)) < 0.3)).astype(np.uint8)
    return {
        "user": user + 1,
        "item": item + 1,
        "time": START + passed - passed[first][user],
        "event": event,
        "value": np.where(skipped, 1.0, 4.0) + rng.integers(0, 2, len(user)),
        "label": (~skipped).astype(np.float32),
    }


def _without_training(columns: dict[str, Array], users: int, items: int) -> dict[str, Array]:
    """The events whose user and item are among the first ones, and the last event of each user."""
    last = np.append(np.diff(columns["user"]) > 0, True)
    kept = last | ((columns["user"] <= users) & (columns["item"] <= items))
    return {name: values[kept] for name, values in columns.items()}


def _split(columns: dict[str, Array]) -> dict[str, Array]:
    from_end = np.searchsorted(columns["user"], columns["user"], side="right") - np.arange(
        len(columns["user"])
    )
    return {"train": from_end > 2, "valid": from_end == 2, "test": from_end == 1}


def _listed(
    rng: np.random.Generator, columns: dict[str, Array], test: Array, items: int, count: int
) -> Array | None:
    if not count:
        return None
    met = [set(columns["item"][columns["user"] == user]) for user in columns["user"][test]]
    free = [[i for i in range(1, items + 1) if i not in had] for had in met]
    return np.stack([rng.choice(row, count, replace=False) for row in free])


def _features(
    folder: Path, rng: np.random.Generator, user_taste: Array, item_taste: Array, content: bool
) -> Schema:
    items, users = len(item_taste), len(user_taste)
    tell = np.eye(TASTES)[item_taste] + rng.normal(0, 0.3, (items, TASTES))
    hint = np.where(rng.random(items) < 0.7, item_taste, rng.integers(0, TASTES, items)) + 1
    group = rng.integers(1, 3, users)
    age = rng.normal(0, 1, (users, 1))
    width = 1 if content else 0
    arrays = {
        "item_dense": tell[:, : TASTES * width].astype(np.float32),
        "item_category": hint[:, None][:, :width].astype(np.int32),
        "user_dense": age[:, :width].astype(np.float32),
        "user_category": group[:, None][:, :width].astype(np.int32),
    }
    (folder / "features").mkdir()
    for name, values in arrays.items():
        with_unknown = np.concatenate([np.zeros((1, values.shape[1]), values.dtype), values])
        np.save(folder / "features" / f"{name}.npy", with_unknown)
    return Schema(
        users=users + 1,
        items=items + 1,
        events=EVENTS,
        history=0,
        context=CONTEXT,
        context_width=context_width(CONTEXT),
        item_dense=TASTES * width,
        user_dense=width,
        item_categories=[TASTES + 1] * width,
        user_categories=[3] * width,
        end_time=0,
        positive=[False, True, True, False],
        session_gap=SESSION_GAP,
    )


def _more_features(
    folder: Path, rng: np.random.Generator, item_taste: Array, schema: Schema, kinds: Sequence[str]
) -> Schema:
    """Append features of `kinds` to the dense ones of the items, as the preparation would."""
    path, width = folder / "features" / "item_dense.npy", schema.item_dense
    parts = [np.load(path)]
    blocks = [Block("number", "taste", 0, width)] if width else []
    for kind in kinds:
        floats = _floats(kind, rng, item_taste)
        blocks.append(Block(kind, kind, width, floats.shape[1]))
        parts.append(np.concatenate([np.zeros_like(floats[:1]), floats]))
        width += floats.shape[1]
    np.save(path, np.concatenate(parts, 1))
    return msgspec.structs.replace(schema, item_dense=width, item_blocks=blocks)


def _floats(kind: str, rng: np.random.Generator, taste: Array) -> Array:
    """Floats of one kind of feature that tell the taste of each item."""
    present = np.zeros((len(taste), 1))  # the last float is 1 where there is none
    if kind == "tokens":
        words = rng.random((len(taste), 4)) * 0.1 + 0.5
        words[np.arange(len(taste)), rng.integers(0, 3, len(taste))] = 0.1 + 0.05 * taste
        return words.astype(np.float32)
    if kind == "pixels":
        picture = rng.random((len(taste), 3, 8, 8)) * 0.3
        picture[:, :2] += 0.6 * np.stack([taste % 2, taste // 2], 1)[:, :, None, None]
        return np.concatenate([picture.reshape(len(taste), -1), present], 1).astype(np.float32)
    vectors = np.eye(TASTES)[taste] + rng.normal(0, 0.3, (len(taste), TASTES))
    return np.concatenate([vectors, present], 1).astype(np.float32)


def _describe(folder: Path, schema: Schema, users: int, items: int, item_taste: Array) -> None:
    (folder / "schema.json").write_bytes(msgspec.json.encode(schema))
    Strings.save(folder / "users", ["", *(f"u{row}" for row in range(1, users + 1))])
    ids = ["", *(f"i{row}" for row in range(1, items + 1))]
    Strings.save(folder / "items", ids)
    (folder / "columns").mkdir()
    titles = ["", *(f"item {row} of taste {taste}" for row, taste in enumerate(item_taste, 1))]
    pq.write_table(pa.table({"item": ids, "title": titles}), folder / "columns" / "items.parquet")
