"""Title tokens in their order, for models that read words one after another (`text_cnn`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import mmh3
import numpy as np

from app.features.base import Array, Feature, State, as_text
from app.features.kinds.text import WORD

BITS = 20  # of a word's hash: what float32 holds exactly with one half added


@dataclass(frozen=True)
class Tokens(Feature):
    """A text column as its first `length` words, each a float in (0, 1) by its hash; 0 where there is none.

    A model makes of it a row of a table of any size: the float times the rows, rounded down. One that does
    not know what the floats mean sees small numbers.
    """

    length: int = field(default=12, metadata={"ge": 1, "description": "words that are kept, the first ones"})

    def fit(self, column: Array) -> State:
        """Nothing but the length: hashes are the same everywhere."""
        return {"width": self.length}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, length) float32."""
        tokens = np.zeros((len(column), self.length), np.float32)
        for row, value in enumerate(column):
            words = WORD.findall(as_text(value).lower())[: self.length]
            tokens[row, : len(words)] = [_fraction(word) for word in words]
        return tokens


def _fraction(word: str) -> float:
    """The upper bits of 32-bit MurmurHash3, as the middle of their interval of (0, 1)."""
    bits = mmh3.hash(word.encode("utf-8", "surrogatepass"), signed=False) >> (32 - BITS)
    return float((bits + 0.5) / 2**BITS)
