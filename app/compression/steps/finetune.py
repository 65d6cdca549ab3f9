"""Training goes on with rows that are felt as they will be stored, taught by the uncompressed model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from app.compression.packed import coded_rows, pack, unpack
from app.compression.rows import Packed, arrays_of
from app.compression.teacher import Distillation
from app.compression.work import Work
from app.errors import RecipeError
from app.models.base import Model
from app.tables.form import Precision
from app.training.checkpoint import WEIGHTS

CHOOSE_EVERY = 20  # steps; choosing costs about as much as one of them


def apply(work: Work) -> dict[str, Any]:
    """Train the dense part, the codewords and the integers of the rows; pruned weights stay 0.

    Returns:
        finetune: the metric of training before and after, and the epochs of the best.

    Raises:
        RecipeError: a model in closed form.
    """
    settings, compress = work.recipe.compress.finetune, work.recipe.compress
    if not work.model.learns:
        raise RecipeError(
            f"{work.source.name} is fitted in closed form and cannot be trained further",
            where="compress.steps",
            remedy="leave out 'finetune'",
        )
    zeros = _zeros(work.model) if "prune" in compress.steps else ()
    conversion = AsStored(work.rows, work.precision, compress.group, zeros)
    teacher = Distillation((str(work.source.artifact.path),), str(work.dataset.path), settings.weight)
    weights = work.model.state_dict()
    changes = {
        "train.epochs": settings.epochs,
        "train.learning_rate": work.recipe.train.learning_rate * settings.rate,
        "train.schedule": "cosine",
        "train.warmup_steps": 0,
        "train.patience": 0,
        "train.table_optimizer": "same",
    }
    trained = work.train(changes, "finetune", teacher if settings.weight else None, weights, conversion)
    conversion.convert(work.model)
    work.model.load_state_dict(load_file(trained.path / WEIGHTS))
    work.put_rows(unpack(work.model.eval(), work.rows))
    metric = work.recipe.train.metric
    figures = {name: trained.figures.get(f"{name}_{metric}") for name in ("initial", "best")}
    return {"finetune": {"metric": metric, "epochs": trained.figures["best_epoch"], **figures}}


@dataclass(frozen=True)
class AsStored:
    """Rows as they will be stored instead of what a model's pieces say, and dense weights that stay 0.

    Attributes:
        rows: of each kind.
        precision, group: of those that are no codes.
        zeros: names of the weights whose zeros stay.
    """

    rows: Mapping[str, Packed]
    precision: Precision
    group: int
    zeros: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """SHA-256 of the rows and of how they are stored."""
        digest = hashlib.sha256(f"{self.precision} {self.group} {self.zeros}".encode())
        for kind, rows in self.rows.items():
            digest.update(kind.encode())
            for array in arrays_of(rows):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def convert(self, model: Model) -> None:
        """Put the rows into the model, and note where its weights are 0."""
        pack(model, self.rows, self.precision, self.group)
        for name in self.zeros:
            layer, _, _ = name.rpartition(".")
            kept = model.get_parameter(name) != 0
            model.get_submodule(layer).register_buffer("kept", kept, persistent=False)

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        """Make the pruned weights 0 again, and every CHOOSE_EVERY steps choose codewords anew."""
        if step % CHOOSE_EVERY == 0:
            for rows in coded_rows(model):
                rows.choose(step // CHOOSE_EVERY)
        for name in self.zeros:
            layer, _, _ = name.rpartition(".")
            model.get_parameter(name).mul_(model.get_submodule(layer).get_buffer("kept"))


def _zeros(model: Model) -> tuple[str, ...]:
    """Names of the weights of dense layers that are 0 in places, as pruning leaves them."""
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    return tuple(f"{name}.weight" for name, layer in layers if bool((layer.weight == 0).any()))
