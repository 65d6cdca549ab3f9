"""A .npy file that is written a piece at a time, so that an array of any length takes little memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from app.bundle.format.layout import Array


class GrowingArray:
    """Writes an array (N,) of unknown length; the file is whole once the context is left.

    Args:
        path: of the .npy file.
        kind: type of the values.
    """

    def __init__(self, path: Path, kind: np.dtype[Any]) -> None:
        self._kind, self._length = kind, 0
        self._file: IO[bytes] = path.open("wb")
        self._write_header()

    def append(self, values: Array) -> None:
        """Write values (M,) behind those written before."""
        self._file.write(np.ascontiguousarray(values, self._kind).tobytes())
        self._length += len(values)

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        # The header of an array of one dimension has room for any length, so that it keeps its size.
        shape = (self._length,)
        described = {"descr": npy.dtype_to_descr(self._kind), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, described)
