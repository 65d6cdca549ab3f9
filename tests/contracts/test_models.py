"""What every model in app/models promises. A new file there is tested here without any other change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.bundle.export.static_rows import static_rows
from app.data.dataset import Dataset
from app.evaluation.contract import PROMISES, Subject, broken_by, treats_untrained_ids_as_unknown
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validate
from app.models.base import Model
from app.models.build import build_model
from app.models.discovery import model_names
from app.recipe import Recipe, parse
from app.tables.rows import Rows
from app.tables.write import write_rows
from app.training.checkpoint import Checkpoint, load_checkpoint
from app.training.train import fit
from tests.tiny import Datasets

TABLES: dict[str, dict[str, Any]] = {"dense": {}, "hashed": {"buckets": 16}}

pytestmark = pytest.mark.parametrize("name", model_names())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("tiny"), users=200, events=4000)


@pytest.fixture(scope="module")
def sparse_datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("sparse"), untrained=5)


@pytest.fixture
def dataset(name: str, datasets: Datasets) -> Dataset:
    return datasets[name]


@pytest.fixture
def sparse(name: str, sparse_datasets: Datasets) -> Dataset:
    """A data set with users and items that training did not meet."""
    return sparse_datasets[name]


@pytest.fixture(scope="module")
def trained(datasets: Datasets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Each model after a few epochs, through a checkpoint on disk."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = {}
    for name in model_names():
        fit(recipe(name), datasets[name], folder / name)
        checkpoints[name] = load_checkpoint(folder / name, datasets[name])
    return checkpoints


def recipe(name: str) -> Recipe:
    training = {"epochs": 5, "batch_size": 128, "learning_rate": 0.01, "workers": 0, "valid_users": 200}
    return parse({"model": {"name": name}, "train": training, "evaluate": {"baselines": []}}, "test")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_keeps_the_promise(name: str, promise: Any, sparse: Dataset) -> None:
    assert broken_by(Subject(name, sparse), promise) == ""


@pytest.mark.parametrize("table", ["dense", "hashed"])
def test_an_untrained_id_is_evaluated_as_it_is_stored(
    name: str, table: str, sparse: Dataset, tmp_path: Path
) -> None:
    subject = Subject(name, sparse, {"table": table, "table_options": TABLES[table]})
    assert broken_by(subject, treats_untrained_ids_as_unknown) == ""
    model, stored = subject.model, {}
    for kind, rows in static_rows(model).items():
        write_rows(tmp_path, kind, rows, "float32")
        stored[kind] = Rows.open(tmp_path, kind)
        trained = torch.from_numpy(np.flatnonzero(sparse.trained["user" if kind == "user" else "item"]))
        piece: Tensor = getattr(model, f"{kind}_rows")(trained).detach()
        np.testing.assert_allclose(rows[trained.numpy()], piece.numpy(), atol=1e-6)
    untrained = {side: torch.from_numpy(np.flatnonzero(~known)[1:]) for side, known in sparse.trained.items()}
    assert all(len(rows) == 5 for rows in untrained.values())
    requests = subject.batch(6, 8)
    requests.user[1:3], requests.item[:, :2] = untrained["user"][:2], untrained["item"][:2]
    requests.history.item[3, -1] = untrained["item"][2]
    live, from_disk = ModelScorer(model), ModelScorer(model, stored)
    torch.testing.assert_close(live.all(requests), from_disk.all(requests), atol=1e-5, rtol=1e-4)
    scores = live.candidates(requests)
    torch.testing.assert_close(scores, from_disk.candidates(requests), atol=1e-5, rtol=1e-4)


def test_learns_the_planted_tastes(name: str, dataset: Dataset, trained: dict[str, Checkpoint]) -> None:
    def quality(model: Model) -> float:
        return validate(recipe(name), dataset, ModelScorer(model), 200, 0)["ndcg@10"]

    learned, popularity = quality(trained[name].model), quality(trained["popularity"].model)
    if name == "popularity":
        shuffled = build_model(name, {}, dataset)
        popularity = quality(_shuffle(shuffled))
    assert learned > 1.15 * popularity


def _shuffle(model: Model) -> Model:
    for buffer in model.buffers():
        buffer.copy_(buffer[torch.randperm(len(buffer), generator=torch.Generator().manual_seed(0))])
    return model


def test_a_checkpoint_gives_the_same_logits(name: str, dataset: Dataset, tmp_path: Path) -> None:
    from app.artifact import publish
    from app.training.checkpoint import save_checkpoint

    subject = Subject(name, dataset)
    model = subject.model
    with publish(tmp_path / "checkpoint", "checkpoint", {}, {}) as draft:
        save_checkpoint(draft.path, model, name, {}, dataset.trained)
    loaded = load_checkpoint(tmp_path / "checkpoint", dataset)
    requests = subject.batch(4, 6)
    assert torch.equal(loaded.model(requests), model(requests))
    assert not loaded.model.training and loaded.rows is None and loaded.name == name


def test_an_unknown_user_gets_better_than_chance(
    name: str, dataset: Dataset, trained: dict[str, Checkpoint]
) -> None:
    """Row 0 and no history: what is then ranked first is what many people like."""
    model = trained[name].model
    request = Subject(name, dataset).batch(1, 1)
    request.context[:] = 0
    request.item = torch.arange(1, model.inputs.items)[None]
    order = ModelScorer(model).candidates(request)[0].argsort(descending=True).numpy() + 1
    popularity = dataset.popularity
    assert popularity[order[:10]].mean() > popularity[1:].mean()
