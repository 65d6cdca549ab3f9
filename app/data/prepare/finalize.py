"""Phase 3, one task a bucket: the final split, and the columns as they go to disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from app.data.dataset import COLUMNS, column_type
from app.data.prepare.dedupe_sort import read_batch, write_rejects, write_table
from app.data.prepare.plan import Plan
from app.data.prepare.selection.core import reasons_after
from app.data.prepare.selection.splits import TEST, TRAIN, Splitter, clipped

Array = npt.NDArray[Any]
Json = dict[str, Any]
PARTS = ("train", "valid", "test")
ITEM_ROWS = "item_rows.npy"
_COLUMNS = ("user", "item", "time", "event", "value", "row", "test")


@dataclass(frozen=True)
class Final:
    """What phase 3 knows of all buckets.

    Attributes:
        splitter: the final split.
        step: the step of the selection whose reasons hold.
        width: M, listed negatives of a row; 0 where the split lists none.
        write: whether columns are written, or only counted.
    """

    splitter: Splitter
    step: int
    width: int
    write: bool


def finalize(bucket: int, plan: Plan, first_user: int, final: Final) -> Json:
    """Write a bucket's columns of each part, raw, its users, and the rows that the selection dropped.

    Args:
        bucket: which.
        plan: the plan.
        first_user: row of the bucket's first user in the whole data set.
        final: what holds for all buckets.

    Returns:
        rows: of each part; core: rows that the core dropped; repeated: events not tested because they
        repeat training; positive: training events to predict; span: first and last time; end: time of
        the last training event.
    """
    path = Path(plan.scratch) / f"bucket-{bucket}"
    batch, users = read_batch(path.with_suffix(".rows")), read_batch(path.with_suffix(".users"))
    reason = reasons_after(plan, bucket, final.step, len(batch))
    write_rejects(path.with_suffix(".dropped.npy"), batch["row"].to_numpy(), reason)
    kept = np.flatnonzero(reason == 0)
    rows = {name: batch[name].to_numpy()[kept] for name in _COLUMNS}
    part, rows["label"], repeated = final.splitter.assign(rows, users["hash"].to_numpy())
    rows["value"] = clipped(rows["value"], final.splitter.clips)
    present, rows["user"] = np.unique(rows["user"], return_inverse=True)
    rows["user"] += first_user
    rows["item"] = np.load(path.with_name(ITEM_ROWS), mmap_mode="r")[rows["item"]]
    write_table(path.with_suffix(".final"), pa.Table.from_batches([users]).take(pa.array(present)))
    core = int(np.count_nonzero(reason == plan.code("core")))
    time, far = rows["time"], 1 << 62
    report: Json = {
        "rows": {},
        "repeated": repeated,
        "core": core,
        "positive": int(np.count_nonzero(rows["label"][part == TRAIN])),
        "span": (int(time.min(initial=far)), int(time.max(initial=-far))),
        "end": int(time[part == TRAIN].max(initial=-far)),
    }
    for number, name in enumerate(PARTS):
        chosen = np.flatnonzero(part == number)
        report["rows"][name] = len(chosen)
        if not final.write:
            continue
        columns = {n: rows[n][chosen] for n in COLUMNS}
        _write_part(path.with_name(name), bucket, columns, (first_user, len(present)))
        if number == TEST and final.width:
            _write_negatives(Path(plan.scratch), bucket, kept[chosen], final.width)
    return report


def _write_part(folder: Path, bucket: int, columns: dict[str, Array], users: tuple[int, int]) -> None:
    folder.mkdir(exist_ok=True)
    for name, column in columns.items():
        column.astype(column_type(name)).tofile(folder / f"{name}.{bucket}")
    first, count = users
    counts = np.bincount(columns["user"] - first, minlength=count).astype(np.int64)
    counts.tofile(folder / f"indptr.{bucket}")


def _write_negatives(scratch: Path, bucket: int, chosen: Array, width: int) -> None:
    """Lists as (rows, M) int32 item rows, zeros behind the shorter ones."""
    lists = read_batch(scratch / f"bucket-{bucket}.rows")["negatives"].take(pa.array(chosen))
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    negatives = np.zeros((len(chosen), width), np.int32)
    items = np.load(scratch / ITEM_ROWS, mmap_mode="r")
    negatives[np.arange(width) < lengths[:, None]] = items[lists.flatten().to_numpy()]
    negatives.tofile(scratch / "test" / f"negatives.{bucket}")
