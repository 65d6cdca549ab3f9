"""The stages in a row: what is run again and what is not, the refit, and splits that hold nothing out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from app import artifact, pipeline
from app.artifact import Artifact
from app.bundle.runtime import Ranker
from app.data.dataset import Dataset
from app.data.merged import merge_parts
from app.errors import RecipeError
from app.manifest import file_sha256
from app.recipe import Recipe, parse
from app.tables.rows import Rows
from app.terminal.summary import of_run
from app.training.checkpoint import load_checkpoint
from app.training.hosts import LocalHost
from app.training.train import fit
from tests.tiny import tiny_dataset

LAST = ["compress", "evaluate", "refit", "export"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(**changes: Any) -> Recipe:
    content = {
        "model": {"name": "mlp"},
        "train": {
            "epochs": 3,
            "workers": 0,
            "batch_size": 128,
            "negatives": 4,
            "refit": True,
            **changes.pop("train", {}),
        },
        "evaluate": {"baselines": ["popularity"], "bootstrap": 10},
    }
    return parse(content | changes, "test")


def stages(recipe: Recipe, out: Path, *names: str) -> dict[str, Artifact]:
    """Run stages from the data set at `out/dataset` on."""
    return {name: pipeline.STAGES[name](recipe, out) for name in names or ("train", *LAST)}


def best_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Make validation find this epoch the best one."""
    calls: list[int] = []

    def figures(*_: Any) -> dict[str, float]:
        calls.append(1)
        return {"ndcg@10": 1.0 if len(calls) == epoch else 0.1}

    monkeypatch.setattr("app.training.validation.validate", figures)


def weights(folder: Path) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in load_file(folder / "weights.safetensors").items()}


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


# --- the refit ----------------------------------------------------------------------------


def test_a_refit_is_a_training_on_all_parts_for_the_best_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    best_epoch(monkeypatch, 2)
    done = stages(recipe(), tmp_path)
    assert done["train"].figures["best_epoch"] == 2 < done["train"].figures["epochs"]
    assert "refit: epochs 2, as ndcg@10 was best on validation" in capsys.readouterr().err
    whole = merge_parts(dataset, tmp_path / "whole")
    assert len(whole.train) == len(dataset.train) + len(dataset.valid) + len(dataset.test)
    assert done["refit"].figures | {"epochs": 2, "events": len(whole.train), "chosen_by": "ndcg@10"} == (
        done["refit"].figures
    )
    alone = fit(recipe(train={"epochs": 2}), whole, tmp_path / "alone")
    assert_same_weights(done["refit"].path, alone.path)
    assert not list(tmp_path.glob(".*.run")), "the copy of the events is gone"


def test_the_bundle_serves_the_refit_and_the_report_is_of_the_model_before(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    done = stages(recipe(), tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "dataset").symlink_to(tmp_path / "dataset")
    plain = stages(
        recipe(train={"refit": False}), tmp_path / "plain", "train", "compress", "evaluate", "export"
    )
    for figures in ("figures", "intervals", "baselines", "ratios"):
        assert done["evaluate"].figures[figures] == plain["evaluate"].figures[figures]
    assert done["export"].parents["checkpoint"] == done["refit"].digest
    assert plain["export"].parents["checkpoint"] == plain["compress"].digest
    rows = [Rows.open(tmp_path / name / "rows", "item").all() for name in ("bundle", "plain/bundle")]
    expected = [load_checkpoint(tmp_path / name, dataset).rows for name in ("refit", "plain/compressed")]
    for served, stored in zip(rows, expected, strict=True):
        assert stored is not None
        np.testing.assert_array_equal(served, stored["item"].all())
    assert done["export"].figures["refit"] == {
        name: done["refit"].figures[name] for name in ("epochs", "events", "chosen_by")
    }
    assert "refit" not in plain["export"].figures


def test_card_and_report_say_what_the_weights_have_seen(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    done = stages(recipe(), tmp_path)
    events = len(dataset.train) + len(dataset.valid) + len(dataset.test)
    epochs = done["refit"].figures["epochs"]
    card = (tmp_path / "bundle" / "card.md").read_text()
    assert f"trained once more on all {events:,} events, for the {epochs} epochs that were best" in card
    assert "once more on all parts" in (tmp_path / "report" / "report.md").read_text()
    stages(recipe(train={"refit": False}), tmp_path, "evaluate", "export")
    card = (tmp_path / "bundle" / "card.md").read_text()
    assert f"have seen the {len(dataset.train):,} events of the training part" in card
    assert "once more" not in card + (tmp_path / "report" / "report.md").read_text()


def test_a_refit_knows_ids_that_the_training_part_does_not(tmp_path: Path) -> None:
    """Popularity, by hand: item 7 occurs in the validation and test parts alone."""
    dataset = tiny_dataset(tmp_path / "dataset")
    item = np.load(dataset.path / "train" / "item.npy")
    item[item == 7] = 8
    np.save(dataset.path / "train" / "item.npy", item)
    dataset = Dataset.open(dataset.path, verify=False)
    _reseal(dataset.path)
    later = [int((np.asarray(part.item) == 7).sum()) for part in (dataset.valid, dataset.test)]
    assert min(later) > 0
    popularity = recipe(model={"name": "popularity"})
    stages(popularity, tmp_path)
    checkpoints = [load_checkpoint(tmp_path / name, dataset) for name in ("compressed", "refit")]
    assert [bool(c.trained["item"][7]) for c in checkpoints] == [False, True]
    positive = [part.item[part.label > 0] for part in dataset.parts]
    counts = np.bincount(np.concatenate(positive), minlength=61) + 1.0
    share = checkpoints[1].model.get_buffer("share").numpy()
    np.testing.assert_allclose(share, np.log(counts / counts.sum()), rtol=1e-6)
    np.testing.assert_allclose(checkpoints[1].model.log_popularity, np.log(counts / counts.sum()), rtol=1e-6)


def _reseal(folder: Path) -> None:
    """Publish the changed files of an artefact as another one."""
    whole = artifact.open_artifact(folder, verify=False)
    kept = folder.with_name("changed")
    folder.rename(kept)
    with artifact.publish(folder, whole.kind, {"changed": True}, {}) as draft:
        for path in kept.iterdir():
            if path.name != artifact.MANIFEST:
                path.rename(draft.path / path.name)
        draft.figures.update(whole.figures)


@pytest.mark.parametrize(
    ("figure", "model", "message"),
    [
        (float("nan"), "mlp", "refit: validation chose no epoch, so all 3 are trained"),
        (None, "mlp", "refit: validation chose no epoch, so all 3 are trained"),
        (None, "popularity", "refit: popularity is fitted again on all"),
    ],
)
def test_a_refit_where_validation_found_no_best_epoch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    figure: float | None,
    model: str,
    message: str,
) -> None:
    tiny_dataset(tmp_path / "dataset")
    figures = {} if figure is None else {"ndcg@10": figure}
    monkeypatch.setattr("app.training.loop.Loop._validate", lambda _: figures) if figure is None else (
        monkeypatch.setattr("app.training.validation.validate", lambda *_: figures)
    )
    done = stages(recipe(model={"name": model}), tmp_path, "train", "compress", "refit")
    assert message in capsys.readouterr().err
    assert done["refit"].figures["epochs"] == (3 if model == "mlp" else 0)
    assert done["refit"].figures["chosen_by"] is None


class Interrupted(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("after", ["merge", "epoch", "training"])
def test_an_interrupted_refit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: str
) -> None:
    tiny_dataset(tmp_path / "dataset")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "dataset").symlink_to(tmp_path / "dataset")
    best_epoch(monkeypatch, 2)
    stages(recipe(), tmp_path, "train", "compress")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        _interrupt(patch, after)
        pipeline.refit(recipe(), tmp_path)
    assert not (tmp_path / "refit").exists() and (tmp_path / ".refit.run").is_dir()
    capsys.readouterr()
    done = pipeline.refit(recipe(), tmp_path)
    shown = capsys.readouterr().err
    assert ("resumed from epoch 1" in shown) == (after == "epoch")
    assert ("epoch 2: loss" in shown) == (after != "training")
    assert ("epoch 1: loss" in shown) == (after == "merge")
    best_epoch(monkeypatch, 2)
    assert_same_weights(
        done.path, stages(recipe(), tmp_path / "whole", "train", "compress", "refit")["refit"].path
    )


def _interrupt(patch: pytest.MonkeyPatch, after: str) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise Interrupted

    kept = LocalHost.checkpoint

    def stop_after_an_epoch(host: LocalHost, figures: Any, write: Any, *, epoch_ends: bool) -> None:
        kept(host, figures, write, epoch_ends=epoch_ends)
        raise Interrupted

    if after == "epoch":
        patch.setattr(LocalHost, "checkpoint", stop_after_an_epoch)
    else:
        name = "train" if after == "merge" else "write_compressed"
        patch.setattr(f"app.compression.refit.{name}", stop)


def test_a_refit_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"asks for no refit.*train\.refit"):
        pipeline.run(recipe(train={"refit": False}), tmp_path, until="refit")


# --- what is run again --------------------------------------------------------------------


def test_asking_for_a_refit_does_not_train_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_dataset(tmp_path / "dataset")
    stages(recipe(train={"refit": False}), tmp_path, "train", "compress", "evaluate", "export")
    capsys.readouterr()
    stages(recipe(), tmp_path)
    shown = capsys.readouterr().err
    assert [
        name for name in ("checkpoint", "compressed", "refit", "bundle") if f"{name}: unchanged" in shown
    ] == [
        "checkpoint",
        "compressed",
    ]
    stages(recipe(), tmp_path)
    shown = capsys.readouterr().err
    assert shown.count("unchanged, kept") == 5


@pytest.mark.parametrize(
    ("constant", "again"),
    [
        ("app.training.task.STAGE_VERSION", {"checkpoint", "compressed", "report", "refit", "bundle"}),
        ("app.pipeline.COMPRESS_VERSION", {"compressed"}),
        ("app.pipeline.REFIT_VERSION", {"refit"}),
        ("app.pipeline.REPORT_VERSION", {"report"}),
        ("app.pipeline.EXPORT_VERSION", {"bundle"}),
    ],
)
def test_a_new_version_of_a_stage_runs_it_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    constant: str,
    again: set[str],
) -> None:
    tiny_dataset(tmp_path / "dataset", users=30, items=20, events=300)
    settings = recipe(train={"epochs": 1})
    stages(settings, tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(constant, 1000)
    stages(settings, tmp_path)
    shown = capsys.readouterr().err
    names = ("checkpoint", "compressed", "report", "refit", "bundle")
    assert again <= {name for name in names if f"{name}: unchanged" not in shown}


def test_a_run_hashes_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    hashed: Counter[str] = Counter()

    def counted(path: Path) -> str:
        hashed[str(path)] += 1
        return file_sha256(path)

    settings = _shop(tmp_path, {"method": "leave_last"})
    for module in ("artifact", "manifest"):  # where it is written, and where it is read
        monkeypatch.setattr(f"app.{module}.file_sha256", counted)
    done = pipeline.run(settings, tmp_path / "out")
    files = sum(len(written.files) for written in done.artifacts.values())
    final = [path for path in hashed if ".tmp-" not in path]
    assert not final, "what a run has made itself it hashes for the manifests alone"
    hashed.clear()
    again = pipeline.run(settings, tmp_path / "out")
    assert {k: v.digest for k, v in again.artifacts.items()} == {
        k: v.digest for k, v in done.artifacts.items()
    }
    assert set(hashed.values()) == {1} and len(hashed) == files


def test_a_stage_that_is_kept_loads_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_dataset(tmp_path / "dataset", users=30, items=20, events=300)
    stages(recipe(train={"epochs": 1}), tmp_path)

    def refuse(*_: Any) -> Any:
        raise AssertionError("a checkpoint was loaded")

    monkeypatch.setattr("app.pipeline.load_checkpoint", refuse)
    monkeypatch.setattr("app.compression.compress.load_checkpoint", refuse)
    monkeypatch.setattr("app.compression.refit.load_checkpoint", refuse)
    stages(recipe(train={"epochs": 1}), tmp_path)


# --- splits that hold nothing out ---------------------------------------------------------


def _shop(folder: Path, split: dict[str, Any], **train: Any) -> Recipe:
    """A recipe over a log of 40 users of whom each met 6 of 10 items, one an hour."""
    lines = ["user,item,timestamp"]
    lines += [
        f"u{u},i{(u * 3 + n) % 10},{1_700_000_000 + 3600 * (n * 40 + u)}" for u in range(40) for n in range(6)
    ]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return recipe(
        data={"events": [str(folder / "log.csv")]}, split=split, train={"epochs": 2, "refit": False, **train}
    )


@pytest.mark.parametrize(
    ("valid", "test", "asks_for_refit"),
    [(0, 0, False), (0, 0, True), (0, 0.2, True), (0.2, 0, False), (0.2, 0, True)],
)
def test_a_split_that_holds_nothing_out_ends_in_a_bundle(
    tmp_path: Path,
    ray_local: None,
    capsys: pytest.CaptureFixture[str],
    valid: float,
    test: float,
    asks_for_refit: bool,
) -> None:
    settings = _shop(
        tmp_path, {"method": "time", "valid": valid, "test": test}, refit=asks_for_refit, patience=1
    )
    done = pipeline.run(settings, tmp_path / "out")
    parts = done.artifacts["prepare"].figures
    assert (parts["valid"] > 0, parts["test"] > 0) == (valid > 0, test > 0)
    if not valid:  # no early stopping, the last weights
        assert done.artifacts["train"].figures["best_epoch"] == 2
    assert bool(done.artifacts["evaluate"].figures["figures"]) == (test > 0)
    report = (tmp_path / "out/report/report.md").read_text()
    assert ("held out" in report) == (not test)
    assert len(Ranker.open(tmp_path / "out/bundle").recommend([_asks("u1")])[0].items) > 0
    shown = dict(of_run(done.summary()))
    assert ("refit" in shown) == (asks_for_refit and bool(valid or test))
    assert ("quality" in shown) == ("ndcg@10" not in shown) == ("compressed" not in shown) == (not test)
    if asks_for_refit and not valid and not test:
        assert "refit: nothing was held out" in capsys.readouterr().err
        assert not (tmp_path / "out/refit").exists()


def _asks(user: str) -> Any:
    from app.bundle.request.requests import RecommendRequest

    return RecommendRequest(user=user, k=3, exclude_seen=False)


# --- the validation part, too ---------------------------------------------------------------


def test_validation_is_learned_too_for_the_epochs_that_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    best_epoch(monkeypatch, 2)
    names = ("train", "compress", "evaluate", "export")
    done = stages(recipe(train={"refit": False, "valid_too": True}), tmp_path, *names)
    both = merge_parts(dataset, tmp_path / "both", test=False)
    assert len(both.train) == len(dataset.train) + len(dataset.valid) == done["train"].figures["events"]
    assert (len(both.valid), len(both.test)) == (0, len(dataset.test))
    np.testing.assert_array_equal(both.test.item, dataset.test.item)
    alone = fit(recipe(train={"epochs": 2}), both, tmp_path / "alone")
    assert_same_weights(done["train"].path, alone.path)
    assert (done["train"].figures["best_epoch"], done["train"].figures["epochs"]) == (2, 3)
    assert not list(tmp_path.glob(".*.run")), "the copy of the events is gone"
    card, report = (tmp_path / "bundle/card.md").read_text(), (tmp_path / "report/report.md").read_text()
    assert f"have seen the {len(both.train):,} events of the training and the validation part." in card
    assert "train.valid_too" in report
    again = stages(recipe(train={"refit": False, "valid_too": True}), tmp_path, *names)
    assert {name: a.digest for name, a in again.items()} == {name: a.digest for name, a in done.items()}


def test_steps_that_train_learn_both_parts_too(tmp_path: Path) -> None:
    """Validation, which the weights have learned, chooses no epoch of a step."""
    tiny_dataset(tmp_path / "dataset")
    compress = {"rows": "int4", "steps": ["finetune"], "finetune": {"epochs": 2}}
    settings = recipe(train={"refit": False, "valid_too": True}, compress=compress)
    done = stages(settings, tmp_path, "train", "compress", "evaluate")
    (step,) = done["compress"].figures["steps"]
    assert (step["kept"], step["finetune"]["best"], step["finetune"]["epochs"]) == ({}, None, 2)
    assert 0 < done["evaluate"].figures["figures"]["ndcg@10"] < 1


def test_a_model_in_closed_form_is_fitted_to_both_parts(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset")
    settings = recipe(model={"name": "item_knn"}, train={"refit": False, "valid_too": True})
    done = stages(settings, tmp_path, "train")
    assert done["train"].figures["events"] == len(dataset.train) + len(dataset.valid)
    one, other = weights(tmp_path / "chosen"), weights(tmp_path / "checkpoint")
    assert any((one[name] != other[name]).any() for name in one)
