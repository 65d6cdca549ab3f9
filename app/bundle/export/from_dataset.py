"""The parts of a bundle that come from the data set: ids, histories, popularity, features.

They hold every event that was kept, those of the validation and test parts too, because the service
answers for now; what the model was trained and evaluated on is another matter.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from app.bundle.export.growing_array import GrowingArray
from app.bundle.format.ids import Ids
from app.bundle.format.layout import TRAINED, Array, compact
from app.data.dataset import Dataset, Part
from app.events import WHOLE_PAST
from app.models.base import Model

BLOCK = 1 << 12  # users at a time
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


def events_of(model: Model, dataset: Dataset) -> int:
    """How many of a user's most recent events a model looks at when it is served."""
    return dataset.schema.history if model.reads == "recent" else WHOLE_PAST


def write_histories(dataset: Dataset, folder: Path, length: int) -> None:
    """Write history/: the last `length` events of each user, of all parts.

    What is older is listed by item alone, so that nothing a user has met is recommended. Memory is bounded
    by the events of BLOCK users.
    """
    folder.mkdir()
    parts, items = dataset.parts, dataset.schema.items
    unit = SECOND if all(_whole_seconds(part.time) for part in parts) else 1
    narrow = np.min_scalar_type(items)
    time_kind = np.dtype(np.uint32 if unit == SECOND else np.int64)
    kinds = {"item": narrow, "event": np.dtype(np.uint8), "time": time_kind, "older": narrow}
    counts, older_counts = [], []
    with ExitStack() as files:
        columns = {
            name: files.enter_context(GrowingArray(folder / f"{name}.npy", kind))
            for name, kind in kinds.items()
        }
        for first in range(0, dataset.schema.users, BLOCK):
            last = min(first + BLOCK, dataset.schema.users)
            owner, item, event, time = _last_events(first, last, parts, length)
            counts.append(np.bincount(owner, minlength=last - first))
            for name, values in (("item", item), ("event", event), ("time", time // unit)):
                columns[name].append(values)
            older_owner, older = _older(first, last, owner * items + item, parts, items)
            older_counts.append(np.bincount(older_owner, minlength=last - first))
            columns["older"].append(older)
    np.save(folder / "indptr.npy", _indptr(counts))
    np.save(folder / "older_indptr.npy", _indptr(older_counts))


def _last_events(
    first: int, last: int, parts: Sequence[Part], length: int
) -> tuple[Array, Array, Array, Array]:
    """The last `length` events of each of the users from `first` to before `last`, by user and time.

    Returns:
        owner (the user, counted from `first`), item, event and time. Unknown users, whose events belong to
        many people, have none; nor are there events on items that training does not know.
    """
    blocks = []
    for part in parts:
        end = np.asarray(part.indptr[first + 1 : last + 1])
        start = np.maximum(np.asarray(part.indptr[first:last]), end - length)
        if first == 0:
            start[0] = end[0]
        size = end - start
        rows = np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())
        owner = np.repeat(np.arange(last - first), size)
        blocks.append((owner, *(np.asarray(c[rows], np.int64) for c in (part.item, part.event, part.time))))
    owner, item, event, time = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    order = np.lexsort((time, owner))
    order = order[item[order] > 0]
    size = np.bincount(owner[order], minlength=last - first)
    from_end = np.repeat(np.cumsum(size), size) - np.arange(len(order))
    order = order[from_end <= length]
    return owner[order], item[order], event[order], time[order]


def _whole_seconds(time: Array) -> bool:
    return all(
        bool((block % SECOND == 0).all() and block.min() >= 0 and block.max() < SECOND << 32)
        for block in _blocks(time)
    )


def _blocks(column: Array) -> Iterator[Array]:
    for start in range(0, len(column), 1 << 20):
        yield np.asarray(column[start : start + (1 << 20)])


def _older(first: int, last: int, shown: Array, parts: Sequence[Part], items: int) -> tuple[Array, Array]:
    """Items that users from `first` to before `last` met before the events `shown` (user * items + item).

    Returns:
        Owner, counted from `first`, and item.
    """
    met = []
    for part in parts:
        rows = slice(int(part.indptr[first]), int(part.indptr[last]))
        met.append((np.asarray(part.user[rows], np.int64) - first) * items + part.item[rows])
    owner, item = np.divmod(np.setdiff1d(np.concatenate(met), shown), items)
    known = (item > 0) & (owner + first > 0)
    return owner[known], item[known]


def _indptr(counts: list[Array]) -> Array:
    return compact(np.concatenate([[0], np.cumsum(np.concatenate(counts))]))
