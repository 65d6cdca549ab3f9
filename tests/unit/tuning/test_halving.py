"""Which trainings of a search are stopped, on what grounds, and what is left of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from app.recipe import Recipe
from tests.tiny import tiny_dataset
from tuning.points import Point
from tuning.propose import Proposer
from tuning.space import Space
from tuning.trials.dirs import SearchDirs
from tuning.trials.halving import Halving, Stopped, goes_on, rungs
from tuning.trials.journal import DIRECTIONS, open_journal, points, ran, stopped
from tuning.trials.ledger import Ledger
from tuning.trials.trial import as_untrained, run_trial


def point(quality: float, p95_ms: float = 1.0, size: int = 100, **settings: object) -> Point:
    return Point(-1, settings, quality, p95_ms, size, False, "ndcg@10")


@pytest.mark.parametrize(
    ("epochs", "judged"), [(1, []), (2, []), (3, [1]), (8, [3]), (9, [1, 3]), (20, [3, 7]), (30, [4, 10])]
)
def test_a_trial_is_judged_after_a_ninth_and_a_third_of_its_epochs(epochs: int, judged: list[int]) -> None:
    assert rungs(epochs) == judged


def test_the_better_third_goes_on() -> None:
    others = [point(0.1), point(0.2), point(0.4), point(0.5), point(0.6)]
    assert goes_on(others, point(0.55)), "second of six"
    assert not goes_on(others, point(0.3))
    assert goes_on([], point(0.0)), "nobody came there before"
    assert not goes_on([point(0.2)], point(0.1))


def test_what_is_smaller_or_faster_than_all_goes_on() -> None:
    others = [point(0.5, 2.0, 900), point(0.6, 2.0, 800), point(0.7, 1.9, 990)]
    assert goes_on(others, point(0.05, 2.0, 80))
    assert goes_on(others, point(0.05, 0.3, 990))
    assert not goes_on(others, point(0.05, 2.0, 990))


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=10), st.tuples(*[st.integers(0, 5)] * 3))
def test_what_nothing_beats_goes_on(rest: list[tuple[int, int, int]], own: tuple[int, int, int]) -> None:
    beaten = [q >= own[0] and p <= own[1] and b <= own[2] and (q, p, b) != own for q, p, b in rest]
    others = [point(q, p, b, n=n) for n, (q, p, b) in enumerate(rest)]
    if not any(beaten):
        assert goes_on(others, point(*own))


def test_rungs_are_shared_by_trials_and_survive_one_that_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "rungs.jsonl"
    good = Halving(path, point(0, n=1), 9)
    for epoch, quality in ((1, 0.3), (2, 0.5), (3, 0.4)):
        good({"epoch": epoch, "ndcg@10": quality})
    with pytest.raises(Stopped) as ended:
        Halving(path, point(0, n=2), 9)({"epoch": 1, "ndcg@10": 0.2})
    assert (ended.value.epoch, ended.value.point.quality) == (1, 0.2)
    again = Halving(path, point(0, n=2), 9)
    again({"epoch": 1, "loss": 2.0})  # no figure, no judgement
    again({"epoch": 2, "ndcg@10": 0.35})  # better than what came to the first rung, itself left out
    with pytest.raises(Stopped):
        again({"epoch": 3, "ndcg@10": 0.45})  # the best of the other so far is .5


@pytest.fixture
def dirs(tmp_path: Path) -> SearchDirs:
    tiny_dataset(tmp_path / "dataset")
    return SearchDirs(tmp_path)


RECIPE = Recipe().override(
    {
        "model.name": "mlp",
        "model.width": 4,
        "train.epochs": 6,
        "train.patience": 0,
        "tune.stop_early": True,
    }
)


def test_a_training_that_is_behind_ends_and_leaves_its_costs(dirs: SearchDirs) -> None:
    first = run_trial({"train.learning_rate": 0.01}, RECIPE, dirs)
    assert (first.get("failed"), first["stopped"]) == (None, 0)
    learns_nothing = {"train.learning_rate": 1e-9, "train.table_learning_rate": 1e-9, "model.width": 16}
    behind = run_trial(learns_nothing, RECIPE, dirs)
    assert (behind.get("failed"), behind["stopped"], behind["checkpoint"]) == (None, 2, "")
    assert behind["quality"] < first["quality"] and behind["bytes"] > first["bytes"]
    whole = run_trial(learns_nothing, RECIPE.override({"tune.stop_early": False}), dirs)
    assert whole["stopped"] == 0
    assert behind["bytes"] == pytest.approx(whole["bytes"], rel=0.02), "costs do not depend on weights"
    assert len(list((dirs.out / "checkpoints").iterdir())) == 4, "two checkpoints and their locks"


def test_a_stopped_trial_counts_is_learned_from_and_is_no_point(tmp_path: Path) -> None:
    def ledger() -> Ledger:
        study = open_journal(tmp_path / "journal.log", "s")
        space = Space(RECIPE, ("mlp",), frozenset())
        return Ledger(RECIPE, study, Proposer(space, ran(study), DIRECTIONS), trials=4)

    running = ledger()
    costs = {"p95_ms": 1.5, "p95_range": (1.4, 1.7), "bytes": 10**6, "reused": False, "seconds": 2.0}
    running.next("a")
    running.close("a", {"quality": 0.3, **costs, "checkpoint": "k", "stopped": 0})
    running.next("b")
    running.close("b", {"quality": 0.1, **costs, "checkpoint": "", "stopped": 2})
    (only,) = points(running.study)
    assert (only.quality, running.missing, stopped(running.study)) == (0.3, 2, {1: 2})
    assert [trial.state for trial in running.study.get_trials()] == [TrialState.COMPLETE, TrialState.PRUNED]
    goes_on_from = ledger()
    assert goes_on_from.missing == 2
    assert goes_on_from.proposer.proposed == running.proposer.proposed
    assert goes_on_from.proposer.costs == running.proposer.costs, "it left no checkpoint to reuse"
    assert goes_on_from.next("c") == running.next("c"), "as if it had run on"


def test_the_untrained_model_is_as_large_as_the_student() -> None:
    recipe = RECIPE.override(
        {"compress.steps": ["distill", "product", "finetune"], "compress.distill.student": {"width": 2}}
    )
    untrained = as_untrained(recipe)
    assert untrained.compress.steps == ["product"]
    assert untrained.model.hyperparameters["width"] == 2
