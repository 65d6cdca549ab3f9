"""Phase 2, one task a bucket: all rows of its users, without duplicates, sorted.

Writes to `scratch`: bucket-K.rows (user, item, time, event, value, row, test, and the columns under
an outlier rule; sorted by user and time, ties in the order of the input), bucket-K.users and the
duplicates. Where events have no order, a user's rows are sorted by a hash of seed and row.
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

from app.data.prepare.partition import order_key, within_bounds
from app.data.prepare.plan import Plan
from app.data.prepare.selection.splits import uniform
from app.data.values.latest import attributes_of, merge_latest

Array = npt.NDArray[Any]
Json = dict[str, Any]
LATE = np.dtype([("row", "<i8"), ("reason", "u1")])


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
        duplicates: how many; rows: left; tied: of those left, with the moment of an earlier row of their
        user; users: with rows; items: rows left of each; negatives: the most that a row lists.
    """
    scratch = Path(plan.scratch)
    users, codes = _users(scratch, bucket, infos, plan)
    rows, negatives = _rows(scratch, bucket, infos, codes, plan)
    duplicate = _duplicates(rows, plan)
    write_rejects(
        scratch / f"bucket-{bucket}.duplicates.npy", rows["row"], duplicate * np.uint8(plan.code("duplicate"))
    )
    kept = np.flatnonzero(~duplicate)
    order = kept[_order(rows, kept, plan)]
    names = ["user", "item", "time", "event", "value", "row", "test"]
    names += [within_bounds(column) for column in plan.outlier_columns]
    columns = {n: rows[n][order] for n in names}
    if plan.data.session_gap_us and plan.data.sessions == "users":
        columns["user"], users = _sessions(columns["user"], columns["time"], users, plan.data.session_gap_us)
    table = pa.table(columns)
    if negatives is not None:
        table = table.append_column("negatives", negatives.take(pa.array(order)))
    write_table(scratch / f"bucket-{bucket}.rows", table)
    write_table(scratch / f"bucket-{bucket}.users", users.to_arrow())
    return {
        "users": int(np.count_nonzero(np.bincount(columns["user"]))),
        "rows": len(order),
        "tied": _tied(columns["user"], columns["time"]),
        "duplicates": int(duplicate.sum()),
        "items": np.bincount(rows["item"][order]),
        "negatives": 0 if negatives is None else int(np.max(negatives.value_lengths().to_numpy(), initial=0)),
    }


def _tied(user: Array, time: Array) -> int:
    return int(np.count_nonzero((user[1:] == user[:-1]) & (time[1:] == time[:-1])))


def _order(rows: dict[str, Array], kept: Array, plan: Plan) -> Array:
    """The order (K,) of the rows kept (K,), which are in that of the input."""
    names = ["time", *_order_keys(plan)] if plan.data.timed else ["row"]
    keys = [rows[name][kept] for name in reversed(names)]
    return np.lexsort((*(keys if plan.data.ordered else [uniform(keys[0], plan.seed)]), rows["user"][kept]))


def _order_keys(plan: Plan) -> list[str]:
    """Columns that order rows of the same time, the first key first."""
    return [order_key(number) for number in range(len(plan.data.time_columns) - 1)]


def _sessions(user: Array, time: Array, users: pl.DataFrame, gap: int) -> tuple[Array, pl.DataFrame]:
    """Sessions as users of their own: the session (N,) of each row, and the sessions, with ids USER/NUMBER.

    Args:
        user: (N,) rows of `users`, ascending.
        time: (N,) microseconds, ascending for each user.
        users: id, hash and attributes.
        gap: microseconds; a longer pause ends a session.
    """
    new_user = np.diff(user, prepend=-1) != 0
    new = new_user | (np.diff(time, prepend=time[:1]) > gap)
    owner = user[new]
    first = np.maximum.accumulate(np.where(new_user[new], np.arange(len(owner)), 0))
    numbers = pl.Series(np.arange(len(owner)) - first + 1).cast(pl.String)
    sessions = users[owner.tolist()]
    return (np.cumsum(new) - 1).astype(user.dtype), sessions.with_columns(id=sessions["id"] + "/" + numbers)


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
    users = entries.group_by("code", maintain_order=True).agg(pl.col("hash", "id").first())
    latest = merge_latest(entries, "code", plan.user_columns)
    latest = latest.select("code", *attributes_of(plan.user_columns, latest))
    users = users.join(latest, on="code", how="left", maintain_order="left")
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
    names = ["user", "item", "event", "time", *_order_keys(plan)] if keyed else ["user", "hash"]
    if not rows["test"].any():
        frame = pl.DataFrame({n: rows[n] for n in names})
    else:
        frame = pl.DataFrame({n: rows[n] for n in [*names, "test"]})
    return ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
