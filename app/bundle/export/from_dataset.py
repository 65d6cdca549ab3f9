"""The parts of a bundle that come from the data set: ids, histories, popularity, features.

They hold every event that was kept, those of the validation and test parts too, because the service
answers for now; what the model was trained and evaluated on is another matter.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from app.bundle.format.ids import Ids
from app.bundle.format.layout import TRAINED, Array, compact
from app.data.dataset import Dataset, Part

BLOCK = 1 << 15  # users at a time
SECOND = 1_000_000
VALUES = ("item_dense", "item_category", "user_dense", "user_category")  # in the rows already


def write_ids(dataset: Dataset, trained: Mapping[str, Array], folder: Path) -> None:
    """Write users/ and items/.

    Args:
        dataset: has the ids.
        trained: "user" and "item" bool, which of them the weights were trained on.
        folder: of the bundle.
    """
    for name, ids in (("user", dataset.users), ("item", dataset.items)):
        Ids.write(folder / f"{name}s", ids)
        np.save(folder / f"{name}s" / TRAINED, trained[name])


def popularity_of(dataset: Dataset) -> Array:
    """(items,) int64: all events of each item that are to be predicted by their type; 0 for row 0."""
    counts = dataset.positive_counts(*dataset.parts)
    counts[0] = 0  # items of given test files that the k-core dropped
    return counts


def default_event(dataset: Dataset) -> int:
    """Row of the most frequent event type, for events that come without one."""
    kinds = [np.bincount(part.event, minlength=len(dataset.schema.events)) for part in dataset.parts]
    return int(np.sum(kinds, 0)[1:].argmax()) + 1


def last_time(dataset: Dataset) -> int:
    """Microseconds of the last event kept."""
    return max(int(part.time.max()) for part in dataset.parts)


def write_features(dataset: Dataset, folder: Path) -> None:
    """Write features/, what was fitted, so that a new item's attributes can be transformed."""
    for source in sorted((dataset.path / "features").rglob("*")):
        if source.is_file() and source.stem not in VALUES:
            target = folder / source.relative_to(dataset.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def write_histories(dataset: Dataset, folder: Path) -> None:
    """Write history/: the last L events of each user, of all parts.

    What is older is listed by item alone, so that nothing a user has met is recommended.
    """
    folder.mkdir()
    parts = dataset.parts
    unit = SECOND if all(_whole_seconds(part.time) for part in parts) else 1
    columns: dict[str, list[Array]] = {name: [] for name in ("item", "event", "time", "older")}
    counts, older_counts = [], []
    narrow = np.min_scalar_type(dataset.schema.items)
    for users in np.array_split(np.arange(dataset.schema.users), -(-dataset.schema.users // BLOCK)):
        item, event, time = dataset.recent(users, *parts)
        item[users == 0] = 0  # the events of unknown users belong to many people
        present = item > 0
        counts.append(present.sum(1))
        columns["item"].append(item[present].astype(narrow))
        columns["event"].append(event[present].astype(np.uint8))
        columns["time"].append((time[present] // unit).astype(np.uint32 if unit == SECOND else np.int64))
        owner, older = _older(users, item, parts, dataset.schema.items)
        older_counts.append(np.bincount(owner, minlength=len(users)))
        columns["older"].append(older.astype(narrow))
    for name, blocks in columns.items():
        np.save(folder / f"{name}.npy", np.concatenate(blocks))
    np.save(folder / "indptr.npy", _indptr(counts))
    np.save(folder / "older_indptr.npy", _indptr(older_counts))


def _whole_seconds(time: Array) -> bool:
    return all(
        bool((block % SECOND == 0).all() and block.min() >= 0 and block.max() < SECOND << 32)
        for block in _blocks(time)
    )


def _blocks(column: Array) -> Iterator[Array]:
    for start in range(0, len(column), 1 << 20):
        yield np.asarray(column[start : start + (1 << 20)])


def _older(users: Array, recent: Array, parts: Sequence[Part], items: int) -> tuple[Array, Array]:
    """Items that users met before their `recent` events (B, L): owner (position in users) and item."""
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
