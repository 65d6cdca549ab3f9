"""A store of rows on disk, opened with mmap; its files are described in app.tables.form. numpy alone.

A reader touches only the rows that it gathers, and all processes of a machine share one copy in the page
cache.
"""

from __future__ import annotations

import json
import mmap
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from app.errors import ArtifactError
from app.tables.codes import MOST_WORDS, WORD, Codes
from app.tables.form import PRECISIONS, PRODUCT, STORED, Form
from app.tables.quantise import SCALE, Integers, restore
from app.tables.write import describe

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


class Rows:
    """N rows of D floats, read-only. Safe to share between threads.

    Attributes:
        width: D; where there is a basis, that of the rows which it makes.
        same_as: the store whose rows these are; "": they are its own.
        codes: the product codes that the rows are stored as; None: numbers.
        basis: what stored rows are multiplied by (app.tables.projected); None: they are stored whole.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        form: Form,
        data: Array,
        scales: Array | None,
        codes: Codes | None,
        same_as: str = "",
        basis: Array | None = None,
    ) -> None:
        self.folder, self.name, self.form, self.same_as = folder, name, form, same_as
        self.precision, self.width = form.precision, form.full_width or form.width
        self._data, self._scales, self.codes, self.basis = data, scales, codes, basis

    @classmethod
    def open(cls, folder: Path, name: str) -> Rows:
        """Map the store `name`; reads no row yet.

        Raises:
            ArtifactError: a file is missing, damaged or of the wrong size; it is named.
        """
        same_as = _same_as(folder / f"{name}.json")
        files = folder / (same_as or name)
        form = _form(files.with_name(f"{files.name}.json"))
        data = _map(files.with_name(f"{files.name}.rows"), (form.rows, form.columns), STORED[form.precision])
        scales = codes = basis = None
        if form.scales:
            scales = _map(files.with_name(f"{files.name}.scales"), (form.rows, form.scales), SCALE.str)
        if form.precision == PRODUCT:
            words = _map(files.with_name(f"{files.name}.words"), form.words_shape, WORD.str)
            codes = Codes(form.width, data, words.astype(np.float32))
        if form.full_width:
            basis = _map(files.with_name(f"{files.name}.basis"), (form.width, form.full_width), "<f4")
        return cls(folder, name, form, data, scales, codes, same_as, basis)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def bytes(self) -> int:
        """Size of rows, scales, codewords and basis on disk; 0 where they are another store's."""
        if self.same_as:
            return 0
        beside = sum(int(part.nbytes) for part in (self._scales, self.basis) if part is not None)
        return beside + (int(self._data.nbytes) if self.codes is None else self.codes.bytes)

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
        """Copy the store under another name; what it is the same as has to be copied, too.

        The basis is left out: the copy has the coefficients alone, for who multiplies by the basis elsewhere.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for ending in ("json", "rows", "scales", "words"):
            source = self.folder / f"{self.name}.{ending}"
            if source.exists():
                shutil.copyfile(source, folder / f"{name}.{ending}")
        if self.basis is not None and not self.same_as:
            describe(folder, name, replace(self.form, full_width=0))

    def _decode(self, stored: Array, scales: Array | None) -> Floats:
        rows = self._decode_stored(stored, scales)
        return rows if self.basis is None else rows @ self.basis

    def _decode_stored(self, stored: Array, scales: Array | None) -> Floats:
        if self.codes is not None:
            return self.codes.decode(stored)
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
        _refuse_impossible(form)
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"the file is damaged ({error})") from None
    return form


def _refuse_impossible(form: Form) -> None:
    sizes = (form.rows, form.width, form.group, form.codes, form.words, form.full_width)
    possible = form.precision in PRECISIONS
    if form.precision == PRODUCT:
        possible = 1 <= form.codes <= form.width and 1 <= form.words <= MOST_WORDS
    if not possible or min(sizes) < 0:
        raise ValueError(f"{form.rows} rows of {form.width} {form.precision}")


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
