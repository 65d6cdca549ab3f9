"""Training batches: what a model learns from, in the way that suits it (`Model.trains_on`)."""

from __future__ import annotations

import torch

from app.data.dataset import Dataset
from app.models.base import Model
from app.recipe import Recipe
from app.training.batches.base import AnyBatch, Batches
from app.training.batches.events import EventBatches
from app.training.batches.sequences import SequenceBatches
from app.training.batches.sets import SetBatches

__all__ = ["AnyBatch", "Batches", "batches_of"]


def batches_of(model: Model, dataset: Dataset, recipe: Recipe, *, rank: int = 0, world: int = 1) -> Batches:
    """The batches that a model learns from, events, sequences or sets.

    Args:
        rank, world: this worker and how many there are.

    Raises:
        DataError: no event to learn from.
        RecipeError: an objective or a way to learn that does not suit the data.
    """
    settings, loss, seed = recipe.train, model.config.loss, recipe.seed
    if model.trains_on == "sequences":
        return SequenceBatches(dataset, settings, loss, seed, rank=rank, world=world)
    if model.trains_on == "sets":
        return SetBatches(dataset, settings, loss, seed, rank=rank, world=world)
    return EventBatches(
        dataset,
        settings,
        loss,
        seed,
        repeats=not recipe.evaluate.exclude_seen,
        history=uses_history(model),
        rank=rank,
        world=world,
    )


def uses_history(model: Model) -> bool:
    """Whether the model reads histories; where it does not, their look-up is left out."""
    with torch.no_grad():
        row = model.history_rows(torch.zeros(1, dtype=torch.int64, device=model.log_popularity.device))
    return row.shape[-1] > 0
