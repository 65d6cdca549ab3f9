"""The steps of compression, alone and one after another: what they keep, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.artifact import Artifact
from app.bundle.export.export import export
from app.bundle.export.formats import export_format
from app.bundle.request.requests import Context, RankRequest
from app.bundle.runtime import Ranker
from app.compression.compress import compress
from app.data.dataset import Dataset
from app.errors import RecipeError
from app.evaluation.evaluate import evaluate
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validate
from app.events import HistoryEvent
from app.models.discovery import model_class, model_names
from app.recipe import Recipe, parse
from app.tables.rows import Rows
from app.training.checkpoint import load_checkpoint
from app.training.train import fit
from tests.bundles import NOW, requests_batch
from tests.compressed import compressed as of_recipe
from tests.tiny import Datasets, tiny_dataset

CODED = {"steps": ["product"], "product": {"codes": 2, "words": 8}}
TUNED = CODED | {"steps": ["product", "finetune"], "finetune": {"epochs": 4}}


def recipe(model: str = "sasrec", **changes: Any) -> Recipe:
    # A large share: the figures of training are those of all users.
    train = {"epochs": 8, "workers": 0, "batch_size": 256, "patience": 0, "valid_share": 50.0}
    return parse({"model": {"name": model}, "train": train} | changes, "test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("steps") / "dataset", users=600, items=80, events=7500)


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> Path:
    return fit(recipe(), dataset, dataset.path.with_name("checkpoint")).path


def compressed(dataset: Dataset, trained: Path, out: Path, **settings: Any) -> tuple[Artifact, float]:
    """A compressed checkpoint and its NDCG@10 on the validation part."""
    return of_recipe(recipe(compress=settings), dataset, trained, out, "valid")


def test_training_what_will_be_stored_wins_back_what_codes_lose(
    dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    _, full = compressed(dataset, trained, tmp_path / "full", rows="float32")
    coded, plain = compressed(dataset, trained, tmp_path / "coded", **CODED)
    tuned, better = compressed(dataset, trained, tmp_path / "tuned", **TUNED)
    assert plain < 0.97 * full, "or there is nothing to win back"
    assert better > plain + 0.3 * (full - plain)
    assert tuned.figures["bytes_after"] == coded.figures["bytes_after"] < coded.figures["bytes_before"] / 4
    product, finetune = tuned.figures["steps"]
    assert product["step"] == "product" and 0 < product["row_error"]["item"] < 1
    # The figures of training are those of what is stored.
    assert finetune["finetune"]["initial"] == pytest.approx(plain, abs=1e-6)
    assert finetune["finetune"]["best"] == pytest.approx(better, abs=1e-6)
    assert not (tmp_path / ".tuned.run").exists()


def test_integers_of_two_bits_are_learned(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    _, full = compressed(dataset, trained, tmp_path / "full", rows="float32")
    _, plain = compressed(dataset, trained, tmp_path / "plain", rows="int2")
    _, better = compressed(
        dataset, trained, tmp_path / "felt", rows="int2", steps=["finetune"], finetune={"epochs": 4}
    )
    assert plain < full and better > plain


def test_pruned_weights_stay_zero_while_the_rest_is_trained(
    dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    artifact, _ = compressed(dataset, trained, tmp_path / "out", steps=["prune", "finetune"])
    model, before = (load_checkpoint(path, dataset).model for path in (artifact.path, trained))
    shares = [float((m.weight == 0).float().mean()) for m in model.modules() if isinstance(m, nn.Linear)]
    assert min(shares) == pytest.approx(0.5, abs=0.02)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    moved = [bool(((after != old) & (after != 0)).any()) for after, old in pairs]
    assert any(moved), "the weights that are left were trained"


def test_a_bundle_of_codes_serves_what_was_evaluated(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    settled = recipe(compress=TUNED)
    checkpoint = load_checkpoint(compress(settled, dataset, trained, tmp_path / "small").path, dataset)
    assert checkpoint.rows is not None and checkpoint.rows["history"].same_as
    export(settled, dataset, checkpoint, tmp_path / "bundle", {}, {}, {})
    items = np.arange(1, 61)[None]
    expected = ModelScorer(checkpoint.model, checkpoint.rows).candidates(requests_batch(dataset, [5], items))
    ranker = Ranker.open(tmp_path / "bundle")
    request = RankRequest("u5", [f"i{i}" for i in items[0]], context=Context(float(NOW)))
    scores = {scored.item: scored.score for scored in ranker.rank([request])[0].items}
    np.testing.assert_allclose([scores[f"i{i}"] for i in items[0]], expected[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(("name", "steps"), [("mlp", ["svd"]), ("sasrec", ["svd", "product", "finetune"])])
def test_a_bundle_of_narrow_rows_serves_what_was_evaluated(
    name: str, steps: list[str], dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    """The graphs multiply by the basis: the bundle has coefficients alone."""
    narrow = TUNED | {"steps": steps, "rows": "float32", "finetune": {"epochs": 1}}
    settled = recipe(name, train={"epochs": 1, "workers": 0}, compress=narrow)
    source = trained if name == "sasrec" else fit(settled, dataset, tmp_path / "mlp").path
    checkpoint = load_checkpoint(compress(settled, dataset, source, tmp_path / "small").path, dataset)
    assert checkpoint.rows is not None
    energy = checkpoint.artifact.figures["steps"][0]["svd"]["item"]["energy"]
    assert 0.5 < energy < 1
    export(settled, dataset, checkpoint, tmp_path / "bundle", {}, {}, {})
    ranker, width = Ranker.open(tmp_path / "bundle"), checkpoint.rows["item"].width
    stored = Rows.open(tmp_path / "bundle/rows", "item")
    shared = Rows.open(tmp_path / "bundle/rows", "history").same_as
    assert shared == ("item" if name == "sasrec" else "")
    assert stored.width == round(width / 2) and not (tmp_path / "bundle/rows/item.basis").exists()
    items = np.arange(1, 61)[None]
    expected = ModelScorer(checkpoint.model, checkpoint.rows).candidates(requests_batch(dataset, [5], items))
    request = RankRequest("u5", [f"i{i}" for i in items[0]], context=Context(float(NOW)))
    scores = {scored.item: scored.score for scored in ranker.rank([request])[0].items}
    np.testing.assert_allclose([scores[f"i{i}"] for i in items[0]], expected[0].numpy(), atol=1e-4)
    export(settled, dataset, checkpoint, tmp_path / "onnx", {}, {}, {}, format="onnx")
    alone = RankRequest("u5", request.items, history=[HistoryEvent("i5", "view", NOW - 60.0)])
    first, second = (export_format(f).read(tmp_path / f)(alone) for f in ("bundle", "onnx"))
    assert first == pytest.approx(second, abs=1e-4), "the file for other runtimes has the bases, too"


def test_an_interrupted_step_is_not_trained_again(
    dataset: Dataset, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("app.compression.compress.save_checkpoint", full)
    with pytest.raises(OSError, match="no space left"):
        compressed(dataset, trained, tmp_path / "out", **TUNED)
    monkeypatch.undo()
    kept = tmp_path / ".out.run/finetune/weights.safetensors"
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr("app.compression.work.train", full)  # it would raise
    artifact, _ = compressed(dataset, trained, tmp_path / "out", **TUNED)
    assert before and artifact.figures["steps"][1]["step"] == "finetune"


def test_a_student_learns_from_its_teacher(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    settings = {"steps": ["distill"], "distill": {"student": {"width": 8, "layers": 1}}, "rows": "float32"}
    artifact, quality = compressed(dataset, trained, tmp_path / "student", **settings)
    checkpoint = load_checkpoint(artifact.path, dataset)
    assert checkpoint.hyperparameters == {"width": 8, "layers": 1}
    assert checkpoint.rows is not None and checkpoint.rows["item"].width == 8
    figures = artifact.figures["steps"][0]["distill"]
    assert figures["student"] == pytest.approx(quality, abs=0.01) and figures["teacher"] > 0
    assert artifact.figures["bytes_after"] * 8 == artifact.figures["bytes_before"], "64 floats became 8"


def test_a_student_is_coded_and_trained_as_it_is(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    student = {"steps": ["distill", "product", "finetune"], "distill": {"student": {"width": 8}}}
    artifact, quality = compressed(dataset, trained, tmp_path / "out", **(TUNED | student))
    checkpoint = load_checkpoint(artifact.path, dataset)
    assert checkpoint.rows is not None and checkpoint.rows["item"].codes is not None
    assert checkpoint.rows["item"].width == checkpoint.hyperparameters["width"] == 8
    assert artifact.figures["steps"][2]["finetune"]["best"] == pytest.approx(quality, abs=1e-6)
    sizes = [step["bytes"] for step in artifact.figures["steps"]]
    assert sizes[0] > sizes[1] == sizes[2] == artifact.figures["bytes_after"]


def test_distillation_is_the_cross_entropy_with_the_teachers_softmax(
    dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    from app.compression.teacher import Distillation
    from app.training.batches import batches_of

    model = load_checkpoint(trained, dataset).model
    other = fit(recipe(seed=7), dataset, tmp_path / "other").path
    batch = next(batches_of(model, dataset, recipe(), rank=0, world=1).epoch(0, 0))
    loss = Distillation((str(trained), str(other)), str(dataset.path), 1.0)(model, batch)
    second = load_checkpoint(other, dataset).model
    with torch.no_grad():
        logits = []
        for each in (model, second):
            states, owner = each.states_of(batch)  # type: ignore[arg-type]
            logits.append(states[torch.unique(owner)] @ each.item_rows(each.known[1:]).T)
        target = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
        expected = -(target * logits[0].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": ["product"], "product": {"words": 200}}, r"make no table smaller"),
        ({"steps": ["svd"]}, r"make no table of sasrec smaller"),
        ({"steps": ["distill"]}, r"the student has [\d,]+ weights, the teacher [\d,]+.*width"),
        ({"steps": ["distill"], "distill": {"student": {"width": 9}}}, r"not a multiple"),
        ({"steps": ["distill"], "distill": {"student": {"depth": 9}}}, r"depth"),
    ],
)
def test_what_cannot_be_done_is_refused(
    dataset: Dataset, trained: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        compressed(dataset, trained, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_learns_from_other_batches_is_refused(
    dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    other = fit(recipe("mlp", train={"epochs": 1, "workers": 0}), dataset, tmp_path / "other").path
    settings = {"student": {"width": 8}, "teachers": [str(other)]}
    with pytest.raises(RecipeError, match="mlp trains on events, and the student trains on sequences"):
        compressed(dataset, trained, tmp_path / "out", steps=["distill"], distill=settings)


@pytest.mark.parametrize("step", ["product", "finetune", "distill", "svd"])
def test_a_model_in_closed_form_names_the_step_that_it_cannot_take(
    dataset: Dataset, tmp_path: Path, step: str
) -> None:
    settled = recipe("item_knn", compress={"steps": [step]})
    source = fit(settled, dataset, tmp_path / "checkpoint").path
    with pytest.raises(RecipeError, match=rf"compress\.steps: .*item_knn .*leave out '{step}'"):
        compress(settled, dataset, source, tmp_path / "out")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("tiny"), users=200, events=2000)


@pytest.mark.parametrize("name", [name for name in model_names() if model_class(name).learns])
def test_every_model_that_learns_can_be_coded_and_trained_further(
    name: str, datasets: Datasets, tmp_path: Path
) -> None:
    data = datasets[name]
    settled = recipe(name, train={"epochs": 1, "workers": 0, "batch_size": 512}, compress=TUNED)
    source = fit(settled, data, tmp_path / "checkpoint").path
    artifact = compress(settled, data, source, tmp_path / "small")
    checkpoint = load_checkpoint(artifact.path, data)
    assert checkpoint.rows is not None and checkpoint.rows["item"].codes is not None
    figures = evaluate(settled, data, ModelScorer(checkpoint.model, checkpoint.rows), baselines=False).figures
    assert 0 < figures["ndcg@10"] <= 1
    assert artifact.figures["bytes_after"] < artifact.figures["bytes_before"]


def test_two_workers_train_one_model(
    dataset: Dataset, trained: Path, tmp_path: Path, ray_local: None
) -> None:
    """Codes are chosen by each worker for itself: they have to choose alike."""
    together = recipe(compress=TUNED | {"finetune": {"epochs": 1}}).override({"train.workers": 2})
    artifact = compress(together, dataset, trained, tmp_path / "out")
    figures = artifact.figures["steps"][1]["finetune"]
    checkpoint = load_checkpoint(artifact.path, dataset)
    scorer = ModelScorer(checkpoint.model, checkpoint.rows)
    quality = validate(together, dataset, scorer, 10_000, together.seed)["ndcg@10"]
    assert quality == pytest.approx(figures["best"], abs=1e-6)
