"""The training stage in this process: reproducible, resumable, stopped when it should be."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from app.artifact import Artifact, open_artifact, publish
from app.data.dataset import Dataset
from app.errors import ArtifactError, MachineError, RecipeError
from app.models.build import build_model
from app.recipe import Recipe, parse
from app.training.checkpoint import load_checkpoint, save_checkpoint
from app.training.hosts import PROGRESS, LocalHost
from app.training.loop import Loop
from app.training.train import fit, task_of, train
from tests.tiny import tiny_dataset


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "dataset", skips=0.2)


def recipe(**settings: Any) -> Recipe:
    model = settings.pop("model", {"name": "mlp", "dropout": 0.2})
    training = {"epochs": 3, "batch_size": 128, "learning_rate": 0.01, "workers": 0, "patience": 0}
    training |= {"negatives": 4, "patience_steps": 0}
    return parse({"model": model, "train": {**training, **settings}}, "test")


def weights(artifact: Artifact) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(artifact.path / "weights.safetensors")
    return tensors


def same(a: Artifact, b: Artifact) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Stopped(Exception):
    """What a scheduler raises to end a trial."""


def stop_after(epoch: int) -> Any:
    def report(figures: dict[str, Any]) -> None:
        if figures["epoch"] == epoch:
            raise Stopped

    return report


def test_two_runs_give_equal_weights_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    once, again = (fit(recipe(), dataset, tmp_path / name) for name in ("a", "b"))
    assert same(once, again)


def test_another_seed_gives_other_weights(dataset: Dataset, tmp_path: Path) -> None:
    once = fit(recipe(epochs=1), dataset, tmp_path / "a")
    assert not same(once, fit(recipe(epochs=1).override({"seed": 1}), dataset, tmp_path / "b"))


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "same"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(dataset: Dataset, tmp_path: Path, tables: str) -> None:
    trained_recipe = recipe(table_optimizer=tables, schedule="cosine")
    with pytest.raises(Stopped):
        fit(trained_recipe, dataset, tmp_path / "a", stop_after(1))
    assert not (tmp_path / "a").exists()
    resumed = fit(trained_recipe, dataset, tmp_path / "a")
    whole = fit(trained_recipe, dataset, tmp_path / "b")
    assert same(resumed, whole)
    assert resumed.figures["resumed_from"] == 1 and whole.figures["resumed_from"] is None
    assert not list(tmp_path.glob(".*.run"))


@pytest.mark.parametrize(
    "model", [{"name": "mlp", "dropout": 0.2}, {"name": "sasrec", "width": 16}, {"name": "mult_vae"}], ids=str
)
def test_goes_on_in_the_middle_of_an_epoch(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    """A checkpoint between two steps holds the position in the data and the random state of dropout."""
    monkeypatch.setattr("app.training.loop.STEPS_BETWEEN_CLOCKS", 5)
    trained_recipe = recipe(checkpoint_minutes=1e-9, model=model)
    broken = Loop(task_of(trained_recipe, dataset), _StopsInTheMiddle(tmp_path))
    with pytest.raises(Stopped):
        broken.run()
    assert broken.progress.epoch == 1 and broken.progress.step == 5
    again = Loop(task_of(trained_recipe, dataset), LocalHost(tmp_path, torch.device("cpu")))
    assert again.progress.step == 5
    again.run()
    (tmp_path / "whole").mkdir()
    whole = Loop(task_of(trained_recipe, dataset), LocalHost(tmp_path / "whole", torch.device("cpu")))
    whole.run()
    assert all(torch.equal(again.state.best[k], whole.state.best[k]) for k in whole.state.best)
    assert again.progress.curve[1]["loss"] == pytest.approx(whole.progress.curve[1]["loss"], rel=1e-5)


class _StopsInTheMiddle(LocalHost):
    """Breaks behind the first checkpoint within epoch 2."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, torch.device("cpu"))
        self.epochs = 0

    def checkpoint(self, figures: dict[str, Any], write: Any, *, epoch_ends: bool) -> None:
        super().checkpoint(figures, write, epoch_ends=epoch_ends)
        self.epochs += epoch_ends
        if self.epochs and not epoch_ends:
            raise Stopped


def test_other_settings_do_not_go_on(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(recipe(), dataset, tmp_path / "a", stop_after(1))
    other = fit(recipe(learning_rate=0.02), dataset, tmp_path / "a")
    assert other.figures["resumed_from"] is None


def test_stops_when_validation_gets_no_better(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.1])
    monkeypatch.setattr("app.training.validation.validate", lambda *_: {"ndcg@10": next(figures)})
    artifact = fit(recipe(epochs=9, patience=2), dataset, tmp_path / "a")
    assert (artifact.figures["epochs"], artifact.figures["best_epoch"]) == (4, 2)
    assert artifact.figures["best_ndcg@10"] == 0.3


@pytest.mark.parametrize(
    ("figures", "patience", "epochs", "best"),
    [
        ([nan, 0.1, 0.2, nan], 0, 4, 3),  # none in the first epoch does not count as the best for ever
        ([0.1, nan, nan, 0.2], 2, 3, 1),  # epochs without a figure are no better
        ([nan, nan, nan, nan], 1, 4, 4),  # nothing to judge by: all epochs, and the last weights
        ([inf, 0.1, -inf, 0.1], 0, 4, 2),
    ],
)
def test_a_figure_that_is_no_number_is_never_the_best(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: list[float],
    patience: int,
    epochs: int,
    best: int,
) -> None:
    each = iter(figures)
    monkeypatch.setattr("app.training.validation.validate", lambda *_: {"ndcg@10": next(each), "auc": 0.5})
    artifact = fit(recipe(epochs=4, patience=patience), dataset, tmp_path / "a")
    assert (artifact.figures["epochs"], artifact.figures["best_epoch"]) == (epochs, best)
    chosen = figures[best - 1]
    assert artifact.figures.get("best_ndcg@10") == (chosen if isfinite(chosen) else None)
    curve = load_checkpoint(artifact.path, dataset).curve
    assert [line.get("ndcg@10") for line in curve] == [f if isfinite(f) else None for f in figures[:epochs]]
    monkeypatch.setattr("app.training.validation.validate", lambda *_: {"ndcg@10": nan})
    assert same(artifact, fit(recipe(epochs=best), dataset, tmp_path / "b"))  # the weights of that epoch


def test_the_best_weights_are_published(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr("app.training.validation.validate", lambda *_: {"ndcg@10": next(figures)})
    best = fit(recipe(), dataset, tmp_path / "a")
    monkeypatch.setattr("app.training.validation.validate", lambda *_: {"ndcg@10": 0.5})
    assert same(best, fit(recipe(epochs=1), dataset, tmp_path / "b"))


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_logged_labels(dataset: Dataset, tmp_path: Path, loss: str) -> None:
    artifact = fit(
        recipe(negatives=0, model={"name": "mlp", "loss": loss}, epochs=4), dataset, tmp_path / "a"
    )
    curve = load_checkpoint(artifact.path, dataset).curve
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]


@pytest.mark.parametrize("loss", ["cross_entropy", "bpr", "sampled_softmax"])
def test_other_objectives_learn(dataset: Dataset, tmp_path: Path, loss: str) -> None:
    artifact = fit(recipe(model={"name": "neumf", "loss": loss}), dataset, tmp_path / "a")
    curve = load_checkpoint(artifact.path, dataset).curve
    assert curve[-1]["loss"] < curve[0]["loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"clip_norm": 0.5},
        {"optimizer": "sgd"},
        {"optimizer": "adamw", "weight_decay": 0.01},
    ],
)
def test_settings_train(dataset: Dataset, tmp_path: Path, settings: dict[str, Any]) -> None:
    artifact = fit(recipe(**settings), dataset, tmp_path / "a")
    assert artifact.figures["best_ndcg@10"] > 0.1
    assert weights(artifact)["item_half.weight"].dtype == torch.float32


def test_figures_and_curve(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = []
    fit(recipe(), dataset, tmp_path / "trial", lines.append)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    capsys.readouterr()
    artifact = train(recipe(), dataset, tmp_path / "a")
    shown = capsys.readouterr().err
    assert "epoch 3: loss" in shown and "samples/s" in shown and "ndcg@10" in shown
    assert artifact.kind == "checkpoint" and artifact.parents == {"dataset": dataset.artifact.digest}
    parameters = sum(w.numel() for w in weights(artifact).values())
    assert (artifact.figures["parameters"], artifact.figures["bytes"]) == (parameters, 4 * parameters)
    assert artifact.figures["samples_per_second"] > 0
    assert len(load_checkpoint(artifact.path, dataset).curve) == artifact.figures["epochs"] == 3


def test_without_a_validation_part_the_last_weights_are_kept(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    for file in (dataset.path / "valid").glob("*.npy"):
        rows = np.load(file)
        np.save(file, np.zeros_like(rows) if file.stem == "indptr" else rows[:0])
    artifact = fit(recipe(patience=1), Dataset.open(dataset.path, verify=False), tmp_path / "a")
    assert (artifact.figures["epochs"], artifact.figures["best_epoch"]) == (3, 3)


def test_a_loss_that_is_no_number_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"the loss of epoch 1 is (nan|inf) at step \d+.*lower learning_rate"
    ):
        fit(recipe(optimizer="sgd", learning_rate=1e30), dataset, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_unknown_metric_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.metric"):
        fit(recipe(metric="niceness"), dataset, tmp_path / "a")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="there is no GPU"):
        fit(recipe(gpu=True), dataset, tmp_path / "a")


def test_a_checkpoint_of_another_data_set_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    artifact = fit(recipe(epochs=1), dataset, tmp_path / "a")
    other = tiny_dataset(tmp_path / "other", users=90)
    with pytest.raises(ArtifactError, match="do not fit the data set"):
        load_checkpoint(artifact.path, other)


def test_a_damaged_checkpoint_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    artifact = fit(recipe(epochs=1), dataset, tmp_path / "a")
    content = bytearray((artifact.path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (artifact.path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        load_checkpoint(artifact.path, dataset)


def test_an_attempt_without_a_checkpoint_is_told(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("app.training.validation.validate", _stop)
        train(recipe(), dataset, tmp_path / "a")
    assert (tmp_path / ".a.run" / PROGRESS).exists()
    artifact = train(recipe(), dataset, tmp_path / "a")
    assert "started again" in capsys.readouterr().err
    assert artifact.figures["resumed_from"] == 0
    assert open_artifact(tmp_path / "a").key == artifact.key


def _stop(*_: Any) -> dict[str, float]:
    raise Stopped


@pytest.mark.parametrize("model", ["mlp", "popularity"])
def test_a_checkpoint_knows_which_ids_it_was_trained_on(tmp_path: Path, model: str) -> None:
    """Ids of other parts alone, and row 0, are not among them; an event of any label counts."""
    dataset = tiny_dataset(tmp_path / "dataset", skips=0.3)
    part = dataset.path / "train"
    item = np.load(part / "item.npy")
    negative = np.load(part / "label.npy") == 0
    item[(item == 7) | ((item == 8) & ~negative)] = 9  # 7 has no event left, 8 negative ones alone
    np.save(part / "item.npy", item)
    dataset = Dataset.open(dataset.path, verify=False)
    artifact = fit(recipe(epochs=1, model={"name": model}), dataset, tmp_path / "a")
    trained = load_checkpoint(artifact.path, dataset).trained
    assert {name: (rows.dtype, len(rows)) for name, rows in trained.items()} == {
        "user": (np.dtype(bool), dataset.schema.users),
        "item": (np.dtype(bool), dataset.schema.items),
    }
    assert not trained["item"][[0, 7]].any() and trained["item"][[8, 9]].all() and not trained["user"][0]
    assert np.flatnonzero(trained["item"]).tolist() == np.unique(item).tolist()


def test_a_checkpoint_without_that_is_an_old_one(dataset: Dataset, tmp_path: Path) -> None:
    with publish(tmp_path / "a", "checkpoint", {}, {}) as draft:
        model = build_model("mlp", {}, dataset)
        save_checkpoint(draft.path, model, "mlp", {}, dataset.trained)
        (draft.path / "trained.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"trained\.safetensors.*train again"):
        load_checkpoint(tmp_path / "a", dataset)


def test_a_baseline_is_fitted_and_published(dataset: Dataset, tmp_path: Path) -> None:
    artifact = train(recipe(model={"name": "popularity"}), dataset, tmp_path / "a")
    assert artifact.figures["epochs"] == 0
    assert load_checkpoint(artifact.path, dataset).name == "popularity"
