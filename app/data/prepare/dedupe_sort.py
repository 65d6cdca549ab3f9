"""Phase 2, one task a bucket: all rows of its users, without duplicates, sorted.

Writes to `scratch`: bucket-K.rows (user, item, time, event, value, row, test, and the columns under
an outlier rule; sorted by user and time, ties in the order of the input), bucket-K.users and the
duplicates.
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

from app.data.prepare.partition import within_bounds
from app.data.prepare.plan import Plan

Array = npt.NDArray[Any]
Json = dict[str, Any]
LATE = np.dtype([("row", "<i8"), ("reason", "u1")])
ORDER_STEP = 1_000_000  # microseconds between rows where their order is the order in time


@dataclass(frozen=True)
class PieceInfo:
    """A piece as phase 2 reads it: the name of its files, its offset in the input, its event types.

    `offset` is the position of the split's first row in the whole input.
    """

    name: str
    offset: int
    test: bool
    events: tuple[int, ...]  # rows of schema.events by the piece's own codes


def dedupe_sort(bucket: int, plan: Plan, infos: Sequence[PieceInfo]) -> Json:
    """Write a bucket's rows.

    Returns:
        duplicates: how many; rows: left; users: with rows; items: rows left of each; negatives: the
        most that a row lists.
    """
    scratch = Path(plan.scratch)
    users, codes = _users(scratch, bucket, infos, plan)
    rows, negatives = _rows(scratch, bucket, infos, codes, plan)
    duplicate = _duplicates(rows, plan)
    write_rejects(
        scratch / f"bucket-{bucket}.duplicates.npy", rows["row"], duplicate * np.uint8(plan.code("duplicate"))
    )
    kept = np.flatnonzero(~duplicate)
    order = kept[np.lexsort((rows["time"][kept], rows["user"][kept]))]
    names = ["user", "item", "time", "event", "value", "row", "test"]
    names += [within_bounds(column) for column in plan.outlier_columns]
    table = pa.table({n: rows[n][order] for n in names})
    if negatives is not None:
        table = table.append_column("negatives", negatives.take(pa.array(order)))
    write_table(scratch / f"bucket-{bucket}.rows", table)
    write_table(scratch / f"bucket-{bucket}.users", users.to_arrow())
    return {
        "users": int(np.count_nonzero(np.bincount(rows["user"][order]))),
        "rows": len(order),
        "duplicates": int(duplicate.sum()),
        "items": np.bincount(rows["item"][order]),
        "negatives": 0 if negatives is None else int(np.max(negatives.value_lengths().to_numpy(), initial=0)),
    }


def read_batch(path: Path, number: int = 0) -> pa.RecordBatch:
    """One record batch of an Arrow file; columns are memory-mapped, so that those not used cost nothing."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(number)


def write_table(path: Path, table: pa.Table) -> None:
    """A table as an Arrow file of one record batch."""
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(batches[0])


def write_rejects(path: Path, rows: Array, reason: Array) -> None:
    """Write which rows of a bucket are rejected.

    Args:
        path: of the file, an array of LATE sorted by row.
        rows: (N,) int64, numbers of the bucket's rows in the whole input.
        reason: (N,) uint8, 0 where a row is kept.
    """
    bad = np.flatnonzero(reason)
    late = np.empty(len(bad), LATE)
    late["row"], late["reason"] = rows[bad], reason[bad]
    np.save(path, np.sort(late, order="row"))


def _users(
    scratch: Path, bucket: int, infos: Sequence[PieceInfo], plan: Plan
) -> tuple[pl.DataFrame, list[Array]]:
    """The bucket's users by hash and id, and each piece's codes of them."""
    frames = [pl.DataFrame(pl.from_arrow(read_batch(scratch / f"{i.name}.users", bucket))) for i in infos]
    entries = pl.concat(frames, how="diagonal").with_row_index("position").sort("hash", "id", "position")
    new = (entries["hash"] != entries["hash"].shift()) | (entries["id"] != entries["id"].shift())
    entries = entries.with_columns(code=new.fill_null(True).cum_sum().cast(pl.Int64) - 1)
    codes = np.empty(len(entries), np.int64)
    codes[entries["position"].to_numpy()] = entries["code"].to_numpy()
    firsts = [pl.col(c).drop_nulls().first() for c in plan.user_columns if c in entries.columns]
    users = entries.group_by("code", maintain_order=True).agg(pl.col("hash", "id").first(), *firsts)
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
