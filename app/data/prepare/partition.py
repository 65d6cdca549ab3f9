"""Phase 1, one task a split: read, clean, and partition the rows kept into buckets of users.

A piece of a split becomes three Arrow files in `scratch`: rows (one record batch a bucket),
their users (one batch a bucket), and the items. Rows name their user and item by
position in these, so that text is handled once a distinct id and not once a row. The bucket
of a user is the range that a hash of the id falls in, so buckets in order are users in
order, however many buckets there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from app.data.input.reading import Piece, Torn, pieces
from app.data.input.source import Split
from app.data.prepare.clean import Cleaned, Note, clean, refuse_types
from app.data.prepare.plan import Plan
from app.data.values.latest import latest_rows, time_of
from app.data.values.numbers import number_texts, strange
from app.data.values.text import blank, number_of, stable_hash, text_of
from app.errors import DataError

Array = npt.NDArray[Any]
Json = dict[str, Any]
REJECT = np.dtype([("row", "<i8"), ("reason", "u1")])
MAX_EVENTS = 255


def partition(split: Split, plan: Plan) -> Json:
    """Write the pieces of a split.

    Returns:
        split: its number; rows: rows read; rejected: rows by reason; pieces: name, rows kept and event
        types of each; notes: on values that cannot be used. Or split and torn, where quotes span its ends.
    """
    report: Json = {
        "split": split.number,
        "rows": 0,
        "lines": 0,
        "rejected": Counter(),
        "pieces": [],
        "notes": [],
    }
    try:
        for number, piece in enumerate(pieces(split)):
            name = f"{split.number:07d}-{number:05d}"
            report["rows"] += piece.count
            report["lines"] += piece.lines
            counts = _piece(piece, split, plan, str(Path(plan.scratch) / name))
            report["rejected"].update(counts.pop("rejected"))
            report["notes"] += counts.pop("notes")
            report["pieces"].append({"name": name, **counts})
    except Torn:
        return {"split": split.number, "torn": True}
    return report


def _piece(piece: Piece, split: Split, plan: Plan, target: str) -> Json:
    rejects = np.zeros(len(piece.bad), REJECT)
    rejects["row"], rejects["reason"] = [r for r, _ in piece.bad], plan.code("unreadable")
    report: Json = {"kept": 0, "events": [], "notes": []}
    if piece.frame.height:
        refuse_types(piece.frame, split.source.name, plan)
        cleaned = clean(piece, plan)
        bad = np.flatnonzero(cleaned.reason)
        more = np.zeros(len(bad), REJECT)
        more["row"], more["reason"] = piece.rows[bad], cleaned.reason[bad]
        rejects = np.concatenate([rejects, more])
        report |= _write(cleaned, piece, split, plan, target)
        report["notes"] = [asdict(note) for note in cleaned.notes]
    counts = np.bincount(rejects["reason"], minlength=len(plan.reasons))
    report["rejected"] = {plan.reasons[code]: int(counts[code]) for code in np.flatnonzero(counts)}
    if len(rejects):
        np.save(f"{target}.rejects.npy", rejects)
    return report


def _write(cleaned: Cleaned, piece: Piece, split: Split, plan: Plan, target: str) -> Json:
    kept = np.flatnonzero(cleaned.reason == 0)
    latest = _Latest(cleaned, piece, kept, plan)
    user, user_texts, first = _compact(cleaned.user[kept], cleaned.user_texts)
    hashes = stable_hash(user_texts)
    bucket = bucket_of(hashes, plan.buckets)
    order = np.argsort(bucket, kind="stable")
    columns = latest.columns(plan.user_columns, plan.user_numbers, user, len(first))
    users = pa.table({"hash": hashes, "id": _text(user_texts), **columns}).take(order)
    _write_batches(f"{target}.users", users, np.bincount(bucket, minlength=plan.buckets))

    item, item_texts, first = _compact(cleaned.item[kept], cleaned.item_texts)
    columns = latest.columns(_without_bounds(plan), plan.item_numbers, item, len(first))
    items = pa.table({"id": _text(item_texts), **columns})
    event, event_texts, _ = _compact(cleaned.event[kept], pl.Series(cleaned.event_texts, dtype=pl.String))
    if len(event_texts) > MAX_EVENTS:
        remedy = f"map a column with at most {MAX_EVENTS} types, or list them in data.event_types"
        what = f"column {plan.data.event!r} has {len(event_texts)} event types"
        raise DataError(what, where=split.source.name, remedy=remedy)
    negatives, items = _negatives(cleaned, kept, items)
    _write_batches(f"{target}.items", items, np.array([len(items)]))
    # Positions within the bucket's own users, which are the consecutive ones of `order`.
    starts = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=plan.buckets))])
    local = np.empty(len(order), np.int64)
    local[order] = np.arange(len(order)) - starts[bucket[order]]
    table = _row_table(cleaned, kept, piece.rows, plan, (local[user], item, event), negatives)
    of_row = bucket.astype(np.uint16)[user]
    _write_batches(
        f"{target}.rows",
        table.take(np.argsort(of_row, kind="stable")),
        np.bincount(of_row, minlength=plan.buckets),
    )
    return {"kept": len(kept), "events": event_texts.to_list()}


def bucket_of(hashes: npt.NDArray[np.uint64], buckets: int) -> Array:
    """The bucket (N,) of each hash: equal ranges of the hashes' upper 32 bits."""
    return ((hashes >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def _compact(codes: Array, texts: pl.Series) -> tuple[Array, pl.Series, Array]:
    """Only the positions in use: codes (N,), their texts, and the old positions."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(texts)))
    to = np.zeros(len(texts), np.int64)
    to[used] = np.arange(len(used))
    return to[codes], texts[used.tolist()] if len(used) < len(texts) else texts, used


def _text(texts: pl.Series) -> pa.Array:
    return texts.to_arrow().cast(pa.large_string())


def _without_bounds(plan: Plan) -> list[str]:
    """Item attributes; those under an outlier rule are taken once its bounds are known."""
    return [c for c in plan.item_columns if c not in plan.outlier_columns]


class _Latest:
    """The attributes of the ids of a piece: the latest in time of each, and the time."""

    def __init__(self, cleaned: Cleaned, piece: Piece, kept: Array, plan: Plan) -> None:
        self.cleaned, self.piece, self.kept, self.data = cleaned, piece, kept, plan.data
        self._order: Array | None = None

    def columns(
        self, names: Sequence[str], numbers: Sequence[str], codes: Array, count: int
    ) -> dict[str, pa.Array]:
        """Values as text (count,) and their times (count,) of each column; notes what should be numbers."""
        columns: dict[str, pa.Array] = {}
        for name in names:
            if name not in self.cleaned.frame.columns:
                continue
            if self._order is None:
                keys = [key[self.kept] for key in reversed(self.cleaned.order)]
                self._order = np.lexsort((*keys, self.cleaned.time[self.kept]))
            by_time = self.kept[self._order]
            cells = self.cleaned.frame[name]
            present = ~blank(cells, self.data.missing_words).to_numpy()[by_time]
            chosen = latest_rows(codes[self._order], present, count)
            rows = np.append(by_time, len(cells))[chosen]  # -1 picks the last, which holds nothing
            texts = self._texts(cells, rows, name in numbers)
            times = pa.array(np.append(self.cleaned.time, 0)[rows])
            columns |= {name: _text(texts), time_of(name): times}
        return columns

    def _texts(self, cells: pl.Series, rows: Array, number: bool) -> pl.Series:
        chosen = cells.extend_constant(None, 1)[rows]
        if not number:
            return text_of(chosen)
        texts = number_texts(chosen, self.data.decimal)
        bad = strange(chosen, number_of(texts), self.data.missing_words).to_numpy()
        if bad.any():
            first, good = int(bad.argmax()), len(chosen) - chosen.null_count() - int(bad.sum())
            row = int(self.piece.origins[rows[first]])
            value = str(chosen[first])[:80]
            self.cleaned.notes.append(Note("attribute", cells.name, int(bad.sum()), good, value, row))
        return texts


def _row_table(
    cleaned: Cleaned,
    kept: Array,
    rows: Array,
    plan: Plan,
    codes: tuple[Array, ...],
    negatives: pa.Array | None,
) -> pa.Table:
    user, item, event = codes
    columns: dict[str, Any] = {
        "user": user.astype(np.uint32),
        "item": item.astype(np.uint32),
        "event": event.astype(np.uint8),
        "time": cleaned.time[kept],
        "value": cleaned.value[kept],
        "row": rows[kept],
    }
    if plan.data.duplicates == "exact" or plan.key_columns:
        names = plan.key_columns or cleaned.frame.columns
        texts = [text_of_raw(cleaned.frame[n]) for n in names if n in cleaned.frame.columns]
        # A test file may lack the key: then no row repeats another.
        hashes = pl.DataFrame(texts).hash_rows(plan.seed).to_numpy() if texts else rows.astype(np.uint64)
        columns["hash"] = hashes[kept]
    for column, values in zip(plan.outlier_columns, cleaned.outliers, strict=True):
        columns[within_bounds(column)] = values[kept]
    for number, keys in enumerate(cleaned.order):
        columns[order_key(number)] = keys[kept]
    if negatives is not None:
        columns["negatives"] = negatives
    return pa.table(columns)


def text_of_raw(series: pl.Series) -> pl.Series:
    """As text, untouched where it is text: exact duplicates are equal to the letter."""
    return series if series.dtype == pl.String else text_of(series)


def within_bounds(column: str) -> str:
    """Name of a column that rows carry for its outlier rules."""
    return f"outlier {column}"


def order_key(number: int) -> str:
    """Name of a column that orders rows of the same time, the first key being 0."""
    return f"order {number}"


def _negatives(cleaned: Cleaned, kept: Array, items: pa.Table) -> tuple[pa.Array | None, pa.Table]:
    """Listed items as positions in `items`, which grows by those that are new."""
    if cleaned.negatives is None:
        return None, items
    lists = cleaned.negatives.to_arrow().cast(pa.large_list(pa.large_string())).take(pa.array(kept))
    lists = lists.fill_null(pa.scalar([], lists.type))
    known = pl.Series(pl.from_arrow(items["id"].combine_chunks()))
    flat = pl.Series(pl.from_arrow(lists.flatten()), dtype=pl.String)
    new = flat.unique(maintain_order=True).filter(
        flat.unique(maintain_order=True).is_in(known.implode()).not_()
    )
    texts = pl.concat([known, new])
    position = flat.replace_strict(texts, np.arange(len(texts), dtype=np.uint32), return_dtype=pl.UInt32)
    added = pa.table({"id": _text(new)})
    offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))])
    coded = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), position.to_arrow())
    return coded, pa.concat_tables([items, added], promote_options="default")


def _write_batches(path: str, table: pa.Table, counts: Array) -> None:
    """An Arrow file with one record batch a bucket, some of them empty."""
    whole = table.combine_chunks().to_batches()
    batch = whole[0] if whole else pa.RecordBatch.from_pylist([], table.schema)
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        start = 0
        for count in counts.tolist():
            writer.write_batch(batch.slice(start, count))
            start += count
