"""What a checkpoint is made from: recipe, data, objective, and the weights that training begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from app.artifact import cache_key, open_artifact
from app.data.dataset import Dataset
from app.errors import ArtifactError
from app.models.base import Model
from app.models.build import build_model
from app.recipe import Recipe
from app.training.batches import AnyBatch
from app.training.checkpoint import WEIGHTS
from app.training.defaults import settled

STAGE_VERSION = 4  # raise it when the same recipe and data come to give another checkpoint


class Objective(Protocol):
    """What training minimises, where it is not the model's own loss; with Ray it travels to the workers."""

    @property
    def key(self) -> str:
        """What it depends on, such as the digest of a teacher: a part of the checkpoint's cache key."""
        ...

    def __call__(self, model: Model, batch: AnyBatch) -> Tensor:
        """The scalar loss of a batch, with a gradient for the weights of the model."""
        ...


class Conversion(Protocol):
    """A change of the model before it is trained, such as rows that are felt as they will be stored.

    With Ray it travels to the workers.
    """

    @property
    def key(self) -> str:
        """What it depends on: a part of the checkpoint's cache key."""
        ...

    def convert(self, model: Model) -> None:
        """Change a model on the CPU, in place; it has the weights that training begins with."""
        ...

    def after_step(self, model: Model, step: int) -> None:
        """Restore what has to hold after each update of the weights; steps count from 1 over all epochs."""
        ...


@dataclass(frozen=True)
class Weights:
    """Weights that a training begins with, as a state dict, and the SHA-256 of their names and values."""

    tensors: Mapping[str, Tensor]
    digest: str

    @classmethod
    def of(cls, source: Path | Mapping[str, Tensor]) -> Weights:
        """Take a state dict, or read one from a checkpoint or from a safetensors file.

        Raises:
            ArtifactError: absent, damaged or no checkpoint.
        """
        tensors = _read(source) if isinstance(source, Path) else dict(source)
        digest = hashlib.sha256()
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return cls(tensors, digest.hexdigest())

    def load_into(self, model: Model) -> None:
        """Give them to a model.

        Raises:
            ArtifactError: they are those of another model, or of other sizes.
        """
        try:
            model.load_state_dict(self.tensors)
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1].strip()
            raise ArtifactError(
                f"the weights to begin with do not fit the model and the data set ({problem})",
                where="weights",
                remedy="give those of the same model, trained on the same data set",
            ) from error


@dataclass(frozen=True)
class Task:
    """What a checkpoint is made from.

    Args:
        recipe: with the settings of [train] that the model asks for (`settled`).
        epochs: stop after so many, with the learning rates of train.epochs; None: train.epochs.
        objective: what training minimises; None: the model's own loss.
        weights: that it begins with; None: random ones.
        conversion: a change of the model before training; None: it stays as the recipe makes it.
    """

    recipe: Recipe
    dataset: Dataset
    epochs: int | None = None
    objective: Objective | None = None
    weights: Weights | None = None
    conversion: Conversion | None = None

    def new_model(self) -> Model:
        """The model before its first step, on the CPU."""
        section = self.recipe.model
        model = build_model(section.source, section.hyperparameters, self.dataset)
        if self.weights:
            self.weights.load_into(model)
        if self.conversion:
            self.conversion.convert(model)
        return model

    @property
    def settings(self) -> dict[str, Any]:
        """What the checkpoint depends on, beside the data."""
        given = {
            "stop_after": self.epochs,
            "objective": self.objective and self.objective.key,
            "weights": self.weights and self.weights.digest,
            "conversion": self.conversion and self.conversion.key,
        }
        return {**checkpoint_settings(self.recipe), **{key: value for key, value in given.items() if value}}

    @property
    def parents(self) -> dict[str, str]:
        """Digests of what the checkpoint is made from."""
        return {"dataset": self.dataset.artifact.digest}

    @property
    def key(self) -> str:
        """The cache key of the checkpoint."""
        return cache_key("checkpoint", self.settings, self.parents, STAGE_VERSION)


def checkpoint_settings(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that a checkpoint depends on.

    Validation follows the protocol of evaluation. `train.refit` and `train.valid_too` are left out, because
    they make another checkpoint of its own.
    """
    settings = settled(recipe).part("model", "train")
    del settings["train"]["refit"], settings["train"]["valid_too"]
    protocol = recipe.part("evaluate")["evaluate"]
    return {**settings, "evaluate": {key: protocol[key] for key in ("candidates", "exclude_seen")}}


def _read(path: Path) -> dict[str, Tensor]:
    file = open_artifact(path, "checkpoint").path / WEIGHTS if path.is_dir() else path
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"the weights cannot be read ({error})",
            where=str(path),
            remedy="give the folder of a checkpoint, or a safetensors file",
        ) from error
    return tensors
