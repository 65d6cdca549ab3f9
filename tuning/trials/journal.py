"""The Optuna journal: every trial of a search that finished, was stopped or failed, appended whole.

It is all that a search goes on from: a trial that was cut off is not in it, so the finished ones
are read and counted. One whose training was stopped is there as pruned, with what it had reached; one that
failed, with its reason. `optuna.load_study` and Optuna's
dashboard open it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from app.errors import ArtifactError
from tuning.points import Point
from tuning.propose import Proposal
from tuning.space import decoded

# Of quality, p95 in ms, bytes.
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize", "minimize"]


def open_journal(path: Path, name: str) -> optuna.Study:
    """The study `name` in the journal file, created where it is absent; for one process at a time.

    A last line that was cut off while it was written is removed: it is no finished trial, and
    lines after it could not be read.

    Raises:
        ArtifactError: the file is not a journal or is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        _remove_torn_line(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        if name in optuna.get_all_study_names(storage):  # create_study would append to the file
            return optuna.load_study(study_name=name, storage=storage)
        return optuna.create_study(storage=storage, study_name=name, directions=DIRECTIONS)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"not a whole journal ({error})", where=str(path), remedy="move it away, or choose another --out"
        ) from None


def _remove_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as stream:
        whole, _, torn = stream.read().rpartition(b"\n")
        if torn and not b'{"op_code"'.startswith(torn[:10]):
            raise ValueError("its last line is none of a journal")
        for line in whole.splitlines():
            json.loads(line)["op_code"]  # Optuna skips an unreadable last line and appends after it
        stream.truncate(len(whole) + 1 if whole else 0)


def record(study: optuna.Study, proposal: Proposal, point: Point, checkpoint: str, seconds: float) -> Point:
    """Append a finished trial; returns the point with its number in the journal."""
    study.add_trial(
        optuna.trial.create_trial(
            params=proposal.params,
            distributions=proposal.distributions,
            values=[point.quality, point.p95_ms, point.bytes],
            user_attrs={
                "reused": point.reused,
                "checkpoint": checkpoint,
                "metric": point.metric,
                "seconds": round(seconds, 3),
                "p95_ms": [point.p95_low, point.p95_high],
            },
        )
    )
    return points(study)[-1]


def record_stopped(study: optuna.Study, proposal: Proposal, point: Point, epoch: int, seconds: float) -> None:
    """Append a trial whose training was stopped after an epoch, with what it had reached."""
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.PRUNED,
            params=proposal.params,
            distributions=proposal.distributions,
            user_attrs={
                "stopped": epoch,
                "reached": [point.quality, point.p95_ms, point.bytes],
                "seconds": round(seconds, 3),
            },
        )
    )


def record_failure(study: optuna.Study, proposal: Proposal, reason: str) -> None:
    """Append a trial that failed, with its reason; a search that goes on may try its settings again."""
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.FAIL,
            params=proposal.params,
            distributions=proposal.distributions,
            user_attrs={"failed": reason},
        )
    )


def ran(study: optuna.Study) -> list[FrozenTrial]:
    """All trials that finished or were stopped: of these with what they had reached, as if it were the end.

    So a sampler learns from both; that a longer training would have reached more does not make it better than
    those that went on.
    """
    trials = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        if trial.state == TrialState.PRUNED:
            trial = optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=trial.user_attrs["reached"],
                user_attrs=trial.user_attrs,
            )
        trials.append(trial)
    return trials


def stopped(study: optuna.Study) -> dict[int, int]:
    """Of each trial that was stopped, by its number, the epoch after which it was."""
    pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return {trial.number: int(trial.user_attrs["stopped"]) for trial in pruned}


def points(study: optuna.Study) -> list[Point]:
    """All finished trials of the journal, in the order in which they finished."""
    return [
        Point(
            trial=trial.number,
            settings=decoded(trial.params),
            quality=trial.values[0],
            p95_ms=trial.values[1],
            bytes=int(trial.values[2]),
            reused=bool(trial.user_attrs.get("reused")),
            metric=str(trial.user_attrs.get("metric", "quality")),
            p95_range=tuple(trial.user_attrs.get("p95_ms") or ()),
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ]


def failures(study: optuna.Study) -> dict[int, str]:
    """Of each trial of the journal that failed, by its number, the reason."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return {trial.number: str(trial.user_attrs.get("failed", "unknown")) for trial in failed}
