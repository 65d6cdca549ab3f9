"""Rows become product codes: of each kind that has enough of them (app.tables.codes)."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.compression.packed import CodedRows
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
    rows, made = dict(work.rows), {}
    for kind, values in work.rows.items():
        if isinstance(values, np.ndarray) and id(values) not in made:
            made[id(values)] = _coded(work, kind, values)
        rows[kind] = made.get(id(values)) or values
    if not any(made.values()):
        raise RecipeError(
            f"{settings.codes} codes of {settings.words} codewords make no table smaller than int8 does",
            where="compress.product",
            remedy="lower compress.product.codes or words, or leave 'product' out of compress.steps",
        )
    work.put_rows(rows)
    return {}


def _coded(work: Work, kind: str, values: Array) -> CodedRows | None:
    """The rows as codes; None where they are too few for that to make them smaller than int8 does."""
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
