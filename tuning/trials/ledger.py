"""The ledger of a search: which trials run, which have finished, and which failed.

It hands out proposals, takes the results of trials to the journal, and says when to give up.
"""

from __future__ import annotations

import math
import time
from typing import Any

import optuna

from app.errors import DataError, RayRecError
from app.recipe import Recipe
from app.terminal.console import Progress, say
from tuning.points import Point
from tuning.propose import Proposal, Proposer
from tuning.trials.journal import ran, record, record_failure, record_stopped

GIVE_UP = 3  # failures one after another


class Ledger:
    """The state of a search, kept in the driver; not thread-safe.

    Args:
        recipe: what is searched around.
        study: the journal, which finished trials are appended to.
        proposer: of settings; learns from each result.
        trials: that the journal is to hold in the end, finished or stopped.
    """

    def __init__(self, recipe: Recipe, study: optuna.Study, proposer: Proposer, trials: int) -> None:
        self.recipe, self.study, self.proposer, self.trials = recipe, study, proposer, trials
        self.finished = len(ran(study))
        self.failed = self.failed_in_a_row = 0
        self.exhausted = False
        minutes = recipe.tune.minutes
        self.deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        self.last_failure: dict[str, Any] = {}
        self.running: dict[str, Proposal] = {}  # by the name of Ray Tune's trial
        self.bar = Progress("tune", trials)

    @property
    def missing(self) -> int:
        """Number of finished trials that are still to come."""
        return self.trials - self.finished

    def next(self, trial: str) -> dict[str, Any] | None:
        """Settings for a trial of Ray Tune's, or None where no further trial is to run."""
        if self.failed_in_a_row >= GIVE_UP:
            return None
        if time.monotonic() >= self.deadline and self.finished:
            say(f"tune: {self.recipe.tune.minutes:g} minutes are over (tune.minutes)")
            self.exhausted = True
            return None
        proposal = self.proposer.propose()
        if proposal is None:
            say("tune: every combination of the space has been tried")
            self.exhausted = True
            return None
        self.running[trial] = proposal
        return proposal.settings

    def close(self, trial: str, result: dict[str, Any] | None) -> None:
        """Take the result of a trial; None where its worker died."""
        proposal = self.running.pop(trial)
        if result is None or "quality" not in result:
            self._fail(proposal, result or {"failed": "the worker died", "by_user": False})
            return
        point = Point(
            trial=-1,
            settings=proposal.settings,
            quality=result["quality"],
            p95_ms=result["p95_ms"],
            bytes=result["bytes"],
            reused=result["reused"],
            metric=self.recipe.train.metric,
            p95_range=tuple(result["p95_range"]),
        )
        seconds, values = result["seconds"], [point.quality, point.p95_ms, point.bytes]
        self.finished += 1
        if epoch := result["stopped"]:
            record_stopped(self.study, proposal, point, epoch, seconds)
            line = f"stopped after epoch {epoch}: {_line(point, 'behind')}"
        else:
            point = record(self.study, proposal, point, result["checkpoint"], seconds)
            how = "checkpoint reused" if point.reused else "trained"
            line = f"{point.trial} ({self.finished} of {self.trials}): {_line(point, how)}"
        self.proposer.tell(proposal, values, seconds, reused=point.reused, stopped=bool(epoch))
        self.failed_in_a_row = 0
        self.bar.advance(1)
        say(f"trial {line} ({seconds:.0f} s)")

    def _fail(self, proposal: Proposal, result: dict[str, Any]) -> None:
        self.proposer.drop(proposal.number)
        record_failure(self.study, proposal, result["failed"])
        self.failed += 1
        self.failed_in_a_row += 1
        self.last_failure = result
        say(f"trial failed: {result['failed']}")

    def raise_if_hopeless(self) -> None:
        """End the search where the last trials all failed.

        Raises:
            DataError: a user can mend what failed last.
            RayRecError: it is a fault of the program.
        """
        if self.failed_in_a_row >= GIVE_UP:
            kind = DataError if self.last_failure["by_user"] else RayRecError
            reason = self.last_failure["failed"]
            raise kind(f"{self.failed_in_a_row} trials failed one after another: {reason}", where="tune")


def _line(point: Point, how: str) -> str:
    return f"{point.metric} {point.quality:.4f}, p95 {point.p95_ms:.2f} ms, {point.mb:.2f} MB, {how}"
