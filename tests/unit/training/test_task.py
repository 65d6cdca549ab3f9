"""Training with an objective and weights from outside, and what is left of one whose loss breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.artifact import Artifact
from app.data.dataset import Dataset
from app.errors import ArtifactError, RecipeError
from app.models.base import Model
from app.recipe import Recipe, parse
from app.training.batches import AnyBatch
from app.training.checkpoint import load_checkpoint
from app.training.state import BEST
from app.training.task import Weights
from app.training.train import fit, task_of, train
from tests.tiny import tiny_dataset

FIGURE = "ndcg@10"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset")


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return fit(recipe(), dataset, tmp_path_factory.mktemp("trained") / "checkpoint")


def recipe(name: str = "mlp", **settings: Any) -> Recipe:
    training = {"epochs": 3, "batch_size": 128, "learning_rate": 0.01, "workers": 0, "patience": 0}
    return parse({"model": {"name": name}, "train": {**training, "negatives": 4, **settings}}, "test")


def weights(artifact: Artifact) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(artifact.path / "weights.safetensors")
    return tensors


@dataclass(frozen=True)
class Towards:
    """The mean squared distance of all weights to a value."""

    value: float

    @property
    def key(self) -> str:
        return f"towards {self.value}"

    def __call__(self, model: Model, batch: AnyBatch) -> Tensor:
        return torch.stack([(weight - self.value).square().mean() for weight in model.parameters()]).sum()


@dataclass
class Breaks:
    """The model's own loss, but for one step, counted over the whole training."""

    step: int
    loss: float = 1.0  # factor of the loss there
    gradient: bool = False  # whether the gradient alone is NaN there
    key: str = "breaks"
    calls: list[None] = field(default_factory=list)

    def __call__(self, model: Model, batch: AnyBatch) -> Tensor:
        self.calls.append(None)
        loss = model.loss(batch)
        if len(self.calls) != self.step:
            return loss
        weight = next(iter(model.parameters()))
        return loss * self.loss + ((weight.sum() * 0).sqrt() if self.gradient else 0.0)


def test_given_weights_give_their_figure_before_the_first_step(
    dataset: Dataset, trained: Artifact, tmp_path: Path
) -> None:
    more = fit(recipe(epochs=1), dataset, tmp_path / "a", weights=trained.path)
    assert more.figures[f"initial_{FIGURE}"] == trained.figures[f"best_{FIGURE}"] > 0.2
    assert f"initial_{FIGURE}" not in trained.figures
    assert more.figures[f"best_{FIGURE}"] >= more.figures[f"initial_{FIGURE}"]


def test_where_no_epoch_is_better_the_given_weights_stay(
    dataset: Dataset, trained: Artifact, tmp_path: Path
) -> None:
    settings = recipe(learning_rate=3.0, table_learning_rate=3.0, clip_norm=1.0, epochs=2)
    worse = fit(settings, dataset, tmp_path / "a", weights=trained.path)
    assert (worse.figures["epochs"], worse.figures["best_epoch"]) == (2, 0)
    before, after = weights(trained), weights(worse)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_and_objective_are_part_of_the_key(dataset: Dataset, trained: Artifact) -> None:
    """Weights by their content: a checkpoint, its file and a state dict of it are the same."""

    def key(objective: Towards | None = None, initial: Any = None) -> str:
        return task_of(recipe(), dataset, None, objective, initial).key

    tensors = weights(trained)
    same = {key(initial=w) for w in (trained.path, trained.path / "weights.safetensors", tensors)}
    other = key(initial={**tensors, "item_half.weight": tensors["item_half.weight"] + 1})
    assert len(same) == 1
    assert len({*same, other, key(), key(Towards(1.0)), key(Towards(2.0))}) == 5


def test_an_objective_from_outside_is_the_one_that_is_minimised(dataset: Dataset, tmp_path: Path) -> None:
    settings = recipe(table_optimizer="same", learning_rate=0.02, epochs=6)
    artifact = fit(settings, dataset, tmp_path / "a", objective=Towards(0.5))
    losses = [line["loss"] for line in load_checkpoint(artifact.path, dataset).curve]
    assert losses[-1] < 0.05 * losses[0]


def test_weights_of_another_model_are_refused(dataset: Dataset, trained: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"do not fit the model.*give those of the same model"):
        fit(recipe("neumf"), dataset, tmp_path / "a", weights=trained.path)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"no\.safetensors.*cannot be read"):
        Weights.of(tmp_path / "no.safetensors")


@pytest.mark.parametrize("factor", [nan, inf])
def test_a_broken_loss_stops_at_once_and_the_last_good_weights_stay(
    dataset: Dataset, tmp_path: Path, factor: float
) -> None:
    """In the third step of the third epoch; its two epochs before are in a file to begin with again."""
    steps = len(list(dataset.train.label)) // 128 + 1
    broken = Breaks(2 * steps + 3, loss=factor)
    with pytest.raises(RecipeError, match=r"the loss of epoch 3 is (nan|inf) at step 3.*best\.safetensors"):
        fit(recipe(), dataset, tmp_path / "a", objective=broken)
    assert len(broken.calls) == broken.step and not (tmp_path / "a").exists()
    [kept] = (tmp_path / ".a.run").glob(f"checkpoint-*/{BEST}")
    whole = fit(recipe(epochs=2), dataset, tmp_path / "b")
    again = fit(recipe(epochs=1), dataset, tmp_path / "c", weights=kept)
    assert again.figures[f"initial_{FIGURE}"] == whole.figures[f"best_{FIGURE}"]


def test_weights_that_break_in_the_last_step_are_never_kept(dataset: Dataset, tmp_path: Path) -> None:
    """The loss is a number, its gradient is none: only the next loss would tell."""
    steps = len(list(dataset.train.label)) // 128 + 1
    broken = Breaks(2 * steps, gradient=True)
    with pytest.raises(RecipeError, match=rf"no finite number in epoch 2 at step {steps}"):
        fit(recipe(), dataset, tmp_path / "a", objective=broken)
    [kept] = (tmp_path / ".a.run").glob("checkpoint-*")
    for name in ("model.safetensors", BEST):
        assert all(tensor.isfinite().all() for tensor in load_file(kept / name).values())


def test_two_workers_train_a_model_of_sequences_from_given_weights(
    dataset: Dataset, tmp_path: Path, ray_local: None
) -> None:
    """Over Ray Train, by an objective from outside: both workers' gradients count."""
    first = fit(recipe("gru4rec", epochs=1), dataset, tmp_path / "first")
    settings = recipe("gru4rec", workers=2, epochs=2)
    both = train(settings, dataset, tmp_path / "a", objective=Breaks(10**9), weights=first.path)
    assert both.figures["epochs"] == 2
    assert both.figures[f"initial_{FIGURE}"] == first.figures[f"best_{FIGURE}"]
    curve = load_checkpoint(both.path, dataset).curve
    assert curve[-1]["loss"] < load_checkpoint(first.path, dataset).curve[0]["loss"]
