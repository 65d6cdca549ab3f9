"""Thumbnails of the image files that a column names, for models that look at pixels (`image_cnn`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from app.features.base import Array, Feature, State, as_text
from app.features.encoders import image


@dataclass(frozen=True)
class Pixels(Feature):
    """Paths of image files as thumbnails: 3 x side x side floats in [0, 1], and a last one, 1 without image.

    A service opens no file that a request names: there an item put counts as one without an image.
    """

    side: int = field(
        default=32, metadata={"ge": 4, "le": 128, "description": "pixels of the thumbnail's width and height"}
    )
    folder: str = field(
        default="", metadata={"description": "folder that paths begin at; empty: the current one"}
    )

    def need(self) -> None:
        """Check that Pillow is installed."""
        image.need_pillow()

    def prepared(self, column: Array) -> Array:
        """Thumbnails (N,), each (3, side, side) uint8; None without a path, Unusable where there is no image.

        Raises:
            MachineError: Pillow is not installed.
        """
        self.need()
        cells = np.empty(len(column), object)
        cells[:] = [image.thumbnail(as_text(value), self.folder, self.side) for value in column]
        return cells

    def fit(self, column: Array) -> State:
        """Nothing but the side."""
        return {"side": self.side}

    def transform(self, column: Array, state: State) -> Array:
        """(N,) values -> (N, 3 * side * side + 1) float32."""
        width = 3 * int(state["side"]) ** 2
        dense = np.zeros((len(column), width + 1), np.float32)
        dense[:, width] = 1
        for row, value in enumerate(column):
            if isinstance(value, np.ndarray) and value.size == width and value.dtype == np.uint8:
                dense[row, :width] = value.ravel() / np.float32(255)
                dense[row, width] = 0
        return dense
