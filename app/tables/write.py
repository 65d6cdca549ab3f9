"""Writes stores of rows, a block of rows at a time. numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from app.errors import DataError
from app.tables.codes import WORD, Codes
from app.tables.form import PRODUCT, STORED, Form, Precision
from app.tables.projected import Projected
from app.tables.quantise import LEVELS, SCALE, Integers, quantise, unit_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Stored = Array | Codes | Projected  # what a store is written from
BLOCK = 1 << 16  # rows converted at a time


def write_rows(folder: Path, name: str, rows: Array, precision: Precision, group: int = 0) -> None:
    """Write `rows` (N, D) as the store `name`, a block of rows at a time.

    Args:
        group: columns that share a scale, of integers; 0: the whole row.

    Raises:
        DataError: a row holds NaN, an infinity or, for float16, a value beyond 65504.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, width = rows.shape
    unit = unit_of(rows, cast(Integers, precision), BLOCK) if precision in LEVELS else 1.0
    form = Form(count, width, precision, group, unit)
    with (folder / f"{name}.rows").open("wb") as data, (folder / f"{name}.scales").open("wb") as scales:
        for start in range(0, count, BLOCK):
            block = np.ascontiguousarray(rows[start : start + BLOCK], np.float32)
            stored, scale = _encode(block, form)
            refuse_not_finite(block, name, start, stored)
            data.write(stored.tobytes())
            scales.write(scale.tobytes())
    if not form.scales:
        (folder / f"{name}.scales").unlink()
    describe(folder, name, form)


def write_codes(folder: Path, name: str, codes: Codes) -> None:
    """Write rows as product codes; the codewords are stored in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    codes.codes.tofile(folder / f"{name}.rows")
    codes.words.astype(WORD).tofile(folder / f"{name}.words")
    count, parts = codes.codes.shape
    describe(folder, name, Form(count, codes.width, PRODUCT, codes=parts, words=codes.words.shape[1]))


def write_stores(folder: Path, stores: Mapping[str, Stored], precision: Precision, group: int = 0) -> None:
    """Write each, codes as they are; rows that equal those of one before take no room of their own."""
    written: dict[str, Stored] = {}
    for name, rows in stores.items():
        same = next((other for other, before in written.items() if _equal(before, rows)), "")
        if same:
            (folder / f"{name}.json").write_text(json.dumps({"same_as": same}) + "\n")
            continue
        written[name] = rows
        _write(folder, name, rows, precision, group)


def _write(folder: Path, name: str, rows: Stored, precision: Precision, group: int) -> None:
    if isinstance(rows, Codes):
        write_codes(folder, name, rows)
    elif isinstance(rows, Projected):
        _write(folder, name, rows.rows, precision, group)
        rows.basis.astype("<f4").tofile(folder / f"{name}.basis")
        form = Form(**json.loads((folder / f"{name}.json").read_bytes()))
        describe(folder, name, replace(form, full_width=rows.basis.shape[1]))
    else:
        write_rows(folder, name, rows, precision, group)


def _equal(before: Stored, rows: Stored) -> bool:
    if isinstance(before, Projected) and isinstance(rows, Projected):
        return before.rows is rows.rows and before.basis is rows.basis
    if not isinstance(before, np.ndarray) or not isinstance(rows, np.ndarray):
        return before is rows
    return bool(rows.size) and (before is rows or np.array_equal(before, rows))


def describe(folder: Path, name: str, form: Form) -> None:
    """Write NAME.json; without a basis as it was before there were any, so that older versions read it."""
    described = {key: value for key, value in asdict(form).items() if key != "full_width" or value}
    (folder / f"{name}.json").write_text(json.dumps(described) + "\n")


def _encode(block: Floats, form: Form) -> tuple[Array, Array]:
    if form.precision not in LEVELS:
        with np.errstate(over="ignore"):
            return block.astype(STORED[form.precision]), np.zeros(0, SCALE)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are refused by the caller
        return quantise(block, cast(Integers, form.precision), form.group, form.unit)


def refuse_not_finite(block: Array, name: str, start: int = 0, stored: Array | None = None) -> None:
    """Raise where a row holds what is no number, before or after it is stored.

    Args:
        block: (n, D) rows of the store `name`, from its row `start` on.
        stored: the same as they are stored, where that are floats.

    Raises:
        DataError: the first such row, by its number.
    """
    good = np.isfinite(block).all(1)
    if stored is not None and stored.dtype.kind == "f":
        good &= np.isfinite(stored).all(1)
    if good.all():
        return
    row = int(np.flatnonzero(~good)[0])
    what = "NaN or an infinity"
    if np.isfinite(block[row]).all():
        what = f"{np.abs(block[row]).max():.6g}, too large for float16"
    raise DataError(
        f"row {start + row} holds {what}",
        where=f"rows of {name}",
        remedy="training diverged: lower train.learning_rate, or set train.clip_norm",
    )
