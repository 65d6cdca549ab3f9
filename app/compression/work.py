"""What a step of compression works on: a model, its rows, and where training may leave its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from app.artifact import Artifact, reuse
from app.bundle.export.static_rows import static_rows
from app.compression.rows import Packed
from app.data.dataset import Dataset
from app.models.base import Model
from app.recipe import Recipe
from app.tables.form import Precision
from app.training.checkpoint import Checkpoint
from app.training.task import Conversion, Objective
from app.training.train import InitialWeights, task_of, train


class Given(TypedDict):
    """What training begins with and minimises, beside the recipe."""

    objective: Objective | None
    weights: InitialWeights
    conversion: Conversion | None


@dataclass
class Work:
    """A model on its way through the steps, which change it in place.

    Attributes:
        recipe: with the settings of every step.
        dataset: what the model was trained on, and what steps train on.
        source: the checkpoint as it was trained; it teaches, and stays as it is.
        folder: of what steps train, kept until the last step is done, so that an interrupted one goes on.
        model: in evaluation mode, on the CPU.
        hyperparameters: what the model was made from.
        evaluated: the rows of the model as it is now, as far as that has been evaluated.
        rows_are_put: whether a step has put others instead of what the model's pieces say.
    """

    recipe: Recipe
    dataset: Dataset
    source: Checkpoint
    folder: Path
    model: Model
    hyperparameters: dict[str, Any]
    evaluated: dict[str, Packed] | None = None
    rows_are_put: bool = False

    @property
    def rows(self) -> dict[str, Packed]:
        """Of each kind its rows, evaluated, or as a step has packed them; equal ones are the same object."""
        if self.evaluated is None:
            self.evaluated = dict(static_rows(self.model))
        return self.evaluated

    @property
    def precision(self) -> Precision:
        """That of the rows which are no codes; a model whose rows hold ids keeps them as they are."""
        return self.recipe.compress.rows if self.model.quantisable else "float32"

    def put_rows(self, rows: Mapping[str, Packed]) -> None:
        """Go on with rows that are no longer what the model's pieces say."""
        self.evaluated, self.rows_are_put = dict(rows), True

    def resize(self, sizes: Mapping[str, Mapping[str, int]]) -> None:
        """Note the sizes of dense layers that a step has changed, in the keys of LayerSize, by name."""
        before = self.hyperparameters.get("resized", {})
        changed = {name: {**before.get(name, {}), **size} for name, size in sizes.items()}
        self.hyperparameters = {**self.hyperparameters, "resized": {**before, **changed}}

    def weights_changed(self) -> None:
        """Evaluate the rows anew, unless a step has put others in their place."""
        if not self.rows_are_put:
            self.evaluated = None

    def change_model(self, model: Model, hyperparameters: Mapping[str, Any]) -> None:
        """Go on with another model, whose rows are evaluated anew."""
        self.model, self.hyperparameters = model, dict(hyperparameters)
        self.evaluated, self.rows_are_put = None, False

    def train(
        self,
        changes: Mapping[str, Any],
        label: str,
        objective: Objective | None = None,
        weights: InitialWeights = None,
        conversion: Conversion | None = None,
    ) -> Artifact:
        """Train the model as it is now, with some keys of the recipe changed.

        What was trained before is taken from there.
        """
        own = {f"model.{name}": value for name, value in self.hyperparameters.items()}
        recipe, out = self.recipe.override({**own, **changes}), self.folder / label
        given: Given = {"objective": objective, "weights": weights, "conversion": conversion}
        made = reuse(out, "checkpoint", task_of(recipe, self.dataset, **given).key)
        return made or train(recipe, self.dataset, out, label=label, **given)
