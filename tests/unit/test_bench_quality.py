"""What the quality benchmark makes of runs: mean, spread, bars, and what it does not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import quality
from tests.bench.quality import ATTAINED, HIT, NDCG, TASKS, Kept, bars, markdown, measure, report, summary


def kept(ndcg: float, minutes: float = 1.0, low: float = 0.01, **changes: Any) -> Kept:
    baselines = {"item_knn": {HIT: 0.2, NDCG: 0.1}, "ease": {HIT: 0.2, NDCG: 0.1}}
    result = {
        "figures": {HIT: 2 * ndcg, NDCG: ndcg},
        "baselines": baselines,
        "differences": {name: [ndcg - 0.1, low, 0.3] for name in baselines},
        "chosen": None,
        **changes,
    }
    return Kept(Path("unused"), "key", minutes, result)


def test_mean_and_spread_over_seeds_by_hand() -> None:
    """.053, .055 and .057 have the mean .055 and the standard deviation .002; seed 4 is not finished."""
    runs = {1: kept(0.053, 30), 2: kept(0.055, 41), 3: kept(0.057, 20), 4: Kept(Path("unused"), "key", 99)}
    figures = summary("beauty", runs)
    assert figures["seeds"] == [1, 2, 3]
    assert figures["figures"][NDCG]["mean"] == pytest.approx(0.055)
    assert figures["figures"][NDCG]["sd"] == pytest.approx(0.002)
    assert figures["minutes"] == 41
    content = report({"beauty": figures})
    assert content["ratios"]["best_published"][f"beauty {NDCG}"] == pytest.approx(0.055 / 0.0614)
    holds = {bar["name"]: bar["holds"] for bar in content["bars"]}
    assert holds == {f"beauty {HIT}": True, f"beauty {NDCG}": True, "beauty minutes": False}
    assert not any(bar["aim_holds"] for bar in content["bars"] if bar["name"] == f"beauty {NDCG}")
    page = markdown(content)
    assert "| **ours** | 0.1100 ± 0.0040 | 0.0550 ± 0.0020 |" in page
    assert "| WEARec, published | 0.1041 | 0.0614 |" in page and "| item_knn | 0.2000 | 0.1000 |" in page


def test_a_mean_below_the_bar_does_not_hold() -> None:
    assert not bars("beauty", summary("beauty", {1: kept(0.0529)}))[1]["holds"]
    assert bars("beauty", summary("beauty", {1: kept(0.053)}))[1]["holds"]


@pytest.mark.parametrize(("low", "holds"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_online_retail_has_to_be_apart_from_item_knn(low: float, holds: bool) -> None:
    last = bars("online_retail", summary("online_retail", {1: kept(0.3, low=low)}))[-1]
    assert last["holds"] is holds and "item_knn" in last["name"]


def test_auto_may_be_level_with_a_baseline_and_not_below() -> None:
    level = kept(0.1, low=-0.01, chosen="ease")
    assert all(bar["holds"] for bar in bars("beauty-auto", summary("beauty-auto", {1: level})))
    level.result["differences"]["ease"] = [-0.1, -0.2, -0.01]
    held = {
        bar["name"].split()[2].rstrip(","): bar["holds"]
        for bar in bars("beauty-auto", summary("beauty-auto", {1: level}))
    }
    assert held == {"item_knn": True, "ease": False}


def test_tasks_name_recipes_that_are_there() -> None:
    for task in TASKS.values():
        assert not task.recipe or (quality.REPOSITORY / task.recipe).is_file()
        assert task.least.keys() == task.aim.keys()
        assert all(task.aim[figure] > task.least[figure] for figure in task.least)


PRINTED = {
    "figures": {HIT: 0.2, NDCG: 0.1},
    "intervals": {NDCG: [0.0, 0.2]},
    "baselines": {"item_knn": {HIT: 0.1, NDCG: 0.05}},
    "differences": {name: {NDCG: [0.05, 0.01, 0.09]} for name in ("item_knn", "ease")},
    "training": {"best_ndcg@10": 0.11, "epochs": 3},
    "seconds": {"train": 1.0},
}


def test_finished_runs_are_kept_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    answers = [json.dumps(PRINTED), "", json.dumps(PRINTED)]  # the second try is told to end

    def rayrec(arguments: list[str], _: float) -> str:
        started.append(next(a for a in arguments if a.startswith("seed=")))
        return answers.pop(0)

    monkeypatch.setattr(quality, "RUNS", tmp_path)
    monkeypatch.setattr(quality, "_rayrec", rayrec)
    first = measure(["beauty"], 2, 0)
    assert first["figures"]["beauty"]["seeds"] == [1]
    assert "seeds 2 are not finished" in capsys.readouterr().err
    second = measure(["beauty"], 2, 0)
    assert started == ["seed=1", "seed=2", "seed=2"]
    assert second["figures"]["beauty"]["seeds"] == [1, 2]
    measure(["beauty"], 2, 0)
    assert len(started) == 3
    answers.append(json.dumps(PRINTED))
    measure(["beauty"], 1, 0, auto=True)
    assert len(started) == 4, "auto is another run"


def test_a_run_past_the_deadline_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that would sleep for an hour stands in the place of the command line."""
    (tmp_path / "app.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setattr(quality, "REPOSITORY", tmp_path)
    assert quality._rayrec([], deadline=0.0) == ""


def test_a_run_that_fails_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text("import sys\nsys.exit(1)\n")
    monkeypatch.setattr(quality, "REPOSITORY", tmp_path)
    with pytest.raises(SystemExit, match="rayrec run x ended with 1"):
        quality._rayrec(["run", "x"], deadline=float("inf"))


def test_the_share_of_what_the_shop_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "attainable", lambda *_: 0.4)
    monkeypatch.setattr(quality.Dataset, "open", lambda *_, **__: None)
    result = quality._result(PRINTED, "demo", tmp_path)
    assert result["figures"][ATTAINED] == pytest.approx(0.25)
    assert result["baselines"]["item_knn"][ATTAINED] == pytest.approx(0.125)
