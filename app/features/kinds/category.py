"""Categories: a value becomes a row of a vocabulary or a hash bucket; row 0 is unknown or missing."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from app.features.base import Array, Feature, State, as_text


@dataclass(frozen=True)
class Category(Feature):
    """A categorical column: a row of a vocabulary, or a hash bucket; row 0 is unknown or missing."""

    cells: ClassVar[Literal["number", "category", "text"]] = "category"

    vocabulary: int = field(
        default=1000,
        metadata={"ge": 1, "description": "the most frequent training values, which get a row each"},
    )
    buckets: int = field(
        default=0,
        metadata={"ge": 0, "description": "hash values into so many rows instead; 0 keeps the vocabulary"},
    )
    separator: str = field(
        default="",
        metadata={"description": "splits a cell that lists several values, of which the first counts"},
    )

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
    """64 bits of BLAKE2b: the same in every process, unlike hash(); a lone surrogate is hashed as it stands.

    Stored data sets and bundles hold rows by this hash, so that another one would mix up their values.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
