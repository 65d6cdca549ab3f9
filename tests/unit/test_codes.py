"""Product codes: what a code stands for, products without rows, k-means, and the store of codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ArtifactError, RecipeError
from app.tables.codes import Codes, learn_codes, runs
from app.tables.rows import Rows
from app.tables.write import write_codes, write_stores


def some_codes(rows: int, width: int, codes: int, words: int, seed: int = 0) -> Codes:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(codes, words, runs(width, codes)[0].stop)).astype(np.float16).astype(np.float32)
    return Codes(width, rng.integers(0, words, (rows, codes), dtype=np.uint8), found)


def test_runs_are_about_equal_and_the_longer_ones_come_first() -> None:
    assert [run.stop - run.start for run in runs(8, 3)] == [3, 3, 2]
    assert [(run.start, run.stop) for run in runs(4, 2)] == [(0, 2), (2, 4)]
    assert len(runs(5, 5)) == 5


def test_rows_are_worked_out_by_hand() -> None:
    """Three columns in runs of two and one: the second run's second column is no column."""
    words = np.float32([[[1, 2], [3, 4]], [[5, 9], [6, 9]]])
    codes = Codes(3, np.uint8([[0, 1], [1, 0]]), words)
    np.testing.assert_array_equal(codes.gather(np.array([0, 1])), [[1, 2, 6], [3, 4, 5]])


@given(st.integers(1, 9), st.data(), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_a_row_is_its_codewords_side_by_side(width: int, data: st.DataObject, words: int) -> None:
    parts = data.draw(st.integers(1, width))
    codes = some_codes(20, width, parts, words)
    ids = np.array([[3, 3, 0], [19, 1, 2]])
    assert codes.gather(ids).shape == (2, 3, width)
    for m, run in enumerate(runs(width, parts)):
        expected = codes.words[m][codes.codes[ids, m]][..., : run.stop - run.start]
        np.testing.assert_array_equal(codes.gather(ids)[..., run], expected)


def test_planted_codewords_are_found() -> None:
    planted = some_codes(2000, 6, 3, 4)
    rows = planted.gather(np.arange(2000))
    learned = learn_codes(rows, 3, 16, seed=0)  # more than there are: k-means may miss one else
    np.testing.assert_allclose(learned.gather(np.arange(2000)), rows, atol=2e-3)


def test_rows_that_weigh_more_err_less() -> None:
    rows = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    weight = np.where(np.arange(2000) < 200, 100.0, 1.0)
    plain, weighed = (learn_codes(rows, 2, 16, 0, w) for w in (None, weight))
    error = [np.square(codes.gather(np.arange(2000)) - rows).sum(1) for codes in (plain, weighed)]
    assert error[1][:200].mean() < 0.9 * error[0][:200].mean()
    assert error[1].mean() > error[0].mean()


def test_impossible_numbers_of_codes_are_refused() -> None:
    rows = np.zeros((10, 4), np.float32)
    with pytest.raises(RecipeError, match=r"compress\.product\.codes: 5 codes for rows of 4 columns"):
        learn_codes(rows, 5, 2, 0)
    with pytest.raises(RecipeError, match=r"16 codewords for 10 rows"):
        learn_codes(rows, 2, 16, 0)


def test_a_store_gives_back_what_was_written(tmp_path: Path) -> None:
    codes = some_codes(30, 7, 3, 16)
    write_codes(tmp_path, "item", codes)
    stored = Rows.open(tmp_path, "item")
    ids = np.array([[4, 29], [0, 4]])
    np.testing.assert_array_equal(stored.gather(ids), codes.gather(ids))
    np.testing.assert_array_equal(stored.block(3, 9), codes.gather(np.arange(3, 9)))
    np.testing.assert_array_equal(stored.all(), codes.gather(np.arange(30)))
    on_disk = sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".json")
    assert stored.bytes == codes.bytes == on_disk == 30 * 3 + 3 * 16 * 3 * 2
    stored.copy_to(tmp_path / "copy", "other")
    np.testing.assert_array_equal(Rows.open(tmp_path / "copy", "other").all(), stored.all())


def test_codes_that_two_stores_share_are_written_once(tmp_path: Path) -> None:
    codes = some_codes(30, 6, 3, 16)
    write_stores(tmp_path, {"item": codes, "history": codes, "user": np.ones((4, 2), np.float32)}, "int8")
    item, history, user = (Rows.open(tmp_path, name) for name in ("item", "history", "user"))
    assert (item.same_as, history.same_as, user.precision) == ("", "item", "int8")
    assert history.bytes == 0
    np.testing.assert_array_equal(history.all(), item.all())


@pytest.mark.parametrize("ending", ["rows", "words"])
def test_a_damaged_store_of_codes_is_named(tmp_path: Path, ending: str) -> None:
    write_codes(tmp_path, "item", some_codes(30, 6, 3, 16))
    file = tmp_path / f"item.{ending}"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ArtifactError, match=rf"item\.{ending}: .*bytes, expected"):
        Rows.open(tmp_path, "item")
