"""Phase 3, one task a bucket: the core, the split, and the columns as they go to disk.

The k-core keeps users and items with enough events, counted among those kept: every round
the buckets drop what is below and count items anew, until no item falls. Rows of given test
files do not count and are not dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from app.data.dataset import COLUMNS, column_type
from app.data.prepare.dedupe_sort import read_batch, write_late, write_table
from app.data.prepare.plan import Plan
from app.data.prepare.splits import assign

Array = npt.NDArray[Any]
Json = dict[str, Any]
PARTS = ("train", "valid", "test")
ITEM_ROWS, ALIVE = "item_rows.npy", "alive.npy"


def core_round(bucket: int, plan: Plan) -> Json:
    """Users, rows and rows of each item that survive with the items alive in `scratch`."""
    rows = _load(plan, bucket, ("user", "item", "test"))
    kept = _core(rows, plan)
    return {
        "users": len(np.unique(rows["user"][kept])),
        "rows": int(kept.sum()),
        "items": np.bincount(rows["item"][kept]),
        "train": np.bincount(rows["item"][kept & (rows["test"] == 0)]),
    }


def _load(plan: Plan, bucket: int, names: Sequence[str]) -> dict[str, Array]:
    batch = read_batch(Path(plan.scratch) / f"bucket-{bucket}.rows")
    return {n: batch[n].to_numpy() for n in names}


def _core(rows: dict[str, Array], plan: Plan) -> Array:
    """Rows (N,) whose item is alive and whose user has enough of them."""
    path = Path(plan.scratch) / ALIVE
    if not path.exists():
        return np.ones(len(rows["user"]), bool)
    train = rows["test"] == 0
    kept = np.load(path)[rows["item"]] & train
    enough = np.bincount(rows["user"][kept], minlength=int(rows["user"].max(initial=0)) + 1)
    result: Array = (kept & (enough >= plan.data.min_user_events)[rows["user"]]) | ~train
    return result


def finalize(
    bucket: int, plan: Plan, first_user: int, cuts: tuple[int, int], positive: Array, width: int
) -> Json:
    """Write a bucket's columns of each part, raw, and its users; returns their counts.

    Args:
        bucket: which.
        plan: the plan.
        first_user: row of the bucket's first user in the whole data set.
        cuts: of a split by time.
        positive: (events,) bool, event types to predict.
        width: M, listed negatives of a row; 0 where the split lists none.
    """
    scratch = Path(plan.scratch)
    rows = _load(plan, bucket, ("user", "item", "time", "event", "value", "row", "test"))
    kept = _core(rows, plan)
    write_late(
        scratch / f"bucket-{bucket}.core.npy",
        rows["row"],
        np.where(kept, 0, plan.code("core")).astype(np.uint8),
    )
    rows = {name: column[kept] for name, column in rows.items()}
    rows["label"] = positive[rows["event"]].astype(np.float32)
    batch = read_batch(scratch / f"bucket-{bucket}.users")
    part, repeated = assign(rows, batch["hash"].to_numpy(), plan.split, plan.seed, cuts)
    alive, rows["user"] = np.unique(rows["user"], return_inverse=True)
    rows["user"] += first_user
    rows["item"] = np.load(scratch / ITEM_ROWS, mmap_mode="r")[rows["item"]]
    write_table(scratch / f"bucket-{bucket}.final", pa.Table.from_batches([batch]).take(pa.array(alive)))
    report: Json = {"rows": {}, "repeated": repeated, "core": int((~kept).sum())}
    for number, name in enumerate(PARTS):
        chosen = np.flatnonzero(part == number)
        _write_part(scratch / name, bucket, {n: rows[n][chosen] for n in COLUMNS}, (first_user, len(alive)))
        report["rows"][name] = len(chosen)
        if number == 0:
            report["end"] = int(rows["time"][chosen].max(initial=-(1 << 62)))
        if name == "test" and width:
            _write_negatives(scratch, bucket, np.flatnonzero(kept)[chosen], width)
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
    made = np.zeros((len(chosen), width), np.int32)
    items = np.load(scratch / ITEM_ROWS, mmap_mode="r")
    made[np.arange(width) < lengths[:, None]] = items[lists.flatten().to_numpy()]
    made.tofile(scratch / "test" / f"negatives.{bucket}")
