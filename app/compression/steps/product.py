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

    Returns:
        product: {kind: root mean square error over that of the values} of what was encoded.

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
    rows, errors, made = dict(work.rows), {}, {}
    for kind, values in work.rows.items():
        if not isinstance(values, np.ndarray) or not values.shape[1]:
            continue
        if id(values) not in made:
            parts = min(settings.codes, max(1, values.shape[1] // 2))  # a column of its own is an int8
            if len(values) < settings.words:
                continue
            refuse_not_finite(values, kind)
            codes = learn_codes(values, parts, settings.words, work.recipe.seed, _weight(work, kind))
            if codes.bytes >= len(values) * row_bytes(values.shape[1], "int8"):
                continue
            made[id(values)] = CodedRows(codes, values)
            errors[kind] = _error(values, codes.gather(np.arange(len(values))))
        rows[kind] = made[id(values)]
    if not made:
        raise RecipeError(
            f"{settings.codes} codes of {settings.words} codewords make no table smaller than int8 does",
            where="compress.product",
            remedy="lower compress.product.codes or words, or leave 'product' out of compress.steps",
        )
    work.put_rows(rows)
    return {"product": errors}


def _weight(work: Work, kind: str) -> Array | None:
    """How much the error of each item counts: more for what is met more often; users count alike."""
    if kind == "user":
        return None
    counts = work.dataset.popularity
    weight: Array = np.sqrt(counts + 1.0)
    return weight


def _error(values: Array, restored: Array) -> float:
    total = float(np.square(values, dtype=np.float64).sum())
    error = float(np.square(values - restored, dtype=np.float64).sum())
    return (error / total) ** 0.5 if total else 0.0
