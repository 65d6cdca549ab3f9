"""What every precision of the row store promises: round trip, size, mmap, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import ArtifactError, DataError
from app.tables.rows import PRECISIONS, Precision, Rows, row_bytes, write_rows

INTEGERS = [("int8", 127), ("int4", 7)]
small_tables = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.floats(-60000, 60000, width=32),
)


def stored(folder: Path, rows: np.ndarray, precision: Precision) -> Rows:  # type: ignore[type-arg]
    write_rows(folder, "item", rows, precision)
    return Rows.open(folder, "item")


def allowed_error(rows: np.ndarray, precision: Precision) -> np.ndarray:  # type: ignore[type-arg]
    """Largest error of each value: half a step of what the precision can hold."""
    if precision == "float32":
        return np.zeros_like(rows)
    if precision == "float16":  # 11 bits of mantissa; below 2^-14 steps of 2^-24
        return np.maximum(np.abs(rows) * 2.0**-11, 2.0**-25)
    scale = np.abs(rows).max(1, keepdims=True, initial=0) / dict(INTEGERS)[precision]
    return np.broadcast_to(scale / 2 * (1 + 1e-4) + 1e-37, rows.shape)  # float32 rounding of the scale


@pytest.mark.parametrize("precision", PRECISIONS)
@given(rows=small_tables)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_trip_errs_by_at_most_half_a_step(
    tmp_path: Path,
    precision: Precision,
    rows: np.ndarray,  # type: ignore[type-arg]
) -> None:
    table = stored(tmp_path, rows, precision).all()
    assert table.shape == rows.shape and table.dtype == np.float32
    assert (np.abs(table - rows) <= allowed_error(rows, precision)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gather_agrees_with_all_for_any_shape_of_ids(tmp_path: Path, precision: Precision) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    table = stored(tmp_path, rows, precision)
    for ids in (np.array(3), np.array([4, 4, 0]), np.arange(50).reshape(5, 10), np.zeros((2, 0), int)):
        assert np.array_equal(table.gather(ids), table.all()[ids])
    assert np.array_equal(table.block(10, 20), table.all()[10:20])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_rows_stay_zero(tmp_path: Path, precision: Precision) -> None:
    rows = np.zeros((3, 5), np.float32)
    rows[1] = 1
    assert not stored(tmp_path, rows, precision).all()[[0, 2]].any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_row(tmp_path: Path, precision: Precision, bad: float) -> None:
    rows = np.ones((4, 3), np.float32)
    rows[2, 1] = bad
    with pytest.raises(DataError, match=r"rows of item: row 2 holds NaN or an infinity"):
        write_rows(tmp_path, "item", rows, precision)


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="70000, too large for float16"):
        write_rows(tmp_path, "item", np.array([[7e4]]), "float16")


@pytest.mark.parametrize(
    ("precision", "expected"), [("float32", 28), ("float16", 14), ("int8", 4 + 7), ("int4", 4 + 4)]
)
def test_size_in_bytes_is_exact(tmp_path: Path, precision: Precision, expected: int) -> None:
    table = stored(tmp_path, np.ones((10, 7), np.float32), precision)
    on_disk = sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".json")
    assert table.bytes == on_disk == 10 * expected
    assert row_bytes(7, precision) == expected


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_store_of_width_0_gathers_nothing(tmp_path: Path, precision: Precision) -> None:
    table = stored(tmp_path, np.zeros((4, 0), np.float32), precision)
    assert (len(table), table.width) == (4, 0)
    assert table.gather(np.array([[1, 2]])).shape == (1, 2, 0)
    assert table.all().shape == (4, 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_opening_reads_no_rows(tmp_path: Path, precision: Precision) -> None:
    write_rows(tmp_path, "item", np.ones((1000, 8), np.float32), precision)
    table = Rows.open(tmp_path, "item")
    # A change on disk after opening is seen, so nothing had been copied.
    with (tmp_path / "item.rows").open("r+b") as stream:
        stream.write(b"\0" * row_bytes(8, "float32"))
    assert table.gather(np.array([0]))[0, 0] != table.gather(np.array([999]))[0, 0]


def test_int4_is_worked_out_by_hand(tmp_path: Path) -> None:
    """Scale 7/7 = 1; -7, 3.4 -> 3 and 0.6 -> 1 are packed as 1 | 11 << 4 and 9 | 8 << 4."""
    table = stored(tmp_path, np.array([[-7, 3.4, 0.6]], np.float32), "int4")
    assert (tmp_path / "item.rows").read_bytes() == bytes([1 | 11 << 4, 9 | 8 << 4])
    assert table.all().tolist() == [[-7, 3, 1]]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_storing_what_was_stored_changes_nothing(tmp_path: Path, precision: Precision) -> None:
    rows = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    once = stored(tmp_path / "a", rows, precision).all()
    again = stored(tmp_path / "b", once, precision).all()
    np.testing.assert_allclose(again, once, rtol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copy_is_the_same_store(tmp_path: Path, precision: Precision) -> None:
    table = stored(tmp_path, np.random.default_rng(2).normal(size=(9, 3)), precision)
    table.copy_to(tmp_path / "copy", "other")
    assert np.array_equal(Rows.open(tmp_path / "copy", "other").all(), table.all())


@pytest.mark.parametrize("ending", ["json", "rows", "scales"])
def test_a_missing_or_truncated_file_is_named(tmp_path: Path, ending: str) -> None:
    write_rows(tmp_path, "item", np.ones((4, 3), np.float32), "int8")
    file = tmp_path / f"item.{ending}"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ArtifactError, match=rf"item\.{ending}: .*(bytes, expected|damaged)"):
        Rows.open(tmp_path, "item")
    file.unlink()
    with pytest.raises(ArtifactError, match=rf"item\.{ending}: the file is missing"):
        Rows.open(tmp_path, "item")


def test_rows_beyond_one_block_are_written_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.tables.rows.BLOCK", 4)
    rows = np.arange(22, dtype=np.float32).reshape(11, 2)
    assert np.array_equal(stored(tmp_path, rows, "float32").all(), rows)
