"""Rows of fewer columns: the leading right singular vectors of a table span a subspace, and rows lie in it.

A table R (N, D) is nearly C B, with coefficients C (N, d) and a basis B (d, D) of orthonormal rows. Of all
bases the leading right singular vectors leave the smallest squared error (Eckart and Young 1936, "The
approximation of one matrix by another of lower rank"). Lengths and inner products of rows are those of their
coefficients. Within its subspace the basis is turned at random, so that the columns carry alike (as Tseng et
al. 2024, "QuIP#", do with weights): where integers share a scale, the leading columns would leave few levels
to the others. numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.tables.codes import Codes

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
BLOCK = 1 << 16  # rows in double precision at a time


@dataclass(frozen=True)
class Projected:
    """N rows by their coefficients.

    Attributes:
        rows: (N, d) float32, or product codes of that.
        basis: (d, D) float32, whose rows are orthonormal.
    """

    rows: Array | Codes
    basis: Floats


def leading_basis(rows: Array, columns: int, seed: int) -> Floats:
    """A basis (columns, D) of what the leading right singular vectors of rows (N, D) span.

    Args:
        columns: at most D.
        seed: of the turn.
    """
    width = rows.shape[1]
    gram = np.zeros((width, width))
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].astype(np.float64)
        gram += block.T @ block
    vectors = np.linalg.eigh(gram)[1][:, ::-1]  # eigenvalues ascend
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(columns, columns)))[0]
    return np.ascontiguousarray(turn @ vectors[:, :columns].T, np.float32)
