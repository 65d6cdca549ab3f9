"""Text: a bag of hashed n-grams, as counts or TF-IDF (scikit-learn's vectorisers)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from app.features.base import Array, Feature, State, as_text

FEW = 8  # texts that are hashed here
WORD = re.compile(r"(?u)\b\w+\b")  # one-letter words and digits tell sizes apart
_ALL = 0xFFFFFFFF
BLOCK = 8192  # rows made dense at a time


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
            return np.stack([self._one(as_text(value), state) for value in column] or [self._one("", state)])[
                : len(column)
            ]
        dense = np.zeros((len(column), self.buckets), np.float32)
        for start in range(0, len(column), BLOCK):
            rows = slice(start, start + BLOCK)
            dense[rows] = self._weighted(column[rows], state).toarray()
        return dense

    def _one(self, text: str, state: State) -> Array:
        """(buckets,) of one text, the same bit for bit without the package, which takes a second to load."""
        words = WORD.findall(text.lower())
        grams = [
            " ".join(words[start : start + length])
            for length in range(1, self.ngrams + 1)
            for start in range(len(words) - length + 1)
        ]
        found: dict[int, float] = Counter(_bucket(gram, self.buckets) for gram in grams)  # type: ignore[assignment]
        if "idf" in state:
            found = {bucket: count * float(state["idf"][bucket]) for bucket, count in found.items()}
            length = math.sqrt(sum(found[bucket] ** 2 for bucket in sorted(found)))
            found = {bucket: value / length for bucket, value in found.items()}
        dense = np.zeros(self.buckets, np.float32)
        dense[list(found)] = list(found.values())
        return dense

    def _weighted(self, column: Array, state: State) -> Any:
        from sklearn.preprocessing import normalize

        counts = self._counts(column)
        if "idf" not in state:
            return counts
        counts.data *= state["idf"][counts.indices]
        return normalize(counts, copy=False)

    def _counts(self, column: Array) -> Any:
        """(N, buckets) sparse float64."""
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
    """Where scikit-learn's HashingVectorizer puts an n-gram."""
    signed = _murmur(gram.encode("utf-8"))
    if signed == -(1 << 31):
        return ((1 << 31) - 1 - (buckets - 1)) % buckets
    return abs(signed) % buckets


def _murmur(data: bytes) -> int:
    """MurmurHash3 (Appleby), 32 bits, seed 0, as a signed number."""
    mixed, whole = 0, len(data) // 4 * 4
    for start in range(0, whole, 4):
        mixed ^= _scrambled(int.from_bytes(data[start : start + 4], "little"))
        mixed = (_turned(mixed, 13) * 5 + 0xE6546B64) & _ALL
    mixed ^= _scrambled(int.from_bytes(data[whole:], "little")) ^ len(data)
    mixed = ((mixed ^ mixed >> 16) * 0x85EBCA6B) & _ALL
    mixed = ((mixed ^ mixed >> 13) * 0xC2B2AE35) & _ALL
    mixed ^= mixed >> 16
    return mixed - (1 << 32) if mixed >> 31 else mixed


def _scrambled(word: int) -> int:
    return (_turned(word * 0xCC9E2D51 & _ALL, 15) * 0x1B873593) & _ALL


def _turned(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & _ALL
