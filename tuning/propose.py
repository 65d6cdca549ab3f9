"""Which settings to try next: new training, or another compression of a trained checkpoint.

Training is what a trial pays for; compression and measurement cost seconds. A sampler over the
joint space would almost never propose the same training twice, since learning rates are
continuous. So proposals are of two kinds, drawn by what they gained for their seconds (effort.py):

* *train*: Optuna's sampler proposes everything;
* *reuse*: the training settings are those of a trial that no other beats so far, drawn from
  these (a checkpoint with many of them is looked at more often), and the sampler proposes the
  compression alone. The trial finds the checkpoint by its digest and reuses it.

Either way the sampler learns from the result: they are ordinary trials of the joint space
with some parameters fixed. No settings are proposed twice. The study here lives in memory,
where trials under way count as well, so that the journal holds finished trials only.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from app.errors import RecipeError
from app.models.discovery import model_config
from tuning.effort import Effort, is_beaten
from tuning.space import Settings, Space, changed, decoded, training_part

Direction = Literal["maximize", "minimize"]
START_UP = 6  # random trials before the sampler models the results
GUIDED = 8  # draws of a proposal by the sampler; further ones are random
TENTH = 1.1  # a latency that is less than so many times another is taken for as good
ATTEMPTS = 50  # draws after which the space counts as exhausted


@dataclass(frozen=True)
class Proposal:
    """Settings to try, beside the parameters and distributions by which Optuna stores them."""

    settings: Settings
    params: dict[str, Any]
    distributions: dict[str, optuna.distributions.BaseDistribution]
    number: int  # in the study in memory


class Proposer:
    """Proposes settings and learns from results; not thread-safe, lives in the driver.

    Args:
        space: what may be varied, and around which recipe.
        finished: earlier trials of the same study, from the journal.
    """

    def __init__(
        self, space: Space, finished: Sequence[FrozenTrial], directions: Sequence[Direction]
    ) -> None:
        self.space = space
        self.random = random.Random()
        self.guided: BaseSampler = TPESampler()
        self.at_random: BaseSampler = RandomSampler()
        self.proposals = len(finished)  # those before, and those made here
        self.study = optuna.create_study(directions=directions)
        self.study.add_trials(finished)
        trained = [t for t in finished if not t.user_attrs.get("stopped")]
        self.costs = {_key(decoded(t.params)): _costs(t.values) for t in trained}
        self.effort = Effort()
        for trial in finished:
            seconds, reused = trial.user_attrs.get("seconds", 0.0), trial.user_attrs.get("reused", False)
            self.effort.add(_costs(trial.values), seconds, reused=reused)
        self.proposed = {_key(decoded(t.params)) for t in finished}
        first = [space.encoded(space.own(model)) for model in space.models]
        self.first = [
            params
            for params in first
            if _key(space.suggest(optuna.trial.FixedTrial(params))) not in self.proposed
        ]

    def propose(self) -> Proposal | None:
        """The next settings, or None where the space has no others left."""
        self._seed()
        reuse = self._reuse_is_due()
        for attempt in range(ATTEMPTS):
            self.study.sampler = self.guided if attempt < GUIDED else self.at_random
            if self.first:
                self.study.enqueue_trial(self.first.pop(0))
            elif reuse and attempt < ATTEMPTS // 2:
                self._fix_training()
            trial = self.study.ask()
            settings = self.space.suggest(trial)
            if _key(settings) not in self.proposed and self._is_valid(settings):
                self.proposed.add(_key(settings))
                return Proposal(settings, trial.params, trial.distributions, trial.number)
            self.drop(trial.number)
        return None

    def tell(
        self,
        proposal: Proposal,
        values: Sequence[float],
        seconds: float,
        *,
        reused: bool,
        stopped: bool = False,
    ) -> None:
        """Learn what a proposal gave: quality, p95 in ms, bytes; and what it took.

        One that was stopped has left no checkpoint for others.
        """
        self.effort.add(_costs(values), seconds, reused=reused)
        if not stopped:
            self.costs[_key(proposal.settings)] = _costs(values)
        self.study.tell(proposal.number, list(values))

    def drop(self, number: int) -> None:
        """Mark a proposal as failed, so that the sampler learns nothing from it."""
        self.study.tell(number, state=TrialState.FAIL)

    def _seed(self) -> None:
        """Draw by the seed and the proposal's number: a search that goes on draws as if it had run on."""
        seed = self.space.recipe.seed + self.proposals
        self.proposals += 1
        self.random.seed(seed)
        self.guided = TPESampler(n_startup_trials=START_UP, seed=seed)
        self.at_random = RandomSampler(seed=seed)

    def _reuse_is_due(self) -> bool:
        return bool(self.costs) and self.random.random() < self.effort.chance_of_reuse()

    def _fix_training(self) -> None:
        unbeaten = [key for key, costs in self.costs.items() if not is_beaten(costs, self.costs.values())]
        chosen = _training_key(json.loads(self.random.choice(unbeaten)))
        self.study.enqueue_trial(self.space.encoded(json.loads(chosen)))

    def _is_valid(self, settings: Settings) -> bool:
        """Whether the hyperparameters agree with each other, as far as the model's Config tells."""
        try:
            model = changed(self.space.recipe, settings).model
            model_config(model.source, model.hyperparameters)
        except RecipeError:
            return False
        return True


def _costs(values: Sequence[float]) -> tuple[float, ...]:
    """Quality, latency and bytes, of which less is better; a latency is measured, and told by tenths."""
    quality, p95_ms, size = values
    return -quality, float(round(math.log(p95_ms) / math.log(TENTH))), size


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _training_key(settings: Settings) -> str:
    return _key(training_part(settings))
