"""The Pareto front against brute force, and its table and picture."""

from __future__ import annotations

import csv
from pathlib import Path

import optuna
from hypothesis import given
from hypothesis import strategies as st

from app.recipe import Recipe
from app.recipe_toml import load
from tuning.budget import parse
from tuning.front import Point, front, write_csv
from tuning.results import write_results

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
    assert {p.trial for p in front(points)} == wanted


def measured(trial: int, quality: float, p95: float, noise: float, size: int = 1) -> Point:
    return Point(trial, {}, quality, p95, size, False, "ndcg@10", (p95 - noise, p95 + noise))


def test_a_point_that_is_faster_by_chance_alone_does_not_stay() -> None:
    best, chance, faster = measured(0, 0.3, 10, 1), measured(1, 0.29, 9, 1), measured(2, 0.28, 7, 1)
    assert front([chance, best]) == [best]
    assert front([faster, chance, best]) == [best, faster], "apart from what stays"
    exact = [measured(n, p.quality, p.p95_ms, 0) for n, p in enumerate((best, chance, faster))]
    assert front(exact) == exact


def test_of_two_alike_the_smaller_stays() -> None:
    assert [p.trial for p in front([measured(0, 0.3, 5.0, 1, 10), measured(1, 0.3, 5.2, 1, 9)])] == [1]


@given(clouds)
def test_the_front_of_a_front_is_itself(values: list[tuple[int, int, int]]) -> None:
    kept = front(cloud(values))
    assert front(kept) == kept
    assert [p.quality for p in kept] == sorted((p.quality for p in kept), reverse=True)


def test_the_table_has_a_column_a_setting(tmp_path: Path) -> None:
    points = [
        Point(3, {"model.hidden": [64, 32], "train.epochs": 2}, 0.25, 1.5, 2_000_000, True, "ndcg@10"),
        Point(5, {"compress.rows": "int8"}, 0.2, 1.0, 1_000_000, False, "ndcg@10"),
    ]
    write_csv(points, {"popularity": 0.05}, "ndcg@10", tmp_path / "front.csv")
    first, second, baseline = csv.DictReader((tmp_path / "front.csv").open())
    assert first["ndcg@10"] == "0.25"
    assert (first["mb"], first["reused"], first["model.hidden"]) == ("2.0", "1", "[64, 32]")
    assert (baseline["trial"], baseline["ndcg@10"], baseline["mb"]) == ("popularity", "0.05", "")
    assert (second["trial"], second["compress.rows"], second["train.epochs"]) == ("5", "int8", "")


def test_the_results_of_a_search(tmp_path: Path) -> None:
    settings = {"model.hidden": [32], "train.learning_rate": 0.002, "compress.rows": "int4"}
    points = [Point(n, settings, 0.1 * n, 1.0 + n, 10**6 * n, False, "ndcg@10") for n in range(1, 4)]
    files = write_results(
        Recipe(name="shop"),
        study_of(points),
        tmp_path,
        points,
        points[1],
        parse("mb<=2.5, p95_ms<=9", "ndcg@10"),
        {"item_knn": 0.25},
    )
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
    files = write_results(Recipe(), study_of(points), tmp_path, points, points[-1], [], {})
    lines = files["report_md"].read_text().splitlines()
    (ranked,) = [line for line in lines if line.startswith("* ndcg@10: ")]
    assert ranked.startswith("* ndcg@10: train.rate ")
    assert "* bytes is the same in all trials." in lines


def test_one_trial_is_a_result_too(tmp_path: Path) -> None:
    point = Point(0, {}, 0.1, 1.0, 10**6, False, "ndcg@10")
    files = write_results(Recipe(), study_of([point]), tmp_path, [point], point, [], {})
    assert all(path.stat().st_size for path in files.values())
