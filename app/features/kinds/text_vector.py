"""Sentence vectors of texts, made when a data set is prepared (`pip install 'rayrec[text]'`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from app.features.base import Array, State, Unusable, as_text
from app.features.encoders import sentence
from app.features.kinds.vector import Vector


@dataclass(frozen=True)
class TextVector(Vector):
    """A text column as sentence vectors of MiniLM (384 floats), and a last one that is 1 where there is none.

    A request's text is encoded where the package is installed, else it counts as missing: a serving image
    has neither torch nor the weights. Prepared in blocks or one by one, floats agree to about 1e-6.
    """

    cells: ClassVar[Literal["number", "category", "text", "vector"]] = "text"

    def need(self) -> None:
        """Check that the network of sentences is installed."""
        sentence.need()

    def prepared(self, column: Array) -> Array:
        """Sentence vectors (N,) of the texts; None where there is no text.

        Raises:
            MachineError: the package is not installed.
        """
        self.need()
        texts = [as_text(value).strip() for value in column]
        vectors = sentence.vectors(sorted({text for text in texts if text}))
        cells = np.empty(len(texts), object)
        cells[:] = [vectors.get(text) for text in texts]
        return cells

    def problem(self, value: Any, state: State) -> str:
        """Nothing: any text has a vector."""
        return ""

    def _vectors(self, column: Array) -> list[Array | Unusable | None]:
        return [
            value if isinstance(value, np.ndarray) else sentence.vector(as_text(value)) for value in column
        ]
