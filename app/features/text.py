"""Text: a bag of hashed n-grams, as counts or TF-IDF (scikit-learn's vectorisers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from app.features.base import Array, State, as_text

BLOCK = 8192  # rows made dense at a time


@dataclass(frozen=True)
class Text:
    """A text column as `buckets` floats: how often each hashed n-gram occurs.

    Args:
        column: its name.
        buckets: width; n-grams that share one are not told apart.
        weighting: "count", or "tfidf": counts times inverse document frequency of the training
            part, scaled to unit length.
        ngrams: up to so many words together.
    """

    kind: ClassVar[str] = "text"
    column: str
    buckets: int = 256
    weighting: str = "tfidf"
    ngrams: int = 1

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
        dense = np.zeros((len(column), self.buckets), np.float32)
        for start in range(0, len(column), BLOCK):
            rows = slice(start, start + BLOCK)
            dense[rows] = self._weighted(column[rows], state).toarray()
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
            token_pattern=r"(?u)\b\w+\b",  # one-letter words and digits tell sizes apart
            alternate_sign=False,
            norm=None,
        )
        return vectoriser.transform([as_text(value) for value in column])
