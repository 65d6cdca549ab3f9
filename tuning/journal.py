"""The Optuna journal: every finished trial, appended whole; the only memory of a search.

A trial that was cut off leaves no trace in it, so going on means reading it and counting.
`optuna.load_study` and Optuna's dashboard open it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from app.errors import ArtifactError
from tuning.front import Point
from tuning.propose import Proposal
from tuning.space import decoded

DIRECTIONS: list[Literal["maximize", "minimize"]] = [
    "maximize",
    "minimize",
    "minimize",
]  # quality, p95 in ms, bytes


def open_journal(path: Path, name: str) -> optuna.Study:
    """The study `name` in the journal file, made if it is not there.

    Raises:
        ArtifactError: the file is not a journal or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(
            storage=storage, study_name=name, directions=DIRECTIONS, load_if_exists=True
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"not a whole journal ({error})", where=str(path), remedy="move it away, or choose another --out"
        ) from None


def record(study: optuna.Study, proposal: Proposal, point: Point, checkpoint: str) -> Point:
    """Append a finished trial; returns the point with its number in the journal."""
    study.add_trial(
        optuna.trial.create_trial(
            params=proposal.params,
            distributions=proposal.distributions,
            values=[point.quality, point.p95_ms, point.bytes],
            user_attrs={"reused": point.reused, "checkpoint": checkpoint, "metric": point.metric},
        )
    )
    return points(study)[-1]


def points(study: optuna.Study) -> list[Point]:
    """All finished trials, in the order in which they finished."""
    return [
        Point(
            trial=trial.number,
            settings=decoded(trial.params),
            quality=trial.values[0],
            p95_ms=trial.values[1],
            bytes=int(trial.values[2]),
            reused=bool(trial.user_attrs.get("reused")),
            metric=str(trial.user_attrs.get("metric", "quality")),
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ]
