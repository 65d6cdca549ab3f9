"""Rows become product codes: of each kind that has enough of them (app.tables.codes)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from app.compression.rows import CodedRows, Packed, ProjectedRows
from app.compression.work import Work
from app.data.dataset import Array
from app.errors import RecipeError
from app.tables.codes import learn_codes
from app.tables.form import row_bytes
from app.tables.write import refuse_not_finite


def apply(work: Work) -> dict[str, Any]:
    """Encode the rows of users, items and histories, where codes and codewords take less room than int8.

    Raises:
        DataError: a row holds NaN or an infinity.
        RecipeError: the model's rows hold ids or values that codes would spoil, or codes would make none of
            them smaller.
    """
    settings = work.recipe.compress.product
    if not work.model.quantisable:
        raise RecipeError(
            f"the rows of {work.source.name} hold ids, which are no sums of codewords",
            where="compress.steps",
            remedy="leave out 'product'",
        )
    made: dict[int, CodedRows | ProjectedRows | None] = {}
    for kind, values in work.rows.items():
        if id(values) not in made:
            made[id(values)] = _coded(work, kind, values)
    if all(rows is None for rows in made.values()):
        raise RecipeError(
            f"{settings.codes} codes of {settings.words} codewords make no table smaller than int8 does",
            where="compress.product",
            remedy="lower compress.product.codes or words, or leave 'product' out of compress.steps",
        )
    work.put_rows({kind: made[id(values)] or values for kind, values in work.rows.items()})
    return {}


def _coded(work: Work, kind: str, rows: Packed) -> CodedRows | ProjectedRows | None:
    """Rows or their coefficients as codes; None where that makes them no smaller than int8 does."""
    if isinstance(rows, CodedRows):
        return None
    if isinstance(rows, ProjectedRows):
        inner = _coded(work, kind, rows.coefficients)
        return replace(rows, coefficients=inner) if isinstance(inner, CodedRows) else None
    return _codes_of(work, kind, rows)


def _codes_of(work: Work, kind: str, values: Array) -> CodedRows | None:
    settings, (count, width) = work.recipe.compress.product, values.shape
    if not width or count < settings.words:
        return None
    refuse_not_finite(values, kind)
    parts = min(settings.codes, max(1, width // 2))  # a column of its own is an int8
    codes = learn_codes(values, parts, settings.words, work.recipe.seed, _weight(work, kind))
    return CodedRows(codes, values) if codes.bytes < count * row_bytes(width, "int8") else None


def _weight(work: Work, kind: str) -> Array | None:
    """How much the error of each item counts: more for what is met more often; users count alike."""
    if kind == "user":
        return None
    counts = work.dataset.popularity
    weight: Array = np.sqrt(counts + 1.0)
    return weight
