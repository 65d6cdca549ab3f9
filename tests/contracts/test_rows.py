"""What every precision of the row store promises: round trip, size, mmap, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import ArtifactError, DataError
from app.tables.form import PRECISIONS, Precision, row_bytes
from app.tables.quantise import LEVELS
from app.tables.rows import Array, Rows
from app.tables.write import write_rows, write_stores

FEW_LEVELS = [("int4", 7.0), ("int2", 1.5)]
small_tables = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.floats(-60000, 60000, width=32, allow_subnormal=False),
)


def stored(folder: Path, rows: Array, precision: Precision, group: int = 0) -> Rows:
    write_rows(folder, "item", rows, precision, group)
    return Rows.open(folder, "item")


def allowed_error(rows: Array, precision: Precision) -> Array:
    """Largest error of each value: half a step of what the precision can hold."""
    if precision == "float32":
        return np.zeros_like(rows)
    if precision == "float16":  # 11 bits of mantissa; below 2^-14 steps of 2^-24
        return np.maximum(np.abs(rows) * 2.0**-11, 2.0**-25)
    scale = np.abs(rows).max(1, keepdims=True, initial=0) / 127
    # The scale is rounded to 11 bits; scales far below the largest one lose more.
    return np.broadcast_to(
        scale / 2 * (1 + 2.0**-10) + scale.max(initial=0) * 127 * 2.0**-23 + 1e-37, rows.shape
    )


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@given(rows=small_tables)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_trip_errs_by_at_most_half_a_step(tmp_path: Path, precision: Precision, rows: Array) -> None:
    table = stored(tmp_path, rows, precision).all()
    assert table.shape == rows.shape and table.dtype == np.float32
    assert (np.abs(table - rows) <= allowed_error(rows, precision)).all()


@pytest.mark.parametrize(("precision", "largest"), FEW_LEVELS)
@pytest.mark.parametrize("group", [0, 1, 4, 10**9])
@given(rows=small_tables)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_few_levels_err_no_more_than_levels_up_to_the_largest_magnitude(
    tmp_path: Path, precision: Precision, largest: float, group: int, rows: Array
) -> None:
    """In the squares over a group, whose scale the range is chosen by."""
    table = stored(tmp_path, rows, precision, group).all()
    for start in range(0, rows.shape[1], group or max(1, rows.shape[1])):
        part = slice(start, start + group if group else None)
        plain = on_levels(rows[:, part], largest)
        error, most = (np.square(x - rows[:, part], dtype=np.float64).sum(1) for x in (table[:, part], plain))
        size = np.square(rows, dtype=np.float64).sum(1)
        assert (error <= most * (1 + 1e-3) + 1e-5 * size + 1e-9 * size.max(initial=0) + 1e-75).all()


def on_levels(rows: Array, largest: float) -> Array:
    """The nearest multiples of largest magnitude / largest, at halves where levels are."""
    scale = np.abs(rows).max(1, keepdims=True, initial=0) / largest
    divisor, shift = np.where(scale > 0, scale, 1), largest % 1
    return np.clip(np.rint(rows / divisor - shift) + shift, -largest, largest) * scale


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.01), ("int4", 0.11), ("int2", 0.36)])
def test_the_error_on_normal_values_is_what_theory_says(
    tmp_path: Path, precision: Precision, error: float
) -> None:
    """Uniform levels on a normal distribution: with 4 at best .344 of its deviation (Max 1960)."""
    rows = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    whole = stored(tmp_path / "whole", rows, precision).all()
    grouped = stored(tmp_path / "grouped", rows, precision, 16).all()
    errors = [float(np.sqrt(np.square(x - rows).mean())) for x in (whole, grouped)]
    assert errors[1] < errors[0] < error


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
    ("precision", "group", "expected"),
    [
        ("float32", 0, 28),
        ("float16", 3, 14),  # floats have no scales
        ("int8", 0, 7 + 2),
        ("int4", 0, 4 + 2),
        ("int4", 3, 4 + 6),
        ("int2", 0, 2 + 2),
        ("int2", 4, 2 + 4),
    ],
)
def test_size_in_bytes_is_exact(tmp_path: Path, precision: Precision, group: int, expected: int) -> None:
    table = stored(tmp_path, np.ones((10, 7), np.float32), precision, group)
    on_disk = sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".json")
    assert table.bytes == on_disk == 10 * expected
    assert row_bytes(7, precision, group) == expected


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
    """Levels -7, 3 and 1 are packed as 1 | 11 << 4 and 9; the scale that fits them is 59.8 / 59."""
    table = stored(tmp_path, np.array([[-7, 3.4, 0.6]], np.float32), "int4")
    assert (tmp_path / "item.rows").read_bytes() == bytes([1 | 11 << 4, 9])
    scale = float(np.float16(59.8 / 59))
    np.testing.assert_allclose(table.all(), [[-7 * scale, 3 * scale, scale]], rtol=1e-6)


def test_int2_is_worked_out_by_hand(tmp_path: Path) -> None:
    """Levels -.5, .5, -1.5 and 1.5 are 1, 2, 0 and 3, and .5 once more 2; their scale is exact."""
    rows = np.array([[-1, 1, -3, 3, 1], [0, 0, 0, 0, 0]], np.float32)
    table = stored(tmp_path, rows, "int2")
    assert (tmp_path / "item.rows").read_bytes()[:2] == bytes([1 | 2 << 2 | 0 << 4 | 3 << 6, 2])
    np.testing.assert_array_equal(table.all(), rows)


@pytest.mark.parametrize("precision", ["float32", *LEVELS])
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-30, 2.0**100])
def test_the_unit_of_a_store_does_not_matter(tmp_path: Path, precision: Precision, factor: float) -> None:
    """Scales in half precision hold rows of any size, in units of the largest."""
    rows = np.random.default_rng(3).normal(size=(20, 8)).astype(np.float32)
    table = stored(tmp_path / "a", rows, precision).all()
    scaled = stored(tmp_path / "b", rows * np.float32(factor), precision).all()
    np.testing.assert_array_equal(scaled / np.float32(factor), table)


@pytest.mark.parametrize("precision", list(LEVELS))
def test_storing_what_was_stored_changes_nothing(tmp_path: Path, precision: Precision) -> None:
    rows = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    once = stored(tmp_path / "a", rows, precision).all()
    again = stored(tmp_path / "b", once, precision).all()
    np.testing.assert_allclose(again, once, rtol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_copy_is_the_same_store(tmp_path: Path, precision: Precision) -> None:
    table = stored(tmp_path, np.random.default_rng(2).normal(size=(9, 3)), precision)
    table.copy_to(tmp_path / "copy", "other")
    assert np.array_equal(Rows.open(tmp_path / "copy", "other").all(), table.all())


@pytest.mark.parametrize("precision", ["float32", "int2"])
def test_rows_that_are_another_stores_take_no_room(tmp_path: Path, precision: Precision) -> None:
    rows = np.random.default_rng(2).normal(size=(9, 3)).astype(np.float32)
    write_stores(tmp_path, {"item": rows, "history": rows.copy(), "user": rows + 1}, precision)
    item, history, user = (Rows.open(tmp_path, name) for name in ("item", "history", "user"))
    assert (item.same_as, history.same_as, user.same_as) == ("", "item", "")
    assert np.array_equal(history.gather(np.array([8, 2])), item.all()[[8, 2]])
    assert (history.bytes, item.bytes) == (0, user.bytes)
    assert not (tmp_path / "history.rows").exists()
    for store in (item, history):
        store.copy_to(tmp_path / "copy", store.name)
    assert np.array_equal(Rows.open(tmp_path / "copy", "history").all(), item.all())


@pytest.mark.parametrize("other", ["../item", "history", 3])
def test_a_store_is_the_same_as_one_beside_it_alone(tmp_path: Path, other: object) -> None:
    (tmp_path / "history.json").write_text(json.dumps({"same_as": other}))
    with pytest.raises(ArtifactError, match=r"history\.json: the file is damaged"):
        Rows.open(tmp_path, "history")


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
    monkeypatch.setattr("app.tables.write.BLOCK", 4)
    rows = np.arange(22, dtype=np.float32).reshape(11, 2)
    assert np.array_equal(stored(tmp_path, rows, "float32").all(), rows)
