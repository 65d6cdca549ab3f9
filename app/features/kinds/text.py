"""Text: a bag of n-grams, hashed or of a vocabulary, as counts or TF-IDF (as scikit-learn's vectorisers)."""

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
SHARED = 2  # training texts that hold an n-gram of a vocabulary, at least
BLOCK = 8192  # rows of the sparse counts that become dense at a time


@dataclass(frozen=True)
class Text(Feature):
    """A text column as floats: how often each n-gram occurs.

    N-grams are hashed into buckets, or are those of a vocabulary. Words that a single text has tell which
    text it is and nothing of others: where new items matter a vocabulary leaves them out.
    """

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

    vocabulary: int = field(
        default=0,
        metadata={
            "ge": 0,
            "description": "floats for the n-grams that most training texts have, of those that two or more"
            " have; 0: hashed into buckets",
        },
    )

    def fit(self, column: Array) -> State:
        """Inverse document frequencies (width,), or the width alone for counts; n-grams of a vocabulary."""
        if self.vocabulary:
            return self._fit_vocabulary(column)
        if self.weighting == "count":
            return {"width": self.buckets}
        idf = np.ones(self.buckets)
        if len(column):
            from sklearn.feature_extraction.text import TfidfTransformer

            idf = TfidfTransformer().fit(self._counts(column)).idf_
        return {"width": self.buckets, "idf": np.asarray(idf, np.float64)}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, width) float32; missing text gives zeros."""
        if len(column) <= FEW or self.vocabulary:
            rows = np.zeros((len(column), state["width"]), np.float32)
            for row, value in zip(rows, column, strict=True):
                self._fill(row, as_text(value), state)
            return rows
        dense = np.zeros((len(column), self.buckets), np.float32)
        for start in range(0, len(column), BLOCK):
            block = slice(start, start + BLOCK)
            dense[block] = self._weighted(column[block], state).toarray()
        return dense

    def _fit_vocabulary(self, column: Array) -> State:
        texts = [set(self._grams(as_text(value))) for value in column]
        counts = Counter(gram for grams in texts for gram in grams)
        shared = [gram for gram, count in counts.items() if count >= SHARED]
        kept = sorted(shared, key=lambda gram: (-counts[gram], gram))[: self.vocabulary]
        state: State = {"width": len(kept), "grams": {gram: row for row, gram in enumerate(kept)}}
        if self.weighting == "tfidf":
            state["idf"] = np.array([math.log((1 + len(texts)) / (1 + counts[g])) + 1 for g in kept])
        return state

    def _grams(self, text: str) -> list[str]:
        words = WORD.findall(text.lower())
        return [
            " ".join(words[start : start + length])
            for length in range(1, self.ngrams + 1)
            for start in range(len(words) - length + 1)
        ]

    def _fill(self, row: Array, text: str, state: State) -> None:
        """Fill (width,) of one text, bit for bit as scikit-learn, which takes a second to import."""
        grams = self._grams(text)
        if self.vocabulary:
            counts = Counter(state["grams"][gram] for gram in grams if gram in state["grams"])
        else:
            counts = Counter(_bucket(gram, self.buckets) for gram in grams)
        weights: dict[int, float] = dict(counts)
        if "idf" in state:
            weights = {bucket: count * float(state["idf"][bucket]) for bucket, count in counts.items()}
            length = math.sqrt(sum(weights[bucket] ** 2 for bucket in sorted(weights)))
            weights = {bucket: weight / length for bucket, weight in weights.items()}
        row[list(weights)] = list(weights.values())

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
