"""Categories: a row of a vocabulary or a hash bucket; 0 is unknown or missing."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from app.features.base import Array, State, as_text


@dataclass(frozen=True)
class Category:
    """A categorical column as one int32 row.

    Args:
        column: its name.
        vocabulary: most frequent training values that get a row of their own.
        buckets: hash into so many rows instead; 0: vocabulary.
        separator: splits a cell of several values; the first counts. Empty: one value a cell.
    """

    kind: ClassVar[str] = "category"
    column: str
    vocabulary: int = 1000
    buckets: int = 0
    separator: str = ""

    def fit(self, column: Array) -> State:
        """Rows by training frequency, equal counts in the order of their text."""
        if self.buckets:
            return {"cardinality": self.buckets + 1}
        counts = Counter(self._texts(column))
        del counts[""]
        ranked = sorted(counts, key=lambda text: (-counts[text], text))[: self.vocabulary]
        return {"cardinality": len(ranked) + 1, "rows": {text: row for row, text in enumerate(ranked, 1)}}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N,) int32, below state["cardinality"]."""
        texts = self._texts(column)
        rows: dict[str, int] = state["rows"] if "rows" in state else self._hashed(set(texts))
        return np.fromiter((rows.get(text, 0) for text in texts), np.int32, len(texts))

    def _texts(self, column: Array) -> list[str]:
        texts = [as_text(_first(value)) for value in column]
        return [text.split(self.separator, 1)[0] for text in texts] if self.separator else texts

    def _hashed(self, texts: set[str]) -> dict[str, int]:
        return {text: _stable_hash(text) % self.buckets + 1 for text in texts if text}


def _first(value: Any) -> Any:
    if isinstance(value, list | tuple | np.ndarray):
        return value[0] if len(value) else None
    return value


def _stable_hash(text: str) -> int:
    """The same in every process, unlike hash(); a lone surrogate is hashed as it stands."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
