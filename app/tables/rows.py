"""A store of rows on disk, opened with mmap: float32, float16, int8 or int4. numpy alone.

Files of a store NAME in a folder:

    NAME.json     {"rows": N, "width": D, "precision": ...}
    NAME.rows     N rows one after another, little-endian: D float32, float16 or int8, or
                  ceil(D / 2) bytes of int4 (value + 8, the even column in the low half)
    NAME.scales   int8 and int4: N float32; a value is its integer times the scale of its row

Integers are symmetric: the scale of a row is its largest magnitude over 127 (int8) or 7
(int4), so an error is at most half a scale. A reader touches only the rows that it gathers,
and all processes of a machine share one copy in the page cache.
"""

from __future__ import annotations

import json
import mmap
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from app.errors import ArtifactError, DataError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Precision = Literal["float32", "float16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BLOCK = 1 << 16  # rows converted at a time

_STORED = {"float32": "<f4", "float16": "<f2", "int8": "i1", "int4": "u1"}
_LARGEST = {"int8": 127, "int4": 7}
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # so that a row of tiny values divides
# Both int4 of a byte as two float32 side by side, looked up as one 64-bit number.
_PAIRS = np.stack([(np.arange(256) & 15) - 8.0, (np.arange(256) >> 4) - 8.0], 1).astype(np.float32)
_PAIRS_64 = _PAIRS.view(np.uint64).ravel()


def row_bytes(width: int, precision: Precision) -> int:
    """Bytes that one row takes on disk, its scale included."""
    if precision in _LARGEST:
        return 4 + (width if precision == "int8" else (width + 1) // 2)
    return width * int(np.dtype(_STORED[precision]).itemsize)


def write_rows(folder: Path, name: str, rows: Array, precision: Precision) -> None:
    """Write `rows` (N, D) as the store `name`, a block of rows at a time.

    Raises:
        DataError: a row holds NaN, an infinity or, for float16, a value beyond 65504.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, width = rows.shape
    with (folder / f"{name}.rows").open("wb") as data, (folder / f"{name}.scales").open("wb") as scales:
        for start in range(0, count, BLOCK):
            block = np.ascontiguousarray(rows[start : start + BLOCK], np.float32)
            stored, scale = _encode(block, precision)
            _refuse(block, stored, name, start)
            data.write(stored.tobytes())
            scales.write(scale.tobytes())
    if precision not in _LARGEST:
        (folder / f"{name}.scales").unlink()
    shape = {"rows": count, "width": width, "precision": precision}
    (folder / f"{name}.json").write_text(json.dumps(shape) + "\n")


def _encode(block: Floats, precision: Precision) -> tuple[Array, Array]:
    if precision not in _LARGEST:
        with np.errstate(over="ignore"):
            return block.astype(_STORED[precision]), np.zeros(0, "<f4")
    largest = _LARGEST[precision]
    peak = np.abs(block).max(1, initial=0.0)
    scale = np.maximum(peak / largest, _SMALLEST_SCALE).astype("<f4")
    with np.errstate(invalid="ignore"):  # NaN and infinities are refused by the caller
        integers = np.clip(np.rint(block / scale[:, None]), -largest, largest).astype(np.int8)
    return (integers if precision == "int8" else _pack(integers)), scale


def _pack(integers: Array) -> Array:
    if integers.shape[1] % 2:
        integers = np.pad(integers, ((0, 0), (0, 1)))
    halves = (integers + 8).astype(np.uint8)
    return halves[:, 0::2] | (halves[:, 1::2] << 4)


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
    """N rows of D floats, read-only. Safe to share between threads."""

    def __init__(
        self, folder: Path, name: str, precision: Precision, data: Array, scales: Floats | None, width: int
    ) -> None:
        self.folder, self.name, self.precision, self.width = folder, name, precision, width
        self._data, self._scales = data, scales

    @classmethod
    def open(cls, folder: Path, name: str) -> Rows:
        """Map the store `name`; reads no row yet.

        Raises:
            ArtifactError: a file is missing, damaged or of the wrong size; it is named.
        """
        count, width, precision = _shape(folder / f"{name}.json")
        columns = (width + 1) // 2 if precision == "int4" else width
        data = _map(folder / f"{name}.rows", (count, columns), _STORED[precision])
        scales = _map(folder / f"{name}.scales", (count,), "<f4") if precision in _LARGEST else None
        return cls(folder, name, precision, data, scales, width)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def bytes(self) -> int:
        """Size of rows and scales on disk."""
        return int(self._data.nbytes) + (int(self._scales.nbytes) if self._scales is not None else 0)

    def gather(self, ids: Array) -> Floats:
        """Rows of `ids` (…) as (…, D) float32, in memory of its own.

        Raises:
            IndexError: an id is not a row.
        """
        scales = None if self._scales is None else self._scales.take(ids)
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
        """Copy the store as it is, under another name."""
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("json", "rows", "scales"):
            source = self.folder / f"{self.name}.{ending}"
            if source.exists():
                shutil.copyfile(source, folder / f"{name}.{ending}")

    def _decode(self, stored: Array, scales: Floats | None) -> Floats:
        if scales is None:
            return stored.astype(np.float32, copy=False)
        if self.precision == "int8":
            return np.multiply(stored, scales[..., None], dtype=np.float32)
        pairs = _PAIRS_64.take(stored).view(np.float32)
        return np.multiply(pairs[..., : self.width], scales[..., None])


def _shape(path: Path) -> tuple[int, int, Precision]:
    try:
        content = json.loads(path.read_bytes())
        count, width, precision = content["rows"], content["width"], content["precision"]
        if precision not in PRECISIONS or min(int(count), int(width)) < 0:
            raise ValueError(f"{count} rows of {width} {precision}")
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"the file is damaged ({error})") from None
    return int(count), int(width), precision


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
