"""Puts rejected rows aside: their original columns, the reason, and file and row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from app.data.input.reading import Piece, pieces
from app.data.input.source import Split
from app.data.prepare.plan import Plan
from app.data.ray_map import map_splits

Array = npt.NDArray[Any]
Json = dict[str, Any]
EXAMPLES = 3  # of a reason that are shown
LONGEST = 80  # characters of a value that are shown


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
    for number, piece in enumerate(pieces(split)):
        frame = _frame(piece, reasons, split, plan, position.in_file)
        written += len(frame)
        if len(frame):
            target = Path(folder) / f"{split.number:07d}-{number:05d}.parquet"
            pq.write_table(frame.to_arrow(), target, compression="zstd")
    return {"rows": written}


def first_rejected(
    splits: Sequence[Split], plan: Plan, positions: dict[int, SplitPosition]
) -> dict[str, list[Json]]:
    """The first rejected rows of each reason, EXAMPLES at most: reason -> [{file, row, values}].

    `values` are the columns of the row as text, None where missing, or {"text": the line} of one that
    cannot be read. Only the splits that hold these rows are read again.
    """
    wanted: dict[int, dict[int, int]] = {}
    counts: Counter[int] = Counter()
    for split in splits:
        position = positions[split.number]
        reasons = _reasons(split, plan, position.offset, position.rows)
        for code in np.unique(reasons[reasons > 0]).tolist():
            rows = np.flatnonzero(reasons == code)[: EXAMPLES - counts[code]].tolist()
            counts[code] += len(rows)
            wanted.setdefault(split.number, {}).update(dict.fromkeys(rows, code))
    calls = [split for split in splits if wanted.get(split.number)]
    shared = (plan, positions, {number: sorted(rows.items()) for number, rows in wanted.items()})
    reports = map_splits(_examples, calls, shared, "reading rejected rows", plan.scratch) if calls else []
    examples: dict[str, list[Json]] = {plan.reasons[code]: [] for code in sorted(counts)}
    for report in sorted(reports, key=lambda r: r["split"]):
        for reason, example in report["examples"]:
            examples[reason].append(example)
    return examples


def _examples(
    split: Split, plan: Plan, positions: dict[int, SplitPosition], wanted: dict[int, list[tuple[int, int]]]
) -> Json:
    """Rows of a split with the codes of their reasons, read again as plain data."""
    position = positions[split.number]
    reasons = np.zeros(position.rows, np.uint8)
    for row, code in wanted[split.number]:
        reasons[row] = code
    examples: list[tuple[str, Json]] = []
    for piece in pieces(split):
        frame = _frame(piece, reasons, split, plan, position.in_file)
        examples += [example_of(row) for row in frame.iter_rows(named=True)]
        if len(examples) == len(wanted[split.number]):
            break
    return {"split": split.number, "examples": examples}


def example_of(row: Json) -> tuple[str, Json]:
    """The reason of a rejected row, and the row as it is shown: file, row, and values cut to LONGEST."""
    labels = {name: row.pop(f"_{name}") for name in ("reason", "file", "row", "text")}
    values = {"text": labels["text"]} if labels["text"] is not None else row
    shown = {c: None if v is None else str(v)[:LONGEST] for c, v in values.items()}
    return labels["reason"], {"file": labels["file"], "row": labels["row"], "values": shown}


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


def _frame(piece: Piece, reasons: Array, split: Split, plan: Plan, before: int) -> pl.DataFrame:
    """The rejected rows of a piece.

    `_row` counts the rows of the file from 1, of which `before` are before the split; a header does not
    count, and rows that were unfolded from one have its number.
    """
    chosen = np.flatnonzero(reasons[piece.rows])
    unreadable = [
        (origin, text)
        for origin, (row, text) in zip(piece.bad_origins, piece.bad, strict=True)
        if reasons[row]
    ]
    names = np.array(plan.reasons, object)[reasons[piece.rows[chosen]]]
    good = _labelled(piece.frame[chosen], names.tolist(), piece.origins[chosen], [None] * len(chosen))
    bad = _labelled(
        pl.DataFrame(),
        ["unreadable"] * len(unreadable),
        np.array([origin for origin, _ in unreadable], np.int64),
        [text for _, text in unreadable],
    )
    both = pl.concat([good, bad], how="diagonal").sort("_row", maintain_order=True)
    return both.with_columns(pl.col("_row") + before, pl.lit(split.source.name).alias("_file"))


def _labelled(frame: pl.DataFrame, reasons: list[str], rows: Array, texts: list[str | None]) -> pl.DataFrame:
    labels = {"_reason": pl.Series(reasons, dtype=pl.String), "_row": pl.Series(rows + 1, dtype=pl.Int64)}
    return pl.DataFrame({**frame.to_dict(), **labels, "_text": pl.Series(texts, dtype=pl.String)})
