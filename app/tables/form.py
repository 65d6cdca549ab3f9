"""How a store of rows lies on disk. numpy alone.

Files of a store NAME in a folder:

    NAME.json     {"rows": N, "width": D, "precision": ..., "group": g, "unit": u, "codes": M, "words": W,
                  "full_width": F}, or {"same_as": OTHER} alone, where the rows are those of the
                  store OTHER beside it
    NAME.rows     N rows one after another, little-endian: D float32, float16 or int8, or
                  ceil(D / 2) bytes of int4 (level + 8, the even column in the low half), or
                  ceil(D / 4) bytes of int2 (level + 1.5, the first column in the lowest bits), or
                  M bytes of product codes
    NAME.scales   integers: N x G float16, one for each group of g columns (0: for the row); a value is its
                  level times the scale times u
    NAME.words    product codes: M x W x w float16, the codewords of each code (app.tables.codes)
    NAME.basis    where a full width F is given: D x F float32, which the D columns are multiplied by
                  (app.tables.projected)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from app.tables.codes import runs
from app.tables.quantise import LEVELS, SCALE, groups

Precision = Literal["float32", "float16", "int8", "int4", "int2"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PRODUCT: Literal["product"] = "product"
STORED = {"float32": "<f4", "float16": "<f2", "int8": "i1", "int4": "u1", "int2": "u1", "product": "u1"}


@dataclass(frozen=True)
class Form:
    """How rows are stored.

    Attributes:
        group: columns that share a scale, of integers; 0: the whole row.
        unit: of the scales.
        codes: M, codes of a row; of product codes alone.
        words: W, codewords of a code.
        full_width: F, columns of the rows that a basis makes of the stored ones; 0: there is no basis.
    """

    rows: int
    width: int
    precision: Precision | Literal["product"]
    group: int = 0
    unit: float = 1.0
    codes: int = 0
    words: int = 0
    full_width: int = 0

    @property
    def columns(self) -> int:
        """Numbers of NAME.rows in a row."""
        if self.precision == PRODUCT:
            return self.codes
        return LEVELS[self.precision].bytes(self.width) if self.precision in LEVELS else self.width

    @property
    def scales(self) -> int:
        """Scales of a row; 0 where numbers are floats."""
        return groups(self.width, self.group) if self.precision in LEVELS else 0

    @property
    def words_shape(self) -> tuple[int, int, int]:
        """(M, W, w) of the codewords."""
        return self.codes, self.words, runs(self.width, self.codes)[0].stop if self.codes else 0


def row_bytes(width: int, precision: Precision, group: int = 0) -> int:
    """Bytes that one row takes on disk, its scales included."""
    form = Form(1, width, precision, group)
    return form.columns * np.dtype(STORED[precision]).itemsize + form.scales * SCALE.itemsize
