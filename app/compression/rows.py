"""The forms that the rows of a kind take on their way through the steps of compression."""

from __future__ import annotations

from dataclasses import dataclass

from app.data.dataset import Array
from app.tables.codes import Codes
from app.tables.projected import Floats, Projected
from app.tables.write import Stored


@dataclass(frozen=True)
class CodedRows:
    """Product codes, and the rows (N, D) float32 that they stand for."""

    codes: Codes
    values: Array


@dataclass(frozen=True)
class ProjectedRows:
    """Coefficients, a basis (d, D) whose rows are orthonormal, and the rows (N, D) that they stand for."""

    coefficients: Array | CodedRows
    basis: Floats
    values: Array


Packed = Array | CodedRows | ProjectedRows


def arrays_of(rows: Packed) -> list[Array]:
    """What rows consist of."""
    if isinstance(rows, ProjectedRows):
        return [*arrays_of(rows.coefficients), rows.basis, rows.values]
    return [rows.codes.codes, rows.codes.words, rows.values] if isinstance(rows, CodedRows) else [rows]


def as_stored(rows: Packed) -> Stored:
    """What a store is written from."""
    if isinstance(rows, ProjectedRows):
        inner = rows.coefficients
        return Projected(inner.codes if isinstance(inner, CodedRows) else inner, rows.basis)
    return rows.codes if isinstance(rows, CodedRows) else rows


def values_of(rows: Packed) -> Array:
    """The rows (N, D) as floats, of codes and coefficients those that they stand for."""
    return rows.values if isinstance(rows, CodedRows | ProjectedRows) else rows
