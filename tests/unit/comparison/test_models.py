"""Every model on a log: the table, what is kept for a second run, and models that cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import app
from app.artifact import open_artifact
from app.comparison import models as module
from app.comparison.models import bench_models, recipe_for
from app.data.dataset import Dataset
from app.errors import DataError, RecipeError
from app.recipe_toml import to_toml
from tests.tiny import tiny_dataset
from tests.unit.comparison.test_folds import log, recipe_of
from tests.unit.test_cli import rayrec

__all__ = ["log"]


def test_models_are_compared_by_quality_and_cost_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=60)
    monkeypatch.setattr(module.pipeline, "prepare", lambda *_, **__: dataset.artifact)
    changes = {"data": {}, "train.epochs": 1, "evaluate.bootstrap": 20}
    recipe = recipe_of(tmp_path, "leave_last", model="mlp", **changes)
    result = bench_models(recipe, tmp_path, models=["mlp", "popularity", "item_knn"])
    rows = {row["name"]: row for row in result["models"]}
    assert set(rows) == {"mlp", "popularity", "item_knn"} and not result["failed"]
    assert (result["figure"], result["users"]) == ("ndcg@10", 60)
    values = [row["valid"]["value"] for row in result["models"]]
    assert values == sorted(values, reverse=True)
    for name, row in rows.items():
        run = tmp_path / "models" / name
        report = json.loads((run / "report" / "report.json").read_text())
        assert row["test"]["value"] == report["figures"]["ndcg@10"]
        assert [row["test"]["low"], row["test"]["high"]] == report["intervals"]["ndcg@10"]
        assert row["bytes"] == open_artifact(run / "bundle").figures["bytes"]["bundle"] > 0
        assert row["seconds"] > 0 and row["p50_ms"] > 0
        assert row["closed_form"] == (name != "mlp")
    assert rows["item_knn"]["test"]["value"] > rows["popularity"]["test"]["value"]
    assert (tmp_path / "models.png").read_bytes()[:4] == b"\x89PNG"
    runs = [tmp_path / "models" / name for name in rows]
    assert len(app.compare(runs)["differences"]) == 2, "each is a run that can be compared"

    monkeypatch.setattr(module, "fit", None)  # whoever trains again fails
    again = bench_models(recipe, tmp_path, models=["mlp", "popularity", "item_knn"])
    assert again == result
    assert json.loads((tmp_path / "models.json").read_text()) == result
    assert capsys.readouterr().err.count("unchanged, kept") >= 3


@pytest.mark.usefixtures("ray_local")
def test_a_model_that_cannot_is_listed_with_its_reason(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(log, "leave_random", model="popularity", **{"data.timestamp": ""})
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    verb = ["bench", "models", tmp_path / "recipe.toml", "--out", tmp_path / "out"]
    code, out, err = rayrec(capsys, *verb, "--models", "sasrec,popularity", "--minutes", 0.1)
    assert code == 0
    assert "popularity" in out and "sasrec" not in out
    assert "sasrec is left out: " in err and "order" in err
    code, out, _ = rayrec(capsys, *verb, "--models", "popularity", "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)["models"]] == ["popularity"]
    code, out, err = rayrec(capsys, *verb, "--models", "sasrec")
    assert code == 1 and "no model could be measured (sasrec: " in err
    code, out, err = rayrec(capsys, *verb, "--models", "magic")
    assert code == 1 and "no model 'magic'" in err


@pytest.mark.usefixtures("ray_local")
def test_nothing_held_out_is_refused(log: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is held out to measure on"):
        bench_models(recipe_of(log, "leave_last", **{"split.test": 0.0}), tmp_path, models=["popularity"])


def test_models_in_closed_form_come_first(log: Path) -> None:
    names = module._ordered(["mlp", "popularity", "neumf", "item_knn"], recipe_of(log))
    assert names == ["popularity", "item_knn", "mlp", "neumf"]
    with pytest.raises(RecipeError, match="no model 'magic' - choose among"):
        module._ordered(["magic"], recipe_of(log))


def test_the_settings_of_the_recipe_are_for_its_own_model(log: Path, tmp_path: Path) -> None:
    """Others are trained as their own defaults say, and measured alike."""
    dataset: Dataset = tiny_dataset(tmp_path / "dataset")
    changes: dict[str, Any] = {"model.heads": 2, "train.epochs": 7, "train.metric": "ndcg@5"}
    recipe = recipe_of(log, model="mlp", **changes)
    own, other = (recipe_for(recipe, name, 2.0, dataset) for name in ("mlp", "two_tower"))
    assert (own.model.hyperparameters, own.train.epochs) == ({"heads": 2}, 7)
    assert other.model.hyperparameters == {} and "epochs" not in other.train.model_fields_set
    assert [r.train.metric for r in (own, other)] == ["ndcg@5"] * 2
    assert [r.train.minutes for r in (own, other)] == [2.0] * 2
    auto = recipe_for(recipe_of(log, model="auto", **{"train.epochs": 7}), "two_tower", 2.0, dataset)
    assert auto.train.epochs == 7, "of a recipe that names no model, [train] is for all"
