"""What an export is made from: a recipe, a data set, a checkpoint and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.bundle.export.static_rows import static_rows
from app.bundle.format.layout import ROWS, Array
from app.data.dataset import Dataset
from app.models.base import Model
from app.recipe import Recipe
from app.tables.rows import Rows
from app.tables.write import write_stores


class Trained(Protocol):
    """What export needs of a checkpoint."""

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The settings that the model was made with."""
        ...

    @property
    def model(self) -> Model:
        """The model, in evaluation mode on the CPU."""
        ...

    @property
    def trained(self) -> dict[str, Array]:
        """For "user" and "item" a bool an id: whether the weights were trained on an event of it."""
        ...

    @property
    def rows(self) -> Mapping[str, Rows] | None:
        """Its stored rows by name where it is compressed."""
        ...


@dataclass(frozen=True)
class ExportSource:
    """What a format writes.

    Args:
        recipe: its [export] names the export, its [compress] sets the dense precision.
        dataset: whose training part the checkpoint was trained on.
        checkpoint: rows as they are where it is compressed, else float32.
        figures: of the report: quality of this checkpoint, and of the baselines.
    """

    recipe: Recipe
    dataset: Dataset
    checkpoint: Trained
    figures: Mapping[str, Any]

    @property
    def bases(self) -> dict[str, Array]:
        """By name of rows that are stored by coefficients, what these are multiplied by: in the graphs."""
        stored = self.checkpoint.rows or {}
        return {name: rows.basis for name, rows in stored.items() if rows.basis is not None}

    def write_rows(self, folder: Path) -> dict[str, Rows]:
        """Write the rows "user", "history" and "item" that can be computed in advance, and open them.

        Those that have a basis are written without it, as `bases` says.
        """
        if self.checkpoint.rows is not None:
            for name, rows in self.checkpoint.rows.items():
                rows.copy_to(folder, name)
        else:
            write_stores(folder, static_rows(self.checkpoint.model), "float32")
        return {name: Rows.open(folder, name) for name in ROWS}
