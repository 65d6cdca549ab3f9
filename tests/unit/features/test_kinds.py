"""Hand-worked answers of each kind of feature."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.features.base import Array
from app.features.kinds.category import Category
from app.features.kinds.number import Number
from app.features.kinds.text import FEW, Text


def cells(*values: Any) -> Array:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def numbers(feature: Number, train: Array, query: Array) -> list[Any]:
    floats = feature.transform(query, feature.fit(train))
    return floats[:, 0].tolist() if floats.shape[1] == 1 else floats.tolist()


def test_standard_is_zero_mean_and_unit_deviation() -> None:
    assert numbers(Number("c"), cells(1, 3), cells(1, 2, 3, "3")) == [-1, 0, 1, 1]


def test_a_constant_column_stays_finite() -> None:
    assert numbers(Number("c"), cells(0.1, 0.1, 0.1), cells(0.1, 0.1)) == pytest.approx([0, 0], abs=1e-6)
    assert numbers(Number("c", normalise="minmax"), cells(4, 4), cells(4, 9)) == [0, 1]


def test_minmax_clips_to_the_training_range() -> None:
    assert numbers(Number("c", normalise="minmax"), cells(10, 20), cells(15, 5, 99)) == [0.5, 0, 1]


def test_log_tames_a_long_tail_and_keeps_the_sign() -> None:
    train = cells(0, math.e - 1, math.e**2 - 1)
    scaled = numbers(Number("c", normalise="log"), train, cells(math.e - 1, 1 - math.e))
    assert scaled == pytest.approx([0, -2 / math.sqrt(2 / 3)], abs=1e-6)


def test_quantile_is_the_share_below_with_ties_at_half() -> None:
    scaled = numbers(Number("c", normalise="quantile"), cells(1, 2, 2, 100), cells(1, 2, 51, 100, 500, -3))
    assert scaled == [0.125, 0.5, 0.6875, 0.875, 0.875, 0.125]


def test_quantile_of_many_values_is_near_their_rank() -> None:
    train = cells(*np.random.default_rng(1).lognormal(0, 2, 5000).tolist())
    scaled = np.array(numbers(Number("c", normalise="quantile"), train, train))
    ranks = (np.argsort(np.argsort(train)) + 0.5) / 5000
    assert np.abs(scaled - ranks).max() < 2e-3


@pytest.mark.parametrize(
    "absent", [None, float("nan"), float("inf"), -float("inf"), "", "n/a", 10**400, 1e300]
)
def test_what_is_no_number_is_missing(absent: Any) -> None:
    train = cells(1, 2, 9, absent)
    query = cells(absent, 4)
    assert numbers(Number("c", normalise="none"), train, query) == [2, 4]
    assert numbers(Number("c", normalise="none", missing="constant", fill=-1), train, query) == [-1, 4]
    assert numbers(Number("c", normalise="none", missing="category"), train, query) == [[2, 1], [4, 0]]


def test_vocabulary_is_by_frequency_and_ties_by_text() -> None:
    feature = Category("c", vocabulary=3)
    state = feature.fit(cells("b", "a", "z", "z", "c", None, None, None, ""))
    assert state == {"cardinality": 4, "rows": {"z": 1, "a": 2, "b": 3}}
    assert feature.transform(cells("z", "b", "c", "new", None, ""), state).tolist() == [1, 3, 0, 0, 0, 0]


def test_numbers_as_categories_do_not_depend_on_the_type_of_the_file() -> None:
    feature = Category("c")
    state = feature.fit(cells(5, 5.0, "5", 6))
    assert feature.transform(cells("5", 5, 5.0, np.int64(5), "6"), state).tolist() == [1, 1, 1, 1, 2]


def test_the_first_of_several_values_counts() -> None:
    feature = Category("c", separator="|")
    state = feature.fit(cells("Drama|War", "Drama", "War|Drama", ["War", "Drama"]))
    assert state["rows"] == {"Drama": 1, "War": 2}


def test_hash_buckets_are_the_same_in_every_process() -> None:
    program = (
        "import numpy as np; from app.features.kinds.category import Category;"
        "f = Category('c', buckets=50); v = np.array(['red', 'blue', 'é', '7', ''], object);"
        "print(f.transform(v, f.fit(v)).tolist())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(answers) == 1 and answers.pop().strip().endswith(", 0]")


def test_bag_of_words_counts_each_word() -> None:
    feature = Text("c", buckets=1024, weighting="count")
    floats = feature.transform(cells("Red red BLUE", None, "x"), feature.fit(cells()))
    assert sorted(floats[0][floats[0] > 0].tolist()) == [1, 2]
    assert floats[1].sum() == 0 and floats[2].sum() == 1


def test_buckets_are_those_of_murmurhash3_with_seed_0() -> None:
    """Known answers of the reference implementation: "hello" hashes to 613153351."""
    feature = Text("c", buckets=1000, weighting="count")
    counts = feature.transform(cells("hello"), feature.fit(cells()))
    assert np.flatnonzero(counts[0]).tolist() == [351]


def test_ngrams_tell_orders_apart() -> None:
    single, double = Text("c", buckets=4096), Text("c", buckets=4096, ngrams=2)
    query = cells("red shoe", "shoe red")
    words, pairs = (f.transform(query, f.fit(query)) for f in (single, double))
    assert (words[0] == words[1]).all() and (pairs[0] != pairs[1]).any()


def test_tfidf_is_scikit_learns_on_the_training_part() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    train = cells("red shoe", "red hat", "blue hat hat", "red")
    query = cells("red blue hat", "shoe shoe red")
    feature = Text("c", buckets=2**16)
    floats = feature.transform(query, feature.fit(train))
    expected = TfidfVectorizer().fit(train).transform(query).toarray()
    for row, wanted in zip(floats, expected, strict=True):
        assert sorted(row[row > 0]) == pytest.approx(sorted(wanted[wanted > 0]), abs=1e-6)


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=4),
    weighting=st.sampled_from(["count", "tfidf"]),
    ngrams=st.integers(1, 3),
)
def test_a_few_texts_are_hashed_as_many_are(texts: list[str], weighting: str, ngrams: int) -> None:
    feature = Text("c", buckets=32, weighting=weighting, ngrams=ngrams)
    many = cells(*texts, *["red shoe"] * FEW)
    state = feature.fit(many)
    single = np.concatenate([feature.transform(cells(text), state) for text in texts])
    np.testing.assert_array_equal(single, feature.transform(many, state)[: len(texts)])


def test_a_vocabulary_has_the_words_that_texts_share() -> None:
    text = Text("c", vocabulary=2, weighting="count")
    state = text.fit(cells("red lamp", "red chair", "lamp red red", "green lamp", "chair", None))
    # red and lamp are in three texts each, chair in two: the vocabulary is full; green is in one.
    assert state["grams"] == {"lamp": 0, "red": 1}
    assert text.transform(cells("red red lamp", "green chair", None), state).tolist() == [
        [1, 2],
        [0, 0],
        [0, 0],
    ]
    assert Text("c", vocabulary=9).fit(cells("red", "green"))["width"] == 0


def test_a_vocabulary_weighs_by_inverse_document_frequency() -> None:
    text = Text("c", vocabulary=9)
    state = text.fit(cells("red lamp", "red lamp", "red chair"))
    idf = {"red": math.log(4 / 4) + 1, "lamp": math.log(4 / 3) + 1}
    length = math.hypot(*idf.values())
    expected = [idf["red"] / length, idf["lamp"] / length]
    assert text.transform(cells("lamp red"), state)[0].tolist() == pytest.approx(expected)
