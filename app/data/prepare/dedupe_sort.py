"""Phase 2, one task a bucket: all rows of its users, without duplicates and outliers, sorted.

Writes to `scratch`: bucket-K.rows (user, item, time, event, value, row, test; sorted by user
and time, ties in the order of the input), bucket-K.users and the rows rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from app.data.prepare.outliers import OutlierBounds
from app.data.prepare.partition import within_bounds
from app.data.prepare.plan import Plan

Array = npt.NDArray[Any]
Json = dict[str, Any]
LATE = np.dtype([("row", "<i8"), ("reason", "u1")])
ORDER_STEP = 1_000_000  # microseconds between rows where their order is the order in time


@dataclass(frozen=True)
class PieceInfo:
    """What phase 2 knows of a piece: its files, where it lies in the input, its event types.

    `offset` is the position of the split's first row in the whole input.
    """

    name: str
    offset: int
    test: bool
    events: tuple[int, ...]  # rows of schema.events by the piece's own codes


def dedupe_sort(bucket: int, plan: Plan, infos: Sequence[PieceInfo], bounds: Sequence[OutlierBounds]) -> Json:
    """Returns users and rows kept, rejected rows by reason, and rows kept of each item."""
    scratch = Path(plan.scratch)
    users, codes = _users(scratch, bucket, infos, plan)
    rows, negatives = _rows(scratch, bucket, infos, codes, plan)
    duplicate = _duplicates(rows, plan)
    outlier = _outliers(rows, bounds, plan) & ~duplicate
    reason = np.where(duplicate, plan.code("duplicate"), np.where(outlier, plan.code("outlier"), 0))
    write_late(scratch / f"bucket-{bucket}.late.npy", rows["row"], reason.astype(np.uint8))
    kept = np.flatnonzero(reason == 0)
    _write_attributes(scratch / f"bucket-{bucket}.attributes", rows, kept, plan)
    order = kept[np.lexsort((rows["time"][kept], rows["user"][kept]))]
    names = ("user", "item", "time", "event", "value", "row", "test")
    table = pa.table({n: rows[n][order] for n in names})
    if negatives is not None:
        table = table.append_column("negatives", negatives.take(pa.array(order)))
    write_table(scratch / f"bucket-{bucket}.rows", table)
    write_table(scratch / f"bucket-{bucket}.users", users.to_arrow())
    return {
        "users": len(np.unique(rows["user"][order])),
        "rows": len(order),
        "rejected": {"duplicate": int(duplicate.sum()), "outlier": int(outlier.sum())},
        "items": np.bincount(rows["item"][order]),
        "negatives": 0 if negatives is None else int(np.max(negatives.value_lengths().to_numpy(), initial=0)),
    }


def read_batch(path: Path, number: int = 0) -> pa.RecordBatch:
    """One record batch of an Arrow file."""
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(number)


def write_table(path: Path, table: pa.Table) -> None:
    """A table as an Arrow file of one record batch."""
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(batches[0])


def write_late(path: Path, rows: Array, reason: Array) -> None:
    """Rows (of the whole input) rejected after phase 1, sorted."""
    bad = np.flatnonzero(reason)
    late = np.empty(len(bad), LATE)
    late["row"], late["reason"] = rows[bad], reason[bad]
    np.save(path, np.sort(late, order="row"))


def _users(
    scratch: Path, bucket: int, infos: Sequence[PieceInfo], plan: Plan
) -> tuple[pl.DataFrame, list[Array]]:
    """The bucket's users by hash and id, and each piece's codes of them."""
    frames = [pl.DataFrame(pl.from_arrow(read_batch(scratch / f"{i.name}.users", bucket))) for i in infos]
    found = pl.concat(frames, how="diagonal").with_row_index("place").sort("hash", "id", "place")
    new = (found["hash"] != found["hash"].shift()) | (found["id"] != found["id"].shift())
    found = found.with_columns(code=new.fill_null(True).cum_sum().cast(pl.Int64) - 1)
    codes = np.empty(len(found), np.int64)
    codes[found["place"].to_numpy()] = found["code"].to_numpy()
    firsts = [pl.col(c).drop_nulls().first() for c in plan.user_columns if c in found.columns]
    users = found.group_by("code", maintain_order=True).agg(pl.col("hash", "id").first(), *firsts)
    ends = np.cumsum([len(f) for f in frames])
    return users.drop("code"), np.split(codes, ends[:-1])


def _rows(
    scratch: Path, bucket: int, infos: Sequence[PieceInfo], codes: Sequence[Array], plan: Plan
) -> tuple[dict[str, Array], pa.Array | None]:
    parts: list[dict[str, Array]] = []
    lists: list[pa.Array] = []
    for info, users in zip(infos, codes, strict=True):
        batch = read_batch(scratch / f"{info.name}.rows", bucket)
        part = {n: batch[n].to_numpy() for n in batch.schema.names if n != "negatives"}
        items = np.load(scratch / f"{info.name}.map.npy", mmap_mode="r")
        part["user"] = users[part["user"]].astype(np.int32)
        part["item"] = items[part["item"]]
        part["event"] = np.array(info.events, np.uint8)[part["event"]]
        part["row"] = part["row"] + info.offset
        part["test"] = np.full(len(batch), info.test, np.uint8)
        if not plan.data.timestamp:
            part["time"] = part["row"] * ORDER_STEP
        parts.append(part)
        lists.append(_lists(batch, items))
    rows = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return rows, pa.concat_arrays(lists) if plan.split.negatives else None


def _lists(batch: pa.RecordBatch, items: Array) -> pa.Array:
    """Listed items as rows of the vocabulary; empty lists where the file has none."""
    if "negatives" not in batch.schema.names:
        return pa.LargeListArray.from_arrays(
            pa.array(np.zeros(len(batch) + 1, np.int64)), pa.array([], pa.int32())
        )
    column = batch["negatives"]
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(items[column.flatten().to_numpy()]))


def _duplicates(rows: dict[str, Array], plan: Plan) -> Array:
    """Rows that repeat an earlier one of the same user and part (training or given test)."""
    if plan.data.duplicates == "keep":
        return np.zeros(len(rows["row"]), bool)
    keyed = plan.data.duplicates == "key" and not plan.key_columns
    names = ["user", "item", "event", "time"] if keyed else ["user", "hash"]
    if not rows["test"].any():
        frame = pl.DataFrame({n: rows[n] for n in names})
    else:
        frame = pl.DataFrame({n: rows[n] for n in [*names, "test"]})
    return ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()


def _outliers(rows: dict[str, Array], bounds: Sequence[OutlierBounds], plan: Plan) -> Array:
    """Rows beyond a fence that drops; a fence that clips changes the value in place."""
    bad = np.zeros(len(rows["row"]), bool)
    for fence in bounds:
        values = rows[within_bounds(fence.column)]
        if fence.clip:
            rows[within_bounds(fence.column)] = np.clip(values, fence.low, fence.high)
            if fence.column == plan.data.value:
                rows["value"] = np.clip(rows["value"], fence.low, fence.high).astype(np.float32)
        else:
            bad |= (values < fence.low) | (values > fence.high)  # false for NaN
    return bad


def _write_attributes(path: Path, rows: dict[str, Array], kept: Array, plan: Plan) -> None:
    """The first value kept of each item, of the attributes that are under an outlier rule."""
    for column in plan.item_columns:
        if column not in plan.outlier_columns:
            continue
        values = rows[within_bounds(column)][kept]
        present = kept[~np.isnan(values)]
        item, first = np.unique(rows["item"][present], return_index=True)
        chosen = present[first]
        table = {"item": item, "row": rows["row"][chosen], "value": rows[within_bounds(column)][chosen]}
        write_table(path.with_name(f"{path.name}-{plan.item_columns.index(column)}"), pa.table(table))
