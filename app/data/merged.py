"""The parts of a data set merged into one, to train once more: on all, or on all that is not the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from app.artifact import cache_key, publish, reuse
from app.data.dataset import COLUMNS, Dataset, Part, column_type

Array = npt.NDArray[Any]
BLOCK = 1 << 20  # events handled at a time; the events of one user are never torn apart
_SHARED = ("users", "items", "features", "columns")


def merge_parts(dataset: Dataset, folder: Path, *, test: bool = True) -> Dataset:
    """Write a data set whose training part holds every event kept, and open it.

    Its rows are in the order of user and time; events of one moment stand in the order train, valid,
    test. Labels are those that the event types imply, whatever the split had hidden. Events on items
    that the k-core dropped (row 0 of given test files) are left out, because nothing can be learned of
    them. The parts valid and test are empty, the features are those fitted on the training part, and
    `schema.end_time` is the time of the last event of these. Ids keep their rows.

    A block of users is in memory at a time; arrays are memory-mapped, and files that do not change are
    linked. An artefact at `folder` that was made from the same data set is used again.

    Args:
        dataset: what `prepare` made.
        folder: where the artefact goes, on the file system of the data set if possible.
        test: whether the test part is merged, too; else it stays what it is.

    Raises:
        ArtifactError: `folder` holds something else.
        MachineError: the disk is full.
    """
    settings = {"parts": "merged"} if test else {"parts": "train and valid"}
    parents = {"dataset": dataset.artifact.digest}
    parts = [part for part in dataset.parts if test or part is not dataset.test]
    if not reuse(folder, "dataset", cache_key("dataset", settings, parents)):
        with publish(folder, "dataset", settings, parents) as draft:
            for name in _SHARED:
                if (dataset.path / name).is_dir():
                    shutil.copytree(dataset.path / name, draft.path / name, copy_function=_link)
            end = _write_train(dataset, parts, draft.path / "train")
            for part in ("valid", "test") if test else ("valid",):
                Part.save(draft.path / part, dict.fromkeys(COLUMNS, np.empty(0)), dataset.schema.users)
            if not test:
                shutil.copytree(dataset.path / "test", draft.path / "test", copy_function=_link)
            schema = msgspec.structs.replace(dataset.schema, end_time=end)
            (draft.path / "schema.json").write_bytes(msgspec.json.encode(schema))
            draft.figures.update(dataset.artifact.figures)
            draft.figures.update(train=_count(parts), valid=0)
            if test:
                draft.figures.update(test=0)
    return Dataset.open(folder, verify=False)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _count(parts: Sequence[Part]) -> int:
    """Events on items that have a row."""
    return sum(
        int(np.count_nonzero(part.item[start : start + BLOCK]))
        for part in parts
        for start in range(0, len(part), BLOCK)
    )


def _write_train(dataset: Dataset, parts: Sequence[Part], folder: Path) -> int:
    """Write the arrays of the merged part, block by block; returns the time of its last event."""
    folder.mkdir()
    count, users = _count(parts), dataset.schema.users
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", column_type(name), (count,))
        for name in COLUMNS
    }
    indptr = np.zeros(users + 1, np.int64)
    written, end = 0, dataset.schema.end_time
    for first, last in _user_blocks(parts, users):
        rows = _merged_rows(dataset, parts, first, last)
        following = written + len(rows["user"])
        for name, array in arrays.items():
            array[written:following] = rows[name]
        indptr[first + 1 : last + 1] = np.bincount(rows["user"] - first, minlength=last - first)
        end = max(end, int(rows["time"].max(initial=end)))
        written = following
    for array in arrays.values():
        array.flush()
    np.save(folder / "indptr.npy", np.cumsum(indptr))
    return end


def _user_blocks(parts: Sequence[Part], users: int) -> Iterator[tuple[int, int]]:
    """Ranges of users with at most BLOCK events, or one user with more."""
    before = sum((part.indptr for part in parts), np.zeros(users + 1, np.int64))
    first = 0
    while first < users:
        last = int(np.searchsorted(before, before[first] + BLOCK, side="right")) - 1
        last = min(max(last, first + 1), users)
        yield first, last
        first = last


def _merged_rows(dataset: Dataset, parts: Sequence[Part], first: int, last: int) -> dict[str, Array]:
    """The columns of all events of the users from `first` to before `last`, in order."""
    ranges = [(part, slice(int(part.indptr[first]), int(part.indptr[last]))) for part in parts]
    rows = {
        name: np.concatenate([getattr(part, name)[chosen] for part, chosen in ranges])
        for name in COLUMNS
        if name != "label"
    }
    rows["label"] = np.concatenate([dataset.labels(part, chosen) for part, chosen in ranges])
    order = np.lexsort((rows["time"], rows["user"]))  # stable
    order = order[rows["item"][order] > 0]
    return {name: column[order] for name, column in rows.items()}
