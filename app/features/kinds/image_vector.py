"""Image vectors of the files that a column names, made at preparation (`pip install 'rayrec[images]'`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from app.features.base import Array, State, Unusable, as_text
from app.features.encoders import image
from app.features.kinds.vector import Vector


@dataclass(frozen=True)
class ImageVector(Vector):
    """Paths of image files as vectors of EfficientNet-Lite0 (1,280 floats), and a last one, 1 without image.

    A service opens no file that a request names: there an item put counts as one without an image.
    """

    cells: ClassVar[Literal["number", "category", "text", "vector"]] = "text"

    folder: str = field(
        default="", metadata={"description": "folder that paths begin at; empty: the current one"}
    )

    def need(self) -> None:
        """Check that Pillow, torch and the network of images are installed."""
        image.need_network()

    def prepared(self, column: Array) -> Array:
        """Vectors (N,) of the images; None without a path, Unusable where there is no such image.

        Raises:
            MachineError: the packages are not installed.
        """
        self.need()
        cells = np.empty(len(column), object)
        cells[:] = image.vectors([as_text(value) for value in column], self.folder)
        return cells

    def problem(self, value: Any, state: State) -> str:
        """Why the file is no image; a path as it stands has no problem."""
        return value.reason if isinstance(value, Unusable) else ""

    def _vectors(self, column: Array) -> list[Array | Unusable | None]:
        return [value if isinstance(value, np.ndarray) and value.ndim == 1 else None for value in column]
