"""Rows by coefficients: the basis of least error, and the store of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.errors import ArtifactError
from app.tables.form import Precision
from app.tables.projected import Floats, Projected, leading_basis
from app.tables.rows import Rows
from app.tables.write import write_stores
from tests.unit.test_codes import some_codes


def low_rank(rows: int = 300, width: int = 9, rank: int = 3) -> Floats:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(rows, rank)), rng.normal(size=(rank, width))
    return np.asarray(left @ right, np.float32)


def test_rows_of_low_rank_lose_nothing() -> None:
    rows = low_rank()
    basis = leading_basis(rows, 3, seed=0)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(rows @ basis.T @ basis, rows, atol=1e-5)


def test_the_error_is_that_of_the_singular_values_left_out() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    values = np.linalg.svd(rows, compute_uv=False)
    for columns in range(1, 9):
        basis = leading_basis(rows, columns, seed=0)
        error = float(np.square(rows @ basis.T @ basis - rows).sum())
        assert error == pytest.approx(float(np.square(values[columns:]).sum()), rel=1e-4, abs=1e-4)


def test_columns_carry_alike() -> None:
    rows = np.random.default_rng(1).normal(size=(2000, 32)).astype(np.float32) * np.geomspace(100, 1, 32)
    coefficients = rows @ leading_basis(rows, 16, seed=0).T
    peaks = np.abs(coefficients).max(1) / np.abs(coefficients).mean(1)
    plain = np.abs(rows[:, :16]).max(1) / np.abs(rows[:, :16]).mean(1)
    assert np.median(peaks) < 0.8 * np.median(plain), "a scale for a row is used up by no column alone"


@pytest.mark.parametrize("precision", ["float32", "int4"])
def test_a_store_gives_whole_rows_and_its_copy_coefficients(tmp_path: Path, precision: Precision) -> None:
    rows = low_rank()
    basis = leading_basis(rows, 4, seed=0)
    projected = Projected(rows @ basis.T, basis)
    write_stores(tmp_path, {"item": projected, "history": replace(projected)}, precision)
    item, history = (Rows.open(tmp_path, name) for name in ("item", "history"))
    assert (item.width, history.same_as, history.bytes) == (9, "item", 0)
    assert item.bytes == sum((tmp_path / f"item.{part}").stat().st_size for part in ("rows", "basis")) + (
        (tmp_path / "item.scales").stat().st_size if precision == "int4" else 0
    )
    np.testing.assert_allclose(history.all(), rows, atol=1e-5 if precision == "float32" else 1.5)
    ids = np.array([[3, 299], [0, 3]])
    np.testing.assert_allclose(item.gather(ids), item.all()[ids], atol=1e-5)
    for store in (item, history):
        store.copy_to(tmp_path / "copy", store.name)
    copy = Rows.open(tmp_path / "copy", "history")
    assert copy.width == 4 and copy.basis is None
    np.testing.assert_allclose(copy.all() @ basis, item.all(), atol=1e-5)


def test_coefficients_may_be_codes(tmp_path: Path) -> None:
    codes = some_codes(20, 4, 2, 8)
    basis = leading_basis(low_rank(), 4, seed=0)
    write_stores(tmp_path, {"item": Projected(codes, basis)}, "int8")
    np.testing.assert_array_equal(Rows.open(tmp_path, "item").all(), codes.gather(np.arange(20)) @ basis)


def test_a_basis_that_does_not_fit_is_named(tmp_path: Path) -> None:
    basis = leading_basis(low_rank(), 4, seed=0)
    write_stores(tmp_path, {"item": Projected(low_rank() @ basis.T, basis)}, "int8")
    (tmp_path / "item.basis").write_bytes(b"\0" * 8)
    with pytest.raises(ArtifactError, match=r"item\.basis: 8 bytes, expected 144"):
        Rows.open(tmp_path, "item")
