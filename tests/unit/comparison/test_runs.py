"""Runs compared by the ranks that they report: by hand, and refusals that say what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import app
from app.comparison.ranks import short_names
from app.errors import ArtifactError, DataError, UserError
from app.evaluation.evaluate import Report, evaluate
from app.evaluation.report import write_report
from app.evaluation.scorer import ModelScorer
from app.models.build import build_model
from app.recipe import parse
from tests.tiny import tiny_dataset
from tests.unit.test_cli import rayrec

REPORTED = [f"{name}@10" for name in ("ndcg", "hit_rate", "recall", "mrr", "map")]
LOG = 1 / np.log2(3)  # NDCG of a single target at rank 2


def write_run(folder: Path, rank_of: dict[str, int | None], **changes: Any) -> Path:
    """A run whose users, each with the item "i" to find among 20, have these ranks."""
    users, count = list(rank_of), len(rank_of)
    columns: dict[str, Any] = {
        "request": pa.array(range(count), pa.int32()),
        "user": users,
        "time": [0] * count,
        "item": ["i"] * count,
        "rank": pa.array(rank_of.values(), pa.int32()),
        "candidates": pa.array([20] * count, pa.int32()),
        "pool": pa.array([7] * count, pa.uint64()),
    }
    protocol = {"candidates": "all", "exclude_seen": True, "seed": 42, "items": 20}
    protocol |= {"requests": count, "targets": count, **changes.pop("protocol", {})}
    report = Report(
        name="shop",
        model=changes.pop("model", "mlp"),
        part=changes.pop("part", "test"),
        protocol=protocol,
        figures=dict.fromkeys(REPORTED, 0.0),
        intervals={},
        baselines={},
        ratios={},
        segments={},
        calibration=[],
        notes=[],
        ranks=changes["ranks"] if "ranks" in changes else pa.table(columns | changes),
    )
    write_report(report, folder / "report")
    return folder


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first", {"a": 1, "b": 2, "c": 11, "d": None})


def test_differences_by_hand(first: Path, tmp_path: Path) -> None:
    """User c moves from rank 11 to 1, d from nowhere to 2, and a falls to 2; users stand in another order."""
    second = write_run(tmp_path / "second", {"d": 2, "c": 1, "b": 2, "a": 2}, model="sasrec")
    result = app.compare([first, second])
    assert result["first"] == "first"
    assert [(run["name"], run["model"]) for run in result["runs"]] == [("first", "mlp"), ("second", "sasrec")]
    assert (result["users"], result["targets"]) == (4, 4)
    own, other = (run["figures"] for run in result["runs"])
    assert own["hit_rate@10"] == pytest.approx(2 / 4)
    assert other["hit_rate@10"] == pytest.approx(4 / 4)
    assert own["ndcg@10"] == pytest.approx((1 + LOG) / 4)
    assert other["ndcg@10"] == pytest.approx((1 + 3 * LOG) / 4)
    difference = result["differences"]["second"]
    assert difference["ndcg@10"]["value"] == pytest.approx(2 * LOG / 4)
    # Hits differ for c and d alone: of four choices of signs two sum as far from 0.
    assert difference["hit_rate@10"]["value"] == pytest.approx(0.5)
    assert difference["hit_rate@10"]["p"] == pytest.approx(2 / 4)
    assert "recall@10" not in difference, "with one target each, recall is the hit rate"
    # NDCG: a - (1 - LOG), c + 1, d + LOG; their sum 2 LOG is reached or passed by 4 of 8 choices of signs.
    assert difference["ndcg@10"]["p"] == pytest.approx(4 / 8)


def test_a_run_is_level_with_itself(first: Path) -> None:
    result = app.compare([first, first, first])
    assert [run["name"] for run in result["runs"]] == ["first (1)", "first (2)", "first (3)"]
    for figures in result["differences"].values():
        assert all(row == {"value": 0, "low": 0, "high": 0, "p": 1} for row in figures.values())
    assert "of 2, those below 0.025" in result["notes"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"candidates": "listed"}}, "candidates is 'all' and 'listed'"),
        ({"protocol": {"exclude_seen": False}}, "exclude_seen is True and False"),
        ({"part": "valid"}, "test part, the other on the valid part"),
        (
            {"user": ["a", "b", "c", "e"]},
            "1 users are in the first alone, 1 in the second (user 'd' for one), of 5",
        ),
        ({"item": ["i", "j", "i", "i"]}, "to be found for 1 of 4 users (for user 'b' 'i' and 'j')"),
        (
            {"pool": pa.array([7, 7, 8, 7], pa.uint64())},
            "differ for 1 of 4 requests: user 'c' has 20 and 20, not the same",
        ),
        ({"candidates": pa.array([20, 20, 20, 19], pa.int32())}, "user 'd' has 20 and 19"),
    ],
)
def test_another_test_part_is_refused_with_what_differs(
    first: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = write_run(tmp_path / "other", {"a": 1, "b": 2, "c": 11, "d": None}, **changes)
    with pytest.raises(DataError) as caught:
        app.compare([first, other])
    assert message in caught.value.what
    assert caught.value.where == "first and other"


def test_what_is_no_run_is_refused(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="1 run to compare"):
        app.compare([first])
    with pytest.raises(ArtifactError, match="no such folder"):
        app.compare([first, tmp_path / "absent"])
    empty = Report("shop", "mlp", "test", {}, {}, {}, {}, {}, {}, [], [])
    write_report(empty, tmp_path / "empty" / "report")
    with pytest.raises(ArtifactError, match="nothing was held out"):
        app.compare([first, tmp_path / "empty"])
    write_run(tmp_path / "old", {"a": 1}, ranks=None)
    with pytest.raises(ArtifactError, match="an older version wrote this report"):
        app.compare([first, tmp_path / "old"])
    with pytest.raises(UserError, match=r"no \.png file"):
        app.compare([first, first], plot=tmp_path / "plot.txt")


def test_unknown_users_are_told_apart_by_their_moment(tmp_path: Path) -> None:
    """Two requests of users that nobody knows: numbered the other way round, they are the same requests."""
    common = {"user": ["", ""], "item": ["i", "j"]}
    first = write_run(tmp_path / "first", {"x": 1, "y": 3}, time=[5, 4], **common)
    second = write_run(tmp_path / "second", {"x": 3, "y": 1}, time=[4, 5], user=["", ""], item=["j", "i"])
    other = write_run(tmp_path / "other", {"x": 3, "y": 1}, time=[5, 4], user=["", ""], item=["j", "i"])
    assert app.compare([first, second])["differences"]["second"]["mrr@10"]["value"] == 0
    with pytest.raises(DataError, match="other items are to be found"):
        app.compare([first, other])


def test_names_are_as_long_as_needed() -> None:
    assert short_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert short_names([Path("/a/x/one"), Path("/a/y/two")]) == ["one", "two"]


def test_the_verb_prints_a_table_and_draws(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = write_run(tmp_path / "second", {"a": 2, "b": 2, "c": 1, "d": 2})
    code, out, _ = rayrec(capsys, "compare", first, second, "--out", tmp_path / "plots" / "runs.png")
    assert code == 0
    assert "hit_rate@10" in out and "+0.5000" in out
    assert (tmp_path / "plots" / "runs.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = rayrec(capsys, "compare", first, second, "--json")
    assert json.loads(out)["differences"]["second"]["hit_rate@10"]["value"] == pytest.approx(0.5)
    code, _, err = rayrec(capsys, "compare", first)
    assert code == 1 and len(err.strip().splitlines()) == 1


# --- what evaluations keep ----------------------------------------------------------------


def run_of(folder: Path, dataset: Any, model: str, **evaluation: Any) -> Path:
    recipe = parse(
        {"model": {"name": model}, "evaluate": {"baselines": [], "delay": [], **evaluation}}, "test"
    )
    report = evaluate(recipe, dataset, ModelScorer(build_model(model, {}, dataset)))
    write_report(report, folder / "report")
    return folder


def test_kept_ranks_give_the_figures_of_the_report(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=60, events=900)
    runs = [run_of(tmp_path / name, dataset, name) for name in ("popularity", "item_knn")]
    result = app.compare(runs)
    for run in result["runs"]:
        reported = json.loads((tmp_path / run["name"] / "report" / "report.json").read_text())["figures"]
        assert run["figures"] == pytest.approx({name: reported[name] for name in run["figures"]})
    assert result["differences"]["item_knn"]["ndcg@10"]["low"] > 0


def test_evaluations_of_another_kind_or_log_are_refused(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "dataset", users=40, events=600)
    listed = tiny_dataset(tmp_path / "listed", users=40, events=600, negatives=9)
    runs = [run_of(tmp_path / "a", dataset, "popularity"), run_of(tmp_path / "b", dataset, "item_knn")]
    assert app.compare(runs)["users"] == 40
    with pytest.raises(DataError, match="candidates is 'all' and 'listed'"):
        app.compare([runs[0], run_of(tmp_path / "c", listed, "popularity", candidates="listed")])
    with pytest.raises(DataError, match="exclude_seen is True and False"):
        app.compare([runs[0], run_of(tmp_path / "d", dataset, "popularity", exclude_seen=False)])
    with pytest.raises(DataError, match="30 users are in the first alone, 0 in the second"):
        app.compare([runs[0], run_of(tmp_path / "e", dataset, "popularity", max_users=10)])
    other = tiny_dataset(tmp_path / "other", users=40, events=600, seed=1)
    with pytest.raises(DataError, match="other items are to be found"):
        app.compare([runs[0], run_of(tmp_path / "f", other, "popularity")])


def test_listed_candidates_are_told_apart_by_which_they_are(tmp_path: Path) -> None:
    """As many negatives for the same targets, but one of them is another item."""
    dataset = tiny_dataset(tmp_path / "dataset", users=40, events=600, negatives=9)
    first = run_of(tmp_path / "a", dataset, "popularity", candidates="listed")
    negatives = np.array(dataset.test.negatives)
    unlisted = np.setdiff1d(np.arange(1, 61), [*negatives[3], dataset.test.item[3]])
    negatives[3, 0] = unlisted[0]
    object.__setattr__(dataset.test, "negatives", negatives)
    with pytest.raises(DataError, match=r"candidates differ for 1 of 40 requests: .* not the same"):
        app.compare([first, run_of(tmp_path / "b", dataset, "popularity", candidates="listed")])
