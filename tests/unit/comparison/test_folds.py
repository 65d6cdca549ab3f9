"""Folds of a log: what each tests, mean and spread, what an interrupted run goes on with, and mistakes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import app
from app.artifact import open_artifact
from app.comparison import folds as module
from app.comparison.folds import Fold, cross_validate, fold_recipe
from app.errors import DataError, RecipeError
from app.recipe import Recipe, parse
from tests.unit.test_cli import rayrec

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 users of 24 items, who like one of two halves of them."""
    path, rng = tmp_path_factory.mktemp("log") / "log.parquet", np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", 1_600_000_000 + 3600 * moment)
        for user in range(60)
        for moment, item in enumerate(2 * rng.permutation(12)[:8] + user % 2)
    ]
    pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").write_parquet(path)
    return path


def recipe_of(log: Path, method: str = "user", model: str = "item_knn", **changes: Any) -> Recipe:
    content = {
        "data": {"events": [str(log)]},
        "split": {"method": method},
        "features": {"context": []},
        "model": {"name": model},
        "evaluate": {"baselines": ["popularity"], "bootstrap": 0, "delay": []},
    }
    return parse(content, "test", changes)


def in_this_process(limit: int, started: list[str]) -> Callable[..., Iterator[tuple[int, Any]]]:
    """Instead of Ray: runs calls one after another, and is interrupted after `limit` of them."""

    def run_all(
        work: Callable[[Fold], Any], calls: Sequence[tuple[Fold]], *_: Any, **__: Any
    ) -> Iterator[tuple[int, Any]]:
        for number, (fold,) in enumerate(calls):
            if number == limit:
                raise KeyboardInterrupt
            started.append(fold.out.name)
            yield number, work(fold)

    return run_all


def test_folds_run_on_ray_and_test_each_user_once(log: Path, tmp_path: Path) -> None:
    result = cross_validate(recipe_of(log), tmp_path, 3)
    assert (result["folds"], result["over"], result["models"]) == (3, "users", ["item_knn"] * 3)
    assert sum(result["requests"]) == 60
    ranks = [pl.read_parquet(tmp_path / "folds" / f"fold-{n}-of-3" / "ranks.parquet") for n in (1, 2, 3)]
    assert sorted(pl.concat(ranks)["user"]) == sorted(f"u{user}" for user in range(60))
    figure = result["figures"]["ndcg@10"]
    own = [
        open_artifact(tmp_path / "folds" / f"fold-{n}-of-3", "fold").figures["figures"]["ndcg@10"]
        for n in (1, 2, 3)
    ]
    assert figure["folds"] == own
    assert figure["mean"] == pytest.approx(sum(own) / 3)
    assert figure["sd"] == pytest.approx(statistics.stdev(own))
    assert figure["mean"] > result["baselines"]["popularity"]["ndcg@10"]
    assert not list((tmp_path / "folds").glob(".*.run")), "what a fold worked in is removed"


def test_an_interrupted_run_goes_on_with_the_folds_that_are_missing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr(module, "run_all", in_this_process(2, started))
    with pytest.raises(KeyboardInterrupt):
        cross_validate(recipe_of(log), tmp_path, 3)
    assert started == ["fold-1-of-3", "fold-2-of-3"]
    kept = [path.stat().st_mtime_ns for path in sorted((tmp_path / "folds").glob("*/manifest.json"))]
    assert len(kept) == 2
    monkeypatch.setattr(module, "run_all", in_this_process(9, started))
    result = cross_validate(recipe_of(log), tmp_path, 3)
    assert started == ["fold-1-of-3", "fold-2-of-3", "fold-3-of-3"]
    assert result["resumed"] == 2
    assert "2 of 3 were finished by an earlier run" in capsys.readouterr().err
    again = cross_validate(recipe_of(log), tmp_path, 3)
    assert len(started) == 3 and again["figures"] == result["figures"]
    cross_validate(recipe_of(log, **{"evaluate.exclude_seen": False}), tmp_path, 3)
    assert len(started) == 6, "folds of other settings are run again"


def test_folds_of_events_test_each_event_once(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_all", in_this_process(9, []))
    result = cross_validate(recipe_of(log, "random"), tmp_path, 2)
    assert result["over"] == "events"
    ranks = [pl.read_parquet(tmp_path / "folds" / f"fold-{n}-of-2" / "ranks.parquet") for n in (1, 2)]
    tested = pl.concat(ranks).select("user", "item").rows()
    expected = pl.read_parquet(log).select("user", "item").rows()
    assert sorted(tested) == sorted(expected)


def test_a_fold_chooses_its_own_model(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.training import choice, defaults

    names = [defaults.Candidate("popularity"), defaults.Candidate("item_knn")]
    monkeypatch.setattr(choice, "candidates", lambda *_, **__: names)
    monkeypatch.setattr(module, "run_all", in_this_process(9, []))
    result = cross_validate(recipe_of(log, model="auto"), tmp_path, 2)
    assert set(result["models"]) <= {"popularity", "item_knn"} and len(result["models"]) == 2


@pytest.mark.parametrize(
    ("method", "expected"),
    [("auto", "user"), ("leave_last", "user"), ("leave_random", "kfold"), ("kfold", "kfold")],
)
def test_what_is_divided_follows_from_the_split(log: Path, method: str, expected: str) -> None:
    assert fold_recipe(recipe_of(log, method), 4, 3).split.method == expected
    assert fold_recipe(recipe_of(log, method), 4, 3).split.fold == 3


def test_a_log_without_order_is_divided_by_events(log: Path) -> None:
    unordered = recipe_of(log, "auto", **{"data.timestamp": ""})
    assert fold_recipe(unordered, 4, 0).split.method == "kfold"


def test_mistakes_are_one_message(log: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="1 folds - ask for 2 or more"):
        cross_validate(recipe_of(log), tmp_path, 1)
    with pytest.raises(RecipeError, match="'time' has no folds"):
        cross_validate(recipe_of(log, "time"), tmp_path, 5)
    few = tmp_path / "few.parquet"
    pl.read_parquet(log).filter(pl.col("user").is_in(["u1", "u2", "u3"])).write_parquet(few)
    with pytest.raises(DataError, match="3 users cannot be divided into 5 folds - ask for 3 folds or fewer"):
        cross_validate(recipe_of(few), tmp_path, 5)
    assert not (tmp_path / "folds").exists()


def test_a_fold_that_tests_nobody_is_named(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five users who are drawn into five folds: some fold gets nobody."""
    monkeypatch.setattr(module, "run_all", in_this_process(99, []))
    few = tmp_path / "few.parquet"
    pl.read_parquet(log).filter(pl.col("user").is_in([f"u{user}" for user in range(5)])).write_parquet(few)
    with pytest.raises(DataError, match=r"fold-\d+-of-5, split: nobody is tested .* ask for fewer --folds"):
        cross_validate(recipe_of(few), tmp_path, 5)


def test_the_verb_prints_mean_and_spread(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app.recipe_toml import to_toml

    monkeypatch.setattr(module, "run_all", in_this_process(9, []))
    (tmp_path / "recipe.toml").write_text(to_toml(recipe_of(log)))
    verb = ["evaluate", tmp_path / "recipe.toml", "--out", tmp_path / "out"]
    code, out, _ = rayrec(capsys, *verb, "--folds", 2, "--json")
    printed = json.loads(out)
    assert code == 0 and printed["folds"] == 2
    assert (
        json.loads((tmp_path / "out" / "folds" / "folds.json").read_text())["figures"] == printed["figures"]
    )
    code, out, _ = rayrec(capsys, *verb, "--folds", 2)
    assert code == 0 and "fold 2" in out and f"{printed['figures']['ndcg@10']['sd']:.4f}" in out
    code, out, _ = rayrec(capsys, *verb, "--json")
    assert code == 0 and "ndcg@10" in json.loads(out)["figures"]["figures"]
    code, _, err = rayrec(capsys, *verb, "--folds", 1)
    assert code == 1 and err.strip() == "--folds: 1 folds - ask for 2 or more"
    assert app.cross_validate is cross_validate
