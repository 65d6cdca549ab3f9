"""A data set of a few random events, for the check of a model; published as `prepare` would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from app.artifact import publish
from app.data.dataset import Array, Dataset, Part, Schema
from app.features.columns import Block
from app.features.context import DAY, context_width
from app.tables.strings import Strings

USERS, ITEMS, EVENTS, UNTRAINED = 24, 20, 6, 3  # EVENTS a user; UNTRAINED of the last users and items
CONTEXT = ["hour", "weekday", "recency"]
CATEGORIES, DENSE = 4, 2
WIDTHS = {"tokens": 6, "pixels": 3 * 8 * 8 + 1}  # floats of a kind of item features
VECTOR = 5  # of any other


def sample_dataset(folder: Path, kinds: Sequence[str] = ()) -> Dataset:
    """Write and open a data set at `folder`: attributes, three event types, untrained ids.

    Args:
        kinds: of item features beside numbers and categories, which a model needs.
    """
    blocks = _blocks(kinds)
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(1, USERS - UNTRAINED + 1), EVENTS)
    event = rng.integers(1, 4, len(user))
    columns = {
        "user": user,
        "item": rng.integers(1, ITEMS - UNTRAINED + 1, len(user)),
        "time": np.tile(np.arange(EVENTS), USERS - UNTRAINED) * DAY,
        "event": event,
        "value": rng.random(len(user)),
        "label": event < 3,
    }
    with publish(folder, "dataset", {}, {}) as draft:
        Part.save(draft.path / "train", columns, USERS + 1)
        for name in ("valid", "test"):
            Part.save(draft.path / name, {c: values[:0] for c, values in columns.items()}, USERS + 1)
        (draft.path / "features").mkdir()
        for side, count in (("user", USERS + 1), ("item", ITEMS + 1)):
            width = DENSE if side == "user" else blocks[-1].start + blocks[-1].width
            _write_features(draft.path / "features", side, (count, width), rng)
            Strings.save(draft.path / f"{side}s", ["", *(f"{side}{row}" for row in range(1, count))])
        (draft.path / "schema.json").write_bytes(
            msgspec.json.encode(_schema(int(columns["time"].max()), blocks))
        )
    return Dataset.open(folder, verify=False)


def _blocks(kinds: Sequence[str]) -> list[Block]:
    blocks = [Block("number", "number", 0, DENSE)]
    for kind in kinds:
        start = blocks[-1].start + blocks[-1].width
        blocks.append(Block(kind, kind, start, WIDTHS.get(kind, VECTOR)))
    return blocks


def _write_features(folder: Path, side: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    dense: Array = rng.normal(size=shape).astype(np.float32)
    dense[:, DENSE:] = rng.random((shape[0], shape[1] - DENSE))  # as tokens and pixels are
    category: Array = rng.integers(1, CATEGORIES, (shape[0], 1)).astype(np.int32)
    dense[0], category[0] = 0, 0
    np.save(folder / f"{side}_dense.npy", dense)
    np.save(folder / f"{side}_category.npy", category)


def _schema(end_time: int, blocks: list[Block]) -> Schema:
    return Schema(
        users=USERS + 1,
        items=ITEMS + 1,
        events=["", "view", "buy", "skip"],
        history=EVENTS,
        context=CONTEXT,
        context_width=context_width(CONTEXT),
        item_dense=blocks[-1].start + blocks[-1].width,
        item_blocks=blocks,
        user_dense=DENSE,
        item_categories=[CATEGORIES],
        user_categories=[CATEGORIES],
        end_time=end_time,
        positive=[False, True, True, False],
    )
