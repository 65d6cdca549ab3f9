"""Rows of fewer columns: their coefficients in the subspace that holds most of them (app.tables.projected).

A bundle multiplies by the basis in its graphs, where rows enter and where a state leaves, so that rows stay
narrow in the process, too, and inner products and an index are narrower.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.compression.rows import Packed, ProjectedRows
from app.compression.work import Work
from app.data.dataset import Array
from app.errors import RecipeError
from app.tables.form import row_bytes
from app.tables.projected import leading_basis
from app.tables.write import refuse_not_finite


def apply(work: Work) -> dict[str, Any]:
    """Keep the share compress.svd.columns of the columns of each kind, where that is smaller.

    Returns:
        svd: of each kind the columns before and after, and energy, the share of the sum of squares kept.

    Raises:
        DataError: a row holds NaN or an infinity.
        RecipeError: the model's rows hold ids, are product codes already, or no table becomes smaller.
    """
    if not work.model.quantisable:
        raise RecipeError(
            f"the rows of {work.source.name} hold ids, which lie in no subspace",
            where="compress.steps",
            remedy="leave out 'svd'",
        )
    made: dict[int, Packed] = {}
    for kind, rows in work.rows.items():
        if id(rows) not in made:
            made[id(rows)] = _projected(work, kind, rows)
    figures = {k: _figures(p) for k, r in work.rows.items() if isinstance(p := made[id(r)], ProjectedRows)}
    if not figures:
        raise RecipeError(
            f"fewer columns and their basis make no table of {work.source.name} smaller",
            where="compress.svd.columns",
            remedy="leave 'svd' out of compress.steps: it is for tables of many rows",
        )
    work.put_rows({kind: made[id(rows)] for kind, rows in work.rows.items()})
    return {"svd": figures}


def _projected(work: Work, kind: str, rows: Packed) -> Packed:
    """The rows by their coefficients; as they are where these and the basis would not be smaller."""
    if not isinstance(rows, np.ndarray):
        raise RecipeError(
            "rows that are no plain numbers any more cannot be projected",
            where="compress.steps",
            remedy="name 'svd' before 'product'",
        )
    (count, width), compress = rows.shape, work.recipe.compress
    columns = max(1, round(compress.svd.columns * width))
    before, after = (row_bytes(size, work.precision, compress.group) for size in (width, columns))
    if count * (before - after) <= 4 * columns * width:
        return rows
    refuse_not_finite(rows, kind)
    basis = leading_basis(rows, columns, work.recipe.seed)
    return ProjectedRows(rows @ basis.T, basis, rows)


def _figures(rows: ProjectedRows) -> dict[str, float]:
    before, after = (float(np.square(part, dtype=np.float64).sum()) for part in (rows.values, _numbers(rows)))
    columns, width = rows.basis.shape
    return {"before": width, "after": columns, "energy": after / before if before else 1.0}


def _numbers(rows: ProjectedRows) -> Array:
    assert isinstance(rows.coefficients, np.ndarray)
    return rows.coefficients
