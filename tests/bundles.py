"""Small bundles for tests: a model with random weights over a tiny data set, exported for real."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.bundle.export.export import export
from app.bundle.export.static_rows import static_rows
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.models.base import Batch, Model, Reads
from app.models.batch import batch_of, recent_of
from app.models.build import build_model
from app.recipe import parse
from app.tables.form import Precision
from app.tables.rows import Rows
from app.tables.write import write_rows

NOW = 1_706_000_000  # seconds; after the last event of a tiny data set of 1500


@dataclass
class Trained:
    """A checkpoint that was never on disk."""

    model: Model
    name: str
    trained: dict[str, np.ndarray]  # type: ignore[type-arg]
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Rows] | None = None


def random_model(name: str, dataset: Dataset, seed: int = 0, **hyperparameters: Any) -> Model:
    """A model whose weights are large enough to tell items apart."""
    torch.manual_seed(seed)
    model = build_model(name, hyperparameters, dataset)
    if model.learns:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def checkpoint_of(
    model: Model,
    dataset: Dataset,
    folder: Path | None = None,
    precision: Precision | None = None,
    name: str = "",
) -> Trained:
    """A model as `train` or, where there is a precision, `compress` would leave it, its rows in `folder`."""
    rows = None
    if precision:
        assert folder is not None
        rows = {}
        for key, values in static_rows(model).items():
            write_rows(folder, key, values, precision)
            rows[key] = Rows.open(folder, key)
    return Trained(model, name or type(model).__module__.rsplit(".", 1)[-1], dataset.trained, rows=rows)


def bundle_of(
    model: Model,
    dataset: Dataset,
    out: Path,
    *,
    name: str = "",
    precision: Precision | None = None,
    dense: str = "float32",
    figures: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Ranker:
    """Export a model as `compress` and `export` would; `precision` None: not compressed.

    `settings` are the recipe's [export].
    """
    recipe = parse({"name": "tiny", "compress": {"dense": dense}, "export": settings or {}}, "test")
    checkpoint = checkpoint_of(model, dataset, out.with_name(f"{out.name}-rows"), precision, name)
    export(recipe, dataset, checkpoint, out, {"of": "test"}, {"checkpoint": "c"}, figures or {})
    return Ranker.open(out)


def describe_items(dataset: Dataset, **columns: list[Any]) -> None:
    """Give the items of a data set these attribute columns, the value of row 0 first."""
    pq.write_table(pa.table(columns), dataset.path / "columns" / "items.parquet")


def requests_batch(
    dataset: Dataset,
    users: list[int],
    items: np.ndarray,  # type: ignore[type-arg]
    reads: Reads = "recent",
) -> Batch:
    """What a torch model that reads so much is shown of users (rows) at NOW with every event kept."""
    row = np.array(users)
    recent = recent_of(dataset, row, dataset.parts, reads)
    later = recent[2] > NOW * 1_000_000
    assert not later.any(), "NOW must come after the events"
    return batch_of(dataset, row, recent, np.full(len(users), NOW * 1_000_000), items)
