"""Exact statistics over many files, and hashes that are the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.data.prepare.dedupe_sort import write_table
from app.data.prepare.partition import bucket_of
from app.data.prepare.selection import statistics
from app.data.prepare.selection.statistics import Column
from app.data.values.text import encode, lists_of, normal_ids, stable_hash

FLOATS = st.lists(st.floats(allow_nan=True, allow_infinity=False, width=64), min_size=0, max_size=40)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process, so that many examples are quick."""

    def run_all(work: Any, calls: Any, description: str, folder: str) -> Any:
        yield from ((n, work(*call)) for n, call in enumerate(calls))

    monkeypatch.setattr(statistics, "run_all", run_all)
    monkeypatch.setattr(statistics, "cores", lambda: 2)


def column_of(folder: Path, values: list[float], kind: Any = np.float64) -> Column:
    array = np.array(values, kind)
    for number, part in enumerate(np.array_split(array, 3)):
        write_table(folder / str(number), pa.table({"other": np.zeros(len(part)), "x": part}))
    return Column(str(folder), ("0", "1", "2"), "x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(FLOATS, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(here: None, tmp_path: Path, values: list[float], share: float) -> None:
    finite = [v for v in values if v == v]
    for quantile, of in zip(column_of(tmp_path, values).quantiles((share, 0.5)), (share, 0.5), strict=True):
        if not finite:
            assert np.isnan(quantile)
            continue
        low, high = (np.quantile(finite, of, method=m) for m in ("lower", "higher"))
        assert min(low, high) <= quantile <= max(low, high)
        assert quantile == pytest.approx(np.quantile(finite, of), rel=1e-9, abs=1e-300) or low != high


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=40), st.data())
def test_ranks_of_integers_are_exact(
    here: None, tmp_path: Path, values: list[int], data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, len(values) - 1))
    assert column_of(tmp_path, values, np.int64).ranked([rank]) == [sorted(values)[rank]]


def test_moments(here: None, tmp_path: Path) -> None:
    mean, deviation = column_of(tmp_path, [2, 4, 4, 4, 5, 5, 7, 9, float("nan")]).moments()
    assert (mean, deviation) == (5, 2)


def test_hashes_are_fixed_for_all_time() -> None:
    # Changing these changes the order of users in every data set made anew.
    texts = pl.Series(["a", "b", "abc", "", "é"])
    assert stable_hash(texts).tolist() == [
        2106293278287090,
        5694221423795747153,
        3752364053931831720,
        16294208416658607535,
        11301531022541094797,
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=30), st.integers(1, 50))
def test_a_hash_depends_on_the_text_alone_and_buckets_are_ranges(texts: list[str], buckets: int) -> None:
    hashes = stable_hash(pl.Series(texts, dtype=pl.String))
    for text, value in zip(texts, hashes, strict=True):
        assert stable_hash(pl.Series([text]))[0] == value
    order = np.argsort(hashes)
    bucket = bucket_of(hashes, buckets)
    assert (np.diff(bucket[order]) >= 0).all()
    assert ((bucket >= 0) & (bucket < buckets)).all()


def test_hashes_of_many_ids_differ_and_fill_the_buckets_evenly() -> None:
    hashes = stable_hash(pl.Series([f"u{n}" for n in range(100_000)]))
    assert len(np.unique(hashes)) == 100_000
    counts = np.bincount(bucket_of(hashes, 10), minlength=10)
    assert counts.min() > 9_000


@pytest.mark.parametrize(
    ("given_ids", "texts"),
    [
        (pl.Series([17850.0, None, 2.5]), ["17850", None, "2.5"]),
        (pl.Series([17850, None]), ["17850", None]),
        (
            pl.Series(["17850.0", " x ", "  ", None, "nan", "1.50"]),
            ["17850.0", "x", None, None, None, "1.50"],
        ),
        (pl.Series([True, False]), ["true", "false"]),
    ],
)
def test_ids_are_text_however_they_were_typed(given_ids: pl.Series, texts: list[str | None]) -> None:
    codes, distinct = encode(given_ids)
    assert [None if c < 0 else distinct[int(c)] for c in codes] == texts
    assert normal_ids(given_ids).to_list() == texts


def test_lists_in_any_spelling() -> None:
    assert lists_of(pl.Series(["[1, 2]", "3|4", "5 6", '["a", "b"]'])).to_list() == [
        ["1", "2"],
        ["3", "4"],
        ["5", "6"],
        ["a", "b"],
    ]
    assert lists_of(pl.Series([[1, 2], [3]])).to_list() == [["1", "2"], ["3"]]
