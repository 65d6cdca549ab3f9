"""Puts the buckets' columns together: plain files, copied one after another."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from app.data.dataset import COLUMNS, column_type
from app.data.prepare.finalize import PARTS

Array = npt.NDArray[Any]
_COPY = 1 << 22


def join_parts(scratch: Path, out: Path, rows: dict[str, list[int]], width: int) -> None:
    """Write train/, valid/ and test/ from the buckets' files, which are removed.

    Args:
        scratch: where the buckets wrote.
        out: the data set.
        rows: events of each part, by bucket.
        width: M, listed negatives of a test row; 0: none.
    """
    for part in PARTS:
        (out / part).mkdir()
        buckets = range(len(rows[part]))
        for name in COLUMNS:
            files = [scratch / part / f"{name}.{b}" for b in buckets]
            _join(files, out / part / f"{name}.npy", column_type(name), (sum(rows[part]),))
        counts = [np.fromfile(scratch / part / f"indptr.{b}", np.int64) for b in buckets]
        # Row 0 is the unknown user, who has no events: indptr[0] = indptr[1] = 0.
        np.save(out / part / "indptr.npy", np.concatenate([[0, 0], np.cumsum(np.concatenate(counts))]))
    if width:
        files = [scratch / "test" / f"negatives.{b}" for b in range(len(rows["test"]))]
        _join(files, out / "test" / "negatives.npy", np.dtype(np.int32), (sum(rows["test"]), width))


def _join(files: Iterable[Path], target: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
    with target.open("wb") as sink:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(sink, header)
        for file in files:
            with file.open("rb") as source:
                shutil.copyfileobj(source, sink, _COPY)
            file.unlink()


def write_strings(folder: Path, parts: Iterable[pa.Array]) -> int:
    """Write Strings from arrays of text, row 0 "" first; returns the number of rows."""
    folder.mkdir()
    lengths = [np.zeros(1, np.int64)]
    with (folder / "raw").open("wb") as raw:
        for part in parts:
            array = part.cast(pa.large_string())
            offsets = np.frombuffer(array.buffers()[1], np.int64)[
                array.offset : array.offset + len(array) + 1
            ]
            raw.write(memoryview(array.buffers()[2] or b"")[offsets[0] : offsets[-1]] if len(array) else b"")
            lengths.append(np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    np.save(folder / "offsets.npy", offsets)
    _join([folder / "raw"], folder / "bytes.npy", np.dtype(np.uint8), (int(offsets[-1]),))
    return len(offsets) - 1


def fill_values(out: Path) -> None:
    """Replace missing values by the median of the training part."""
    median = np.nanmedian(np.load(out / "train" / "value.npy", mmap_mode="r"))
    fill = np.float32(0 if np.isnan(median) else median)
    for part in PARTS:
        values = np.load(out / part / "value.npy", mmap_mode="r+")
        for start in range(0, len(values), _COPY):
            block = values[start : start + _COPY]
            block[np.isnan(block)] = fill
        values.flush()
