"""The Pareto front against brute force, and its table and picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RecipeError
from app.recipe import Recipe
from app.recipe_toml import load
from app.terminal.summary import of_trial
from tuning.budget import parse
from tuning.front import Front
from tuning.points import Point, pareto_front
from tuning.results.explain import explain
from tuning.results.table import write_csv
from tuning.results.write import write_results

small = st.integers(0, 4)  # few values, so that ties are common
clouds = st.lists(st.tuples(small, small, small), max_size=12)


def cloud(values: list[tuple[int, int, int]]) -> list[Point]:
    return [Point(n, {"train.epochs": n}, q, p, b, False, "ndcg@10") for n, (q, p, b) in enumerate(values)]


def beats(a: Point, b: Point) -> bool:
    pairs = [(-a.quality, -b.quality), (a.p95_ms, b.p95_ms), (a.bytes, b.bytes)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(clouds)
def test_the_front_is_what_nothing_beats(values: list[tuple[int, int, int]]) -> None:
    points = cloud(values)
    wanted = {p.trial for p in points if not any(beats(other, p) for other in points)}
    assert {p.trial for p in pareto_front(points)} == wanted


def measured(trial: int, quality: float, p95: float, noise: float, size: int = 1) -> Point:
    return Point(trial, {}, quality, p95, size, False, "ndcg@10", (p95 - noise, p95 + noise))


def test_a_point_that_is_faster_by_chance_alone_does_not_stay() -> None:
    best, chance, faster = measured(0, 0.3, 10, 1), measured(1, 0.29, 9, 1), measured(2, 0.28, 7, 1)
    assert pareto_front([chance, best]) == [best]
    assert pareto_front([faster, chance, best]) == [best, faster], "apart from what stays"
    exact = [measured(n, p.quality, p.p95_ms, 0) for n, p in enumerate((best, chance, faster))]
    assert pareto_front(exact) == exact


def test_of_two_alike_the_smaller_stays() -> None:
    assert [p.trial for p in pareto_front([measured(0, 0.3, 5.0, 1, 10), measured(1, 0.3, 5.2, 1, 9)])] == [1]


@given(clouds)
def test_the_front_of_a_front_is_itself(values: list[tuple[int, int, int]]) -> None:
    kept = pareto_front(cloud(values))
    assert pareto_front(kept) == kept
    assert [p.quality for p in kept] == sorted((p.quality for p in kept), reverse=True)


def test_the_table_has_a_column_a_setting(tmp_path: Path) -> None:
    points = [
        Point(3, {"model.hidden": [64, 32], "train.epochs": 2}, 0.25, 1.5, 2_000_000, True, "ndcg@10"),
        Point(5, {"compress.rows": "int8"}, 0.2, 1.0, 1_000_000, False, "ndcg@10"),
    ]
    write_csv(found(points, tmp_path, baselines={"popularity": 0.05}), tmp_path / "front.csv")
    first, second, baseline = csv.DictReader((tmp_path / "front.csv").open())
    assert first["ndcg@10"] == "0.25"
    assert (first["mb"], first["reused"], first["model.hidden"]) == ("2.0", "1", "[64, 32]")
    assert (baseline["trial"], baseline["ndcg@10"], baseline["mb"]) == ("popularity", "0.05", "")
    assert (second["trial"], second["compress.rows"], second["train.epochs"]) == ("5", "int8", "")


def found(points: list[Point], out: Path, budget: str = "", **beside: Any) -> Front:
    return Front(Recipe(name="shop"), out, points, parse(budget, "ndcg@10"), **beside)


def test_the_results_of_a_search(tmp_path: Path) -> None:
    settings = {"model.hidden": [32], "train.learning_rate": 0.002, "compress.rows": "int4"}
    points = [Point(n, settings, 0.1 * n, 1.0 + n, 10**6 * n, False, "ndcg@10") for n in range(1, 4)]
    beside = {"baselines": {"item_knn": 0.25}, "failures": {3: "no columns"}}
    front = found(points, tmp_path, "mb<=2.5, p95_ms<=9", **beside)
    write_results(front, study_of(points))
    files = front.files
    assert files["front_png"].read_bytes()[:4] == b"\x89PNG"
    chosen = load(files["best_toml"])
    assert chosen.model.hyperparameters == {"hidden": [32]}
    assert (chosen.train.learning_rate, chosen.compress.rows) == (0.002, "int4")
    assert "trial 2" in files["best_toml"].read_text().splitlines()[0]
    page = files["front_html"].read_text()
    assert page.count("<circle") == 2 * 3, "three trials in two panels"
    assert page.count('class="front chosen"') == 2 and "compress.rows = int4" in page
    assert "http" not in page and "<script" not in page
    report = files["report_md"].read_text()
    assert "| 2 (chosen) | 0.2000 |" in report and "* item_knn: ndcg@10 0.2500" in report
    assert "fewer than 8 trials" in report and "* 1 x no columns" in report


def test_a_front_is_a_pandas_table(tmp_path: Path) -> None:
    points = [
        Point(0, {"model.width": 8}, 0.1, 1.0, 10**6, False, "ndcg@10", (0.9, 1.2)),
        Point(1, {"model.width": 16}, 0.3, 2.0, 3 * 10**6, False, "ndcg@10"),
        Point(4, {"model.width": 16, "compress.rows": "int8"}, 0.3, 1.9, 10**6, True, "ndcg@10"),
    ]
    table = found(points, tmp_path, "ndcg@10>=0.9*best").frame()
    assert list(table["trial"]) == [1, 4, 0]
    assert list(table["ndcg@10"]) == [0.3, 0.3, 0.1]
    assert list(table["front"]) == [False, True, True]
    assert list(table["chosen"]) == [False, True, False]
    assert list(table["compress.rows"].fillna("")) == ["", "int8", ""]
    assert (table["p95_low"].iloc[2], table["p95_high"].iloc[2]) == (0.9, 1.2)


def test_a_trial_is_explained(tmp_path: Path) -> None:
    recipe = Recipe(name="shop").override({"model.name": "mlp", "model.width": 8})
    points = [
        Point(0, {"model.width": 8}, 0.1, 3.0, 2 * 10**6, False, "ndcg@10"),
        Point(2, {"model.width": 16, "compress.rows": "int4"}, 0.3, 2.0, 10**6, True, "ndcg@10"),
    ]
    limits = parse("mb<=1.6", "ndcg@10")
    front = Front(recipe, tmp_path, points, limits, failures={1: "the loss is nan"}, models=["mlp"])
    beaten = explain(front, 0)
    assert (beaten["beaten_by"], beaten["chosen"], beaten["misses"]) == ([2], 2, {"mb": 0.25})
    assert beaten["differs_from_recipe"] == {}
    assert beaten["differs_from_chosen"] == {"model.width": {"here": 8, "there": 16}}
    best = explain(front, 2)
    assert (best["beaten_by"], best["misses"], best["differs_from_chosen"]) == ([], {}, {})
    assert best["differs_from_recipe"]["model.width"] == {"here": 16, "there": 8}
    assert load(best["recipe"]).model.hyperparameters["width"] == 16
    rows = dict(of_trial(beaten))
    assert rows["on the front"] == "no: trial 2 beats it" and rows["budget"] == "misses mb by 25%"
    with pytest.raises(RecipeError, match="trial 1 failed: the loss is nan"):
        explain(front, 1)
    with pytest.raises(RecipeError, match=r"there is no trial 7 - choose one of 0, 2"):
        explain(front, 7)


def study_of(points: list[Point]) -> optuna.Study:
    """A study whose trials have these figures, a setting that says the quality, and one that says nothing."""
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    ranges = {name: optuna.distributions.FloatDistribution(0, 99) for name in ("train.rate@mlp", "idle")}
    for point in points:
        params = {"train.rate@mlp": 200 * point.quality, "idle": float(point.trial % 2)}
        values = [point.quality, point.p95_ms, float(point.bytes)]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=ranges, values=values))
    failed = optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL, user_attrs={"failed": "no columns"}
    )
    study.add_trial(failed)
    return study


def test_the_report_says_which_settings_mattered(tmp_path: Path) -> None:
    points = [measured(n, 0.1 + n / 100, 2.0, 0.1, 10**6) for n in range(12)]
    front = found(points, tmp_path)
    write_results(front, study_of(points))
    lines = front.files["report_md"].read_text().splitlines()
    (ranked,) = [line for line in lines if line.startswith("* ndcg@10: ")]
    assert ranked.startswith("* ndcg@10: train.rate ")
    assert "* bytes is the same in all trials." in lines


def test_one_trial_is_a_result_too(tmp_path: Path) -> None:
    point = Point(0, {}, 0.1, 1.0, 10**6, False, "ndcg@10")
    front = found([point], tmp_path)
    write_results(front, study_of([point]))
    assert all(path.stat().st_size for path in front.files.values())
