"""The compression stage: what is evaluated is what is served, and int8 keeps the quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.artifact import Artifact
from app.bundle.export.export import export
from app.bundle.request.requests import Context, RankRequest
from app.bundle.runtime import Ranker
from app.compression.compress import compress
from app.data.dataset import Dataset
from app.errors import DataError
from app.evaluation.scorer import ModelScorer
from app.recipe import Recipe, parse
from app.training.checkpoint import load_checkpoint
from app.training.train import fit
from tests.bundles import NOW, requests_batch
from tests.compressed import compressed as of_recipe
from tests.tiny import tiny_dataset


def recipe(**changes: Any) -> Recipe:
    content = {"model": {"name": "mlp"}, "train": {"epochs": 4, "workers": 0, "batch_size": 256}}
    return parse(content | changes, "test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    # So many users that one item at another rank of one user is no hundredth of the quality.
    return tiny_dataset(tmp_path_factory.mktemp("compress") / "dataset", users=600, events=7500)


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> Path:
    return fit(recipe(), dataset, dataset.path.with_name("checkpoint")).path


def compressed(dataset: Dataset, trained: Path, out: Path, **settings: Any) -> tuple[Artifact, float]:
    """A compressed checkpoint and its NDCG@10 on the test part."""
    return of_recipe(recipe(compress=settings), dataset, trained, out)


def test_int8_keeps_99_percent_of_the_quality(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    full, best = compressed(dataset, trained, tmp_path / "full", rows="float32")
    small, kept = compressed(dataset, trained, tmp_path / "small", rows="int8")
    assert kept >= 0.99 * best > 0.1
    assert small.figures["bytes_after"] < 0.35 * small.figures["bytes_before"]
    assert full.figures["bytes_after"] == full.figures["bytes_before"] == small.figures["bytes_before"]


def test_errors_grow_as_rows_shrink(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    each = [
        compress(recipe(compress={"rows": precision}), dataset, trained, tmp_path / precision).figures
        for precision in ("float32", "float16", "int8", "int4")
    ]
    errors = [figures["row_error"]["item"] for figures in each]
    assert errors[0] == 0 and errors == sorted(errors) and errors[2] < 0.02 < errors[3] < 0.2
    sizes = [figures["bytes_after"] for figures in each]
    assert sizes == sorted(sizes, reverse=True)


def test_rows_are_those_of_the_pruned_model(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    artifact = compress(
        recipe(compress={"rows": "float32", "steps": ["prune"]}), dataset, trained, tmp_path / "pruned"
    )
    checkpoint = load_checkpoint(artifact.path, dataset)
    assert artifact.figures["steps"][0]["pruned"] == pytest.approx(0.5, abs=0.01)
    with torch.no_grad():
        expected = checkpoint.model.item_rows(torch.arange(dataset.schema.items)).numpy()
    assert checkpoint.rows is not None
    np.testing.assert_allclose(checkpoint.rows["item"].all(), expected, atol=1e-6)
    source = load_checkpoint(trained, dataset)
    assert checkpoint.curve == source.curve
    for name, rows in source.trained.items():
        np.testing.assert_array_equal(checkpoint.trained[name], rows)


def test_the_bundle_serves_what_was_evaluated(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    settled = recipe(compress={"rows": "int4"})
    checkpoint = load_checkpoint(compress(settled, dataset, trained, tmp_path / "small").path, dataset)
    export(settled, dataset, checkpoint, tmp_path / "bundle", {}, {}, {})
    items = np.arange(1, 41)[None]
    expected = ModelScorer(checkpoint.model, checkpoint.rows).candidates(requests_batch(dataset, [5], items))
    request = RankRequest("u5", [f"i{i}" for i in items[0]], context=Context(float(NOW)))
    (answer,) = Ranker.open(tmp_path / "bundle").rank([request])
    scores = {scored.item: scored.score for scored in answer.items}
    np.testing.assert_allclose([scores[f"i{i}"] for i in items[0]], expected[0].numpy(), atol=1e-4)


def test_models_whose_rows_hold_ids_are_not_quantised(dataset: Dataset, tmp_path: Path) -> None:
    settled = recipe(model={"name": "item_knn"}, compress={"rows": "int4"})
    source = fit(settled, dataset, tmp_path / "checkpoint").path
    artifact = compress(settled, dataset, source, tmp_path / "small")
    assert artifact.figures["rows"] == "float32"
    assert artifact.figures["bytes_after"] == artifact.figures["bytes_before"]


def test_an_unknown_user_that_training_never_met_is_the_mean_one(tmp_path: Path) -> None:
    """Without id_dropout no training row has the unknown user, whose embedding is then the mean one."""
    data = tiny_dataset(tmp_path / "dataset", content=False)
    settings = recipe(train={"id_dropout": 0.0, "epochs": 1, "workers": 0}, compress={"rows": "float32"})
    source = fit(settings, data, tmp_path / "checkpoint").path
    checkpoint = load_checkpoint(compress(settings, data, source, tmp_path / "a").path, data)
    assert checkpoint.rows is not None
    rows = checkpoint.rows["user"].all()
    np.testing.assert_allclose(rows[0], rows[1:].mean(0), rtol=1e-5, atol=1e-6)


def test_a_diverged_model_is_refused(
    dataset: Dataset, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, data: Dataset) -> Any:
        checkpoint = load_checkpoint(path, data)
        with torch.no_grad():
            next(p for p in checkpoint.model.parameters() if p.shape[0] == data.schema.items)[3] = float(
                "nan"
            )
        return checkpoint

    monkeypatch.setattr("app.compression.compress.load_checkpoint", broken)
    with pytest.raises(DataError, match=r"row 3 holds NaN .*learning_rate"):
        compress(recipe(), dataset, trained, tmp_path / "small")
    assert not any(tmp_path.iterdir()), "nothing half-written"
