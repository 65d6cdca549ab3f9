"""Puts rejected rows aside: their original columns, the reason, and file and row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from app.data.input.files import Split
from app.data.input.reading import Piece, pieces
from app.data.prepare.plan import Plan

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SplitPosition:
    """Where the rows of a split are in the input."""

    offset: int  # rows of the whole input before it
    in_file: int  # rows of its file before it
    rows: int


def put_aside(split: Split, plan: Plan, positions: dict[int, SplitPosition], folder: str) -> dict[str, int]:
    """Read a split again and write the rows that some phase rejected, in their order.

    Args:
        split: the split.
        plan: the plan.
        positions: of all splits, by their numbers.
        folder: rejected/ of the data set.
    """
    position = positions[split.number]
    reasons = _reasons(split, plan, position.offset, position.rows)
    if not reasons.any():
        return {"rows": 0}
    written = 0
    for number, piece in enumerate(pieces(split, plan.data)):
        frame = _frame(piece, reasons, split, plan)
        written += len(frame)
        if len(frame):
            frame = frame.with_columns(pl.col("_row") + position.in_file)
            target = Path(folder) / f"{split.number:07d}-{number:05d}.parquet"
            pq.write_table(frame.to_arrow(), target, compression="zstd")
    return {"rows": written}


def _reasons(split: Split, plan: Plan, offset: int, count: int) -> Array:
    """(rows,) reason code of each row of the split, 0 where kept."""
    scratch = Path(plan.scratch)
    reasons = np.zeros(count, np.uint8)
    for path in scratch.glob(f"{split.number:07d}-*.rejects.npy"):
        rejects = np.load(path)
        reasons[rejects["row"]] = rejects["reason"]
    for bucket in range(plan.buckets):
        for name in ("duplicates", "dropped"):
            late = np.load(scratch / f"bucket-{bucket}.{name}.npy", mmap_mode="r")
            start, end = np.searchsorted(late["row"], [offset, offset + count])
            reasons[late["row"][start:end] - offset] = late["reason"][start:end]
    return reasons


def _frame(piece: Piece, reasons: Array, split: Split, plan: Plan) -> pl.DataFrame:
    """The rejected rows of a piece; `_row` counts from 1, a CSV header not counted."""
    chosen = np.flatnonzero(reasons[piece.rows])
    code = reasons[piece.rows[chosen]]
    names = np.array(plan.reasons, object)
    good = _labelled(piece.frame[chosen], names[code].tolist(), piece.rows[chosen], [None] * len(chosen))
    bad = _labelled(
        pl.DataFrame(),
        ["unreadable"] * len(piece.bad),
        np.array([r for r, _ in piece.bad], np.int64),
        [t for _, t in piece.bad],
    )
    both = pl.concat([good, bad], how="diagonal").sort("_row")
    return both.with_columns(pl.lit(split.source.name).alias("_file"))


def _labelled(frame: pl.DataFrame, reasons: list[str], rows: Array, texts: list[str | None]) -> pl.DataFrame:
    labels = {"_reason": pl.Series(reasons, dtype=pl.String), "_row": pl.Series(rows + 1, dtype=pl.Int64)}
    return pl.DataFrame({**frame.to_dict(), **labels, "_text": pl.Series(texts, dtype=pl.String)})
