"""Builds the model that a recipe names, sized for a prepared data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.data.dataset import Dataset
from app.errors import RecipeError
from app.events import WHOLE_PAST
from app.models.base import Content, Inputs, Model, ModelConfig, Reads
from app.models.discovery import model_class, model_config
from app.models.resize import resize
from app.tables.base import Table, Tables
from app.tables.discovery import table_class


def build_model(source: str, hyperparameters: dict[str, Any], dataset: Dataset, *, fit: bool = True) -> Model:
    """A new model; one that does not learn by gradients is fitted at once.

    Args:
        source: the name of a model, or the path of a file of the user's that defines one.
        fit: False where its state is loaded afterwards, which spares the fit.

    Raises:
        RecipeError: an unknown model or hyperparameter, a file that defines no model, or a model that looks
            at features which the items do not have.
    """
    config = model_config(source, hyperparameters)
    kind = model_class(source)
    _check_needs(kind, Path(source).stem, dataset)
    model = kind(config, inputs_of(dataset, kind.reads), content_of(dataset), tables_of(config))
    resize(model, config.resized)
    if fit and not model.learns:
        model.fit(dataset)
    return model


def inputs_of(dataset: Dataset, reads: Reads = "recent") -> Inputs:
    """The sizes that a model for `dataset` that reads so much of a past is built with."""
    s = dataset.schema
    return Inputs(
        users=s.users,
        items=s.items,
        events=len(s.events),
        history=s.history if reads == "recent" else max(1, min(WHOLE_PAST, dataset.longest)),
        context=s.context_width,
        item_dense=s.item_dense,
        user_dense=s.user_dense,
        item_categories=tuple(s.item_categories),
        user_categories=tuple(s.user_categories),
        ordered=s.ordered,
        item_blocks=tuple(s.item_blocks),
    )


def _check_needs(kind: type[Model], name: str, dataset: Dataset) -> None:
    present = {block.kind for block in dataset.schema.item_blocks}
    for group in kind.NEEDS:
        if not present & set(group):
            raise RecipeError(
                f"{name} looks at item features of the kind {' or '.join(group)}, and there are none",
                where="model.name",
                remedy=f'add [[features.item]] with kind = "{group[0]}", or choose another model',
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
