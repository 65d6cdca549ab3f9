"""Text: a bag of hashed n-grams, as counts or TF-IDF (scikit-learn's vectorisers)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import mmh3
import numpy as np

from app.features.base import Array, Feature, State, as_text

FEW = 8  # up to so many texts are hashed here, one by one; more go to scikit-learn
WORD = re.compile(r"(?u)\b\w+\b")  # one-letter words and digits tell sizes apart
BLOCK = 8192  # rows of the sparse counts that become dense at a time


@dataclass(frozen=True)
class Text(Feature):
    """A text column as `buckets` floats: how often each hashed n-gram occurs."""

    buckets: int = field(
        default=256,
        metadata={"ge": 1, "description": "floats; n-grams that share one are not told apart"},
    )
    weighting: Literal["count", "tfidf"] = field(
        default="tfidf",
        metadata={
            "description": "counts, or counts times the inverse document frequency, scaled to unit length"
        },
    )
    ngrams: int = field(
        default=1, metadata={"ge": 1, "description": "the most words that are counted together as one"}
    )

    def fit(self, column: Array) -> State:
        """Inverse document frequencies (buckets,), or the width alone for counts."""
        if self.weighting == "count":
            return {"width": self.buckets}
        idf = np.ones(self.buckets)
        if len(column):
            from sklearn.feature_extraction.text import TfidfTransformer

            idf = TfidfTransformer().fit(self._counts(column)).idf_
        return {"width": self.buckets, "idf": np.asarray(idf, np.float64)}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, buckets) float32; missing text gives zeros."""
        if len(column) <= FEW:
            rows = [self._row(as_text(value), state) for value in column]
            return np.array(rows, np.float32).reshape(len(column), self.buckets)
        dense = np.zeros((len(column), self.buckets), np.float32)
        for start in range(0, len(column), BLOCK):
            block = slice(start, start + BLOCK)
            dense[block] = self._weighted(column[block], state).toarray()
        return dense

    def _row(self, text: str, state: State) -> Array:
        """(buckets,) of one text, bit for bit as scikit-learn, which takes a second to import."""
        words = WORD.findall(text.lower())
        grams = [
            " ".join(words[start : start + length])
            for length in range(1, self.ngrams + 1)
            for start in range(len(words) - length + 1)
        ]
        counts = Counter(_bucket(gram, self.buckets) for gram in grams)
        weights: dict[int, float] = dict(counts)
        if "idf" in state:
            weights = {bucket: count * float(state["idf"][bucket]) for bucket, count in counts.items()}
            length = math.sqrt(sum(weights[bucket] ** 2 for bucket in sorted(weights)))
            weights = {bucket: weight / length for bucket, weight in weights.items()}
        dense = np.zeros(self.buckets, np.float32)
        dense[list(weights)] = list(weights.values())
        return dense

    def _weighted(self, column: Array, state: State) -> Any:
        from sklearn.preprocessing import normalize

        counts = self._counts(column)
        if "idf" not in state:
            return counts
        counts.data *= state["idf"][counts.indices]
        return normalize(counts, copy=False)

    def _counts(self, column: Array) -> Any:
        """How often each bucket occurs in each text: (N, buckets), sparse, float64."""
        from sklearn.feature_extraction.text import HashingVectorizer

        vectoriser = HashingVectorizer(
            n_features=self.buckets,
            ngram_range=(1, self.ngrams),
            token_pattern=WORD.pattern,
            alternate_sign=False,
            norm=None,
        )
        return vectoriser.transform([as_text(value) for value in column])


def _bucket(gram: str, buckets: int) -> int:
    """The bucket that scikit-learn's HashingVectorizer gives an n-gram: 32-bit MurmurHash3 with seed 0."""
    signed = mmh3.hash(gram)
    if signed == -(1 << 31):  # has no absolute value in 32 bits
        return ((1 << 31) - 1 - (buckets - 1)) % buckets
    return abs(signed) % buckets
