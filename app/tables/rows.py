"""A store of rows on disk, opened with mmap: float32, float16, int8, int4 or int2. numpy alone.

Files of a store NAME in a folder:

    NAME.json     {"rows": N, "width": D, "precision": ..., "group": g, "unit": u}, or
                  {"same_as": OTHER} alone, where the rows are those of the store OTHER beside it
    NAME.rows     N rows one after another, little-endian: D float32, float16 or int8, or
                  ceil(D / 2) bytes of int4 (level + 8, the even column in the low half), or
                  ceil(D / 4) bytes of int2 (level + 1.5, the first column in the lowest bits)
    NAME.scales   integers: N x G float16, one for each group of g columns (0: for the row); a value is its
                  level times the scale times u

A reader touches only the rows that it gathers, and all processes of a machine share one copy in the page
cache.
"""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from app.errors import ArtifactError, DataError
from app.tables.quantise import LEVELS, SCALE, Integers, groups, quantise, restore, unit_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Precision = Literal["float32", "float16", "int8", "int4", "int2"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BLOCK = 1 << 16  # rows converted at a time

_STORED = {"float32": "<f4", "float16": "<f2", "int8": "i1", "int4": "u1", "int2": "u1"}


@dataclass(frozen=True)
class Form:
    """How rows are stored.

    Attributes:
        group: columns that share a scale, of integers; 0: the whole row.
        unit: of the scales.
    """

    rows: int
    width: int
    precision: Precision
    group: int = 0
    unit: float = 1.0

    @property
    def columns(self) -> int:
        """Numbers of NAME.rows in a row."""
        return LEVELS[self.precision].bytes(self.width) if self.precision in LEVELS else self.width

    @property
    def scales(self) -> int:
        """Scales of a row; 0 where numbers are floats."""
        return groups(self.width, self.group) if self.precision in LEVELS else 0


def row_bytes(width: int, precision: Precision, group: int = 0) -> int:
    """Bytes that one row takes on disk, its scales included."""
    form = Form(1, width, precision, group)
    return form.columns * np.dtype(_STORED[precision]).itemsize + form.scales * SCALE.itemsize


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
            _refuse(block, stored, name, start)
            data.write(stored.tobytes())
            scales.write(scale.tobytes())
    if not form.scales:
        (folder / f"{name}.scales").unlink()
    shape = {"rows": count, "width": width, "precision": precision, "group": group, "unit": unit}
    (folder / f"{name}.json").write_text(json.dumps(shape) + "\n")


def write_stores(folder: Path, stores: Mapping[str, Array], precision: Precision, group: int = 0) -> None:
    """`write_rows` of each; rows that equal those of one before take no room of their own."""
    written: dict[str, Array] = {}
    for name, rows in stores.items():
        same = next((other for other, before in written.items() if np.array_equal(before, rows)), "")
        if same and rows.size:
            (folder / f"{name}.json").write_text(json.dumps({"same_as": same}) + "\n")
        else:
            write_rows(folder, name, rows, precision, group)
            written[name] = rows


def _encode(block: Floats, form: Form) -> tuple[Array, Array]:
    if form.precision not in LEVELS:
        with np.errstate(over="ignore"):
            return block.astype(_STORED[form.precision]), np.zeros(0, SCALE)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinities are refused by the caller
        return quantise(block, cast(Integers, form.precision), form.group, form.unit)


def _refuse(block: Floats, stored: Array, name: str, start: int) -> None:
    good = np.isfinite(block).all(1)
    if stored.dtype.kind == "f":
        good &= np.isfinite(stored).all(1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        what = (
            "NaN or an infinity"
            if not np.isfinite(block[row]).all()
            else f"{np.abs(block[row]).max():.6g}, too large for float16"
        )
        raise DataError(
            f"row {start + row} holds {what}",
            where=f"rows of {name}",
            remedy="training diverged: lower train.learning_rate, or set train.clip_norm",
        )


class Rows:
    """N rows of D floats, read-only. Safe to share between threads.

    Attributes:
        same_as: the store whose rows these are; "": they are its own.
    """

    def __init__(
        self, folder: Path, name: str, form: Form, data: Array, scales: Array | None, same_as: str = ""
    ) -> None:
        self.folder, self.name, self.form, self.same_as = folder, name, form, same_as
        self.precision, self.width = form.precision, form.width
        self._data, self._scales = data, scales

    @classmethod
    def open(cls, folder: Path, name: str) -> Rows:
        """Map the store `name`; reads no row yet.

        Raises:
            ArtifactError: a file is missing, damaged or of the wrong size; it is named.
        """
        same_as = _same_as(folder / f"{name}.json")
        files = folder / (same_as or name)
        form = _form(files.with_name(f"{files.name}.json"))
        data = _map(files.with_name(f"{files.name}.rows"), (form.rows, form.columns), _STORED[form.precision])
        scales = None
        if form.scales:
            scales = _map(files.with_name(f"{files.name}.scales"), (form.rows, form.scales), SCALE.str)
        return cls(folder, name, form, data, scales, same_as)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def bytes(self) -> int:
        """Size of rows and scales on disk; 0 where they are another store's."""
        if self.same_as:
            return 0
        return int(self._data.nbytes) + (int(self._scales.nbytes) if self._scales is not None else 0)

    def gather(self, ids: Array) -> Floats:
        """Rows of `ids` (…) as (…, D) float32, in memory of its own.

        Raises:
            IndexError: an id is not a row.
        """
        scales = None if self._scales is None else self._scales.take(ids, 0)
        return self._decode(self._data.take(ids, 0), scales)

    def block(self, start: int, stop: int) -> Floats:
        """Rows `start` to `stop` as (n, D) float32; a view where they are stored so."""
        return self._decode(
            self._data[start:stop], None if self._scales is None else self._scales[start:stop]
        )

    def all(self) -> Floats:
        """All rows (N, D) as float32; a view where they are stored so."""
        return self.block(0, len(self))

    def copy_to(self, folder: Path, name: str) -> None:
        """Copy the store as it is, under another name; what it is the same as has to be copied, too."""
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("json", "rows", "scales"):
            source = self.folder / f"{self.name}.{ending}"
            if source.exists():
                shutil.copyfile(source, folder / f"{name}.{ending}")

    def _decode(self, stored: Array, scales: Array | None) -> Floats:
        if scales is None:
            return stored.astype(np.float32, copy=False)
        form = self.form
        return restore(stored, scales, cast(Integers, form.precision), form.width, form.group, form.unit)


def _same_as(path: Path) -> str:
    """The other store that NAME.json names; "" where it describes its own."""
    other = _content(path).get("same_as", "")
    if other and (not isinstance(other, str) or Path(other).name != other or other == path.stem):
        raise _damaged(path, f"the file is damaged (same as {other!r})")
    return str(other)


def _form(path: Path) -> Form:
    try:
        form = Form(**_content(path))
        if form.precision not in PRECISIONS or min(form.rows, form.width, form.group) < 0:
            raise ValueError(f"{form.rows} rows of {form.width} {form.precision}")
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"the file is damaged ({error})") from None
    return form


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except ValueError as error:
        raise _damaged(path, f"the file is damaged ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(path, "the file is damaged (no table of settings)")
    return content


def _map(path: Path, shape: tuple[int, ...], kind: str) -> Array:
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    if path.stat().st_size != expected:
        raise _damaged(path, f"{path.stat().st_size} bytes, expected {expected}")
    if expected == 0:  # nothing to map
        return np.zeros(shape, kind)
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, kind).reshape(shape)


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(what, where=str(path), remedy="copy the artefact again or make it again")
