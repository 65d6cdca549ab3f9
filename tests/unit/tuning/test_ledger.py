"""The ledger: results to the journal, failures counted, and when to give up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from app.errors import DataError, RayRecError
from app.recipe import Recipe
from tuning.propose import Proposer
from tuning.space import Space
from tuning.trials.journal import DIRECTIONS, open_journal, points
from tuning.trials.ledger import GIVE_UP, Ledger
from tuning.trials.trial import trial_recipe
from tuning.tune import study_name

GOOD = {"quality": 0.3, "p95_ms": 1.5, "p95_range": (1.4, 1.7), "bytes": 10**6, "reused": False}
GOOD |= {"checkpoint": "k", "seconds": 2.0, "stopped": 0}

RECIPE = Recipe().override({"model.name": "mlp", "train.batch_size": 1024})


def ledger_of(recipe: Recipe, folder: Path, trials: int) -> Ledger:
    journal = open_journal(folder / "journal.log", "s")
    space = Space(recipe, (recipe.model.name,), frozenset())
    return Ledger(recipe, journal, Proposer(space, [], DIRECTIONS), trials)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledger_of(RECIPE, tmp_path, trials=4)


def test_a_result_goes_to_the_journal_at_once(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ledger.next("a")
    ledger.close("a", GOOD)
    (point,) = points(ledger.study)
    assert (point.settings, point.quality, point.reused) == (settings, 0.3, False)
    assert (point.p95_low, point.p95_ms, point.p95_high) == (1.4, 1.5, 1.7)
    assert ledger.missing == 3
    assert "trial 0 (1 of 4): ndcg@10 0.3000, p95 1.50 ms, 1.00 MB, trained (2 s)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "result", [None, {}, {"failed": "train.learning_rate: the loss is nan", "by_user": True}]
)
def test_a_failure_is_in_the_journal_with_its_reason_and_no_point(
    ledger: Ledger, result: dict[str, Any] | None
) -> None:
    ledger.next("a")
    ledger.close("a", result)
    assert (ledger.failed, ledger.finished, points(ledger.study)) == (1, 0, [])
    (failed,) = ledger.study.get_trials(states=(TrialState.FAIL,))
    assert failed.user_attrs["failed"] == (result or {}).get("failed", "the worker died")
    assert failed.params
    ledger.raise_if_hopeless()  # a single failure does not end the search


@pytest.mark.parametrize(("by_user", "kind"), [(True, DataError), (False, RayRecError)])
def test_failures_one_after_another_end_the_search(
    ledger: Ledger, by_user: bool, kind: type[RayRecError]
) -> None:
    for n in range(GIVE_UP):
        assert ledger.next(str(n)) is not None
        ledger.close(str(n), {"failed": "no columns", "by_user": by_user})
    assert ledger.next("more") is None
    with pytest.raises(kind, match="no columns") as caught:
        ledger.raise_if_hopeless()
    assert caught.value.exit_code == (1 if by_user else 2)


def test_a_success_between_failures_keeps_it_going(ledger: Ledger) -> None:
    for n in range(2 * GIVE_UP):
        ledger.next(str(n))
        ledger.close(str(n), GOOD if n % 2 else None)
    ledger.raise_if_hopeless()
    assert ledger.failed == GIVE_UP


def test_a_space_without_choices_is_exhausted(tmp_path: Path) -> None:
    ledger = ledger_of(RECIPE.override({"model.name": "popularity"}), tmp_path, trials=99)
    for n in range(99):
        if ledger.next(str(n)) is None:
            break
        ledger.close(str(n), GOOD)
    assert ledger.exhausted
    assert 1 <= ledger.finished < 99


def test_a_study_is_that_of_what_its_trials_depend_on() -> None:
    def named(*models: str, **changes: Any) -> str:
        recipe = RECIPE.override({name.replace("__", "."): value for name, value in changes.items()})
        return study_name(Space(recipe, models or ("mlp",), frozenset()), "digest")

    assert named(train__refit=True) == named()
    assert named(train__epochs=3) != named()
    assert named("mlp", "item_knn") != named()


def test_a_trial_is_shorter_where_the_recipe_says_so() -> None:
    recipe = RECIPE.override({"train.epochs": 20, "tune.epochs": 3, "train.workers": 1})
    shorter = trial_recipe(recipe, {"train.learning_rate": 0.01}).train
    assert (shorter.epochs, shorter.workers, shorter.learning_rate) == (3, 0, 0.01)
    assert trial_recipe(recipe.override({"train.workers": 2}), {}).train.workers == 2
    assert trial_recipe(recipe.override({"tune.epochs": 0}), {}).train.epochs == 20


def test_no_trial_begins_after_the_time_of_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("tuning.trials.ledger.time.monotonic", lambda: now)
    ledger = ledger_of(RECIPE.override({"tune.minutes": 2}), tmp_path, trials=4)
    assert ledger.next("a") is not None
    now += 121
    assert ledger.next("b") is not None, "nothing has finished yet"
    ledger.close("a", GOOD)
    assert ledger.next("c") is None and ledger.exhausted
    assert "2 minutes are over" in capsys.readouterr().err
