"""Builds the model that a recipe names, sized for a prepared data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from app.data.dataset import Dataset
from app.models.base import Content, Inputs, Model, ModelConfig
from app.models.discovery import model_class, model_config
from app.tables.base import Table, Tables
from app.tables.discovery import table_class


def build_model(source: str, hyperparameters: dict[str, Any], dataset: Dataset, *, fit: bool = True) -> Model:
    """A new model; one that does not learn by gradients is fitted at once.

    Args:
        source: the name of a model, or the path of a file of the user's that defines one.
        fit: False where its state is loaded afterwards, which spares the fit.

    Raises:
        RecipeError: an unknown model or hyperparameter, or a file that defines no model.
    """
    config = model_config(source, hyperparameters)
    model = model_class(source)(config, inputs_of(dataset), content_of(dataset), tables_of(config))
    if fit and not model.learns:
        model.fit(dataset)
    return model


def inputs_of(dataset: Dataset) -> Inputs:
    """The sizes that a model for `dataset` is built with."""
    s = dataset.schema
    return Inputs(
        users=s.users,
        items=s.items,
        events=len(s.events),
        history=s.history,
        context=s.context_width,
        item_dense=s.item_dense,
        user_dense=s.user_dense,
        item_categories=tuple(s.item_categories),
        user_categories=tuple(s.user_categories),
    )


def content_of(dataset: Dataset) -> Content:
    """Content features, item popularity and which ids have training events, as tensors."""
    counts = dataset.popularity + 1.0  # an item without events keeps a finite logarithm
    return Content(
        item_dense=torch.from_numpy(np.array(dataset.feature("item_dense"))),
        item_category=torch.from_numpy(dataset.feature("item_category").astype(np.int64)),
        user_dense=torch.from_numpy(np.array(dataset.feature("user_dense"))),
        user_category=torch.from_numpy(dataset.feature("user_category").astype(np.int64)),
        log_popularity=torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32)),
        user_trained=torch.from_numpy(dataset.trained["user"].copy()),
        item_trained=torch.from_numpy(dataset.trained["item"].copy()),
    )


def tables_of(config: ModelConfig) -> Tables:
    """The kind of table that the configuration names."""

    kind = table_class(config.table)
    options = kind.check(config.table_options)

    def create(name: str, rows: int, width: int) -> Table:
        table = kind.create(rows, width, options)
        table.name, table.rows = name, rows
        return table

    return create
