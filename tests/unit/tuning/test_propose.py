"""Proposals: nothing twice, and enough of them on checkpoints that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from app.errors import ArtifactError
from app.models.discovery import model_config, model_names
from app.recipe import Recipe
from tuning import space
from tuning.points import Point
from tuning.propose import Proposal, Proposer
from tuning.space import Space
from tuning.trials.journal import DIRECTIONS, open_journal, points, record


def recipe_of(model: str) -> Recipe:
    return Recipe().override({"model.name": model, "train.batch_size": 1024})


def proposer(recipe: Recipe, study: optuna.Study | None = None, models: tuple[str, ...] = ()) -> Proposer:
    finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)) if study else []
    names = models or (recipe.model.name,)
    return Proposer(Space(recipe, names, frozenset(names)), finished, DIRECTIONS)


def quality(proposal: Proposal) -> float:
    """A made-up figure that prefers a learning rate near 0.001."""
    return 1 / (1 + abs(proposal.settings.get("train.learning_rate", 0.01) - 0.001))


def training(settings: space.Settings) -> str:
    return json.dumps(space.training_part(settings), sort_keys=True)


def search(proposes: Proposer, trials: int, at_once: int) -> tuple[list[space.Settings], int]:
    """Settings in the order of proposal, and how many found their training done by then."""
    under_way: list[Proposal] = []
    done: set[str] = set()
    settings, reused = [], 0
    for _ in range(trials):
        if len(under_way) == at_once:
            first = under_way.pop(0)
            known = training(first.settings) in done
            proposes.tell(first, [quality(first), 1.0, 1e6], 1.0 if known else 10.0, reused=known)
            done.add(training(first.settings))
        proposal = proposes.propose()
        assert proposal is not None
        reused += training(proposal.settings) in done
        settings.append(proposal.settings)
        under_way.append(proposal)
    return settings, reused


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_third_of_a_search_reuses_checkpoints(at_once: int) -> None:
    settings, reused = search(proposer(recipe_of("mlp")), 12, at_once)
    assert reused >= 4
    assert len({training(s) for s in settings}) >= 3
    assert len({json.dumps(s, sort_keys=True) for s in settings}) == 12


def test_the_first_trial_is_the_recipe_itself() -> None:
    recipe = recipe_of("mlp").override({"train.learning_rate": 0.00321})
    first = proposer(recipe).propose()
    assert first is not None
    assert recipe.override(first.settings).model_dump()["train"] == recipe.model_dump()["train"]


def test_every_model_is_tried_as_it_is_first() -> None:
    models = ("mlp", "item_knn", "two_tower")
    proposes = proposer(recipe_of("mlp"), models=models)
    first = []
    for _ in models:
        proposal = proposes.propose()
        assert proposal is not None
        first.append(proposal.settings)
        proposes.tell(proposal, [0.1, 1.0, 1.0], 1.0, reused=False)
    assert [settings["model.name"] for settings in first] == list(models)
    assert [settings.get("model.width") for settings in first] == [
        model_config("mlp", {}).width,  # type: ignore[attr-defined]
        None,
        model_config("two_tower", {}).width,  # type: ignore[attr-defined]
    ]
    finished = [space.training_part(settings) for settings in first]
    following = [proposes.propose() for _ in range(8)]
    assert any(space.training_part(p.settings) in finished for p in following if p is not None)


@pytest.mark.parametrize("model", model_names())
def test_a_small_space_comes_to_its_end(model: str) -> None:
    proposes = proposer(recipe_of(model))
    seen = set()
    for _ in range(40):
        proposal = proposes.propose()
        if proposal is None:
            break
        seen.add(json.dumps(proposal.settings, sort_keys=True))
        proposes.tell(proposal, [0.1, 1.0, 1.0], 1.0, reused=False)
    else:
        assert len(seen) == 40
        return
    assert len(seen) >= 1


def test_a_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    recipe = recipe_of("mlp")
    path = tmp_path / "journal.log"
    for _ in range(3):  # three searches of four trials, each with a proposal that is cut off
        study = open_journal(path, "s")
        proposes = proposer(recipe, study)
        for _ in range(4):
            proposal = proposes.propose()
            assert proposal is not None
            point = Point(-1, proposal.settings, quality(proposal), 2.0, 10**6, False, "ndcg@10")
            point = record(study, proposal, point, "key", 1.0)
            proposes.tell(proposal, [point.quality, point.p95_ms, point.bytes], 1.0, reused=False)
        proposes.propose()
    finished = points(optuna.load_study(study_name=None, storage=open_journal(path, "s")._storage))
    assert [p.trial for p in finished] == list(range(12))
    assert len({json.dumps(p.settings, sort_keys=True) for p in finished}) == 12
    assert len(open_journal(path, "s").trials) == 12


def test_a_torn_journal_loses_the_torn_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    study = open_journal(path, "s")
    for value in (1.0, 2.0):
        study.add_trial(optuna.trial.create_trial(values=[value, 1.0, 1.0]))
    path.write_bytes(path.read_bytes()[:-20])
    study = open_journal(path, "s")
    study.add_trial(optuna.trial.create_trial(values=[3.0, 1.0, 1.0]))
    assert [p.quality for p in points(open_journal(path, "s"))] == [1.0, 3.0]


@pytest.mark.parametrize("text", ["garbage\n", '{"op_code": 0}\n', "[1]\n", "\0\1\n", "no newline"])
def test_a_file_that_is_no_journal_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_text(text)
    with pytest.raises(ArtifactError, match="not a whole journal"):
        open_journal(path, "s")
    assert path.read_text() == text


def test_a_failed_proposal_is_not_made_again() -> None:
    proposes = proposer(recipe_of("mlp"))
    first = proposes.propose()
    assert first is not None
    proposes.drop(first.number)
    again = proposes.propose()
    assert again is not None
    assert again.settings != first.settings


def test_what_is_reused_is_a_training_that_no_other_trial_beats() -> None:
    proposes = proposer(recipe_of("mlp"))
    trainings = []
    for quality, size in ((0.1, 10.0), (0.3, 10.0), (0.2, 2.0), (0.05, 5.0)):
        while True:
            proposal = proposes.propose()
            assert proposal is not None
            if training(proposal.settings) not in trainings:
                break
            proposes.drop(proposal.number)
        trainings.append(training(proposal.settings))
        # Latencies within a tenth are as good as each other.
        proposes.tell(proposal, [quality, 1.0 + quality / 100, size], 10.0, reused=False)
    proposes.effort.reused.add(True, 0.01)  # so that most of the next ones reuse
    seen = set()
    for _ in range(30):
        proposal = proposes.propose()
        assert proposal is not None
        if training(proposal.settings) in trainings:
            seen.add(trainings.index(training(proposal.settings)))
        proposes.drop(proposal.number)
    assert seen == {1, 2}
