"""What every model of sequences learns. A new one in app/models is tested here without any other change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.data.dataset import Dataset, Part
from app.models.discovery import model_class, model_names
from app.recipe import parse
from app.training.train import fit
from tests.tiny import tiny_dataset

SEQUENCES = [name for name in model_names() if model_class(name).trains_on == "sequences"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_model_of_sequences_learns_what_follows_what(name: str, tmp_path: Path) -> None:
    """Everybody goes from an item to the next one, beginning anywhere: nothing but the last event tells."""
    items, length = 40, 12
    dataset = tiny_dataset(tmp_path / "dataset", users=80, items=items, events=1000)
    number, begin = np.arange(length), np.random.default_rng(0).integers(0, items, 80)
    columns = {
        "user": np.repeat(np.arange(1, 81), length),
        "item": 1 + ((begin[:, None] + number) % items).flatten(),
        "time": np.tile(1_000_000 * (1 + number), 80),
        **{column: np.ones(80 * length) for column in ("event", "value", "label")},
    }
    position = np.tile(number, 80)
    for part, rows in (("train", position < 10), ("valid", position == 10), ("test", position == 11)):
        Part.save(dataset.path / part, {c: values[rows] for c, values in columns.items()}, 81)
    dataset = Dataset.open(dataset.path, verify=False)
    training = {"epochs": 30, "batch_size": 64, "learning_rate": 0.01, "workers": 0}
    settings = parse({"model": {"name": name}, "train": training}, "test")
    assert fit(settings, dataset, tmp_path / "checkpoint").figures["best_ndcg@10"] > 0.8
