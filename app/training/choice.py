"""The choice of the model: those that suit the log are trained and compared on the validation part.

The best is the one with the highest `train.metric`. Those whose paired 95 % interval below it reaches 0
are as good as far as the validation part can tell, and of these the quickest to rank are left, because
serving pays for that with every request: times within SAME_TIME of the shortest, which differ no more from
run to run. The best of them is chosen. One that after a third of its time is not half as good as the best so
far ends there, and leaves its time to the others. Each candidate is a checkpoint of its own, so that an
interrupted choice goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app.artifact import Artifact, open_artifact, publish, reuse
from app.data.dataset import Dataset
from app.errors import DataError, RecipeError, UserError
from app.evaluation.compare import paired
from app.evaluation.measure import Measurement
from app.evaluation.scorer import ModelScorer
from app.evaluation.validate import validated
from app.models.build import build_model
from app.models.discovery import model_class
from app.recipe import Recipe
from app.terminal.console import say
from app.training.checkpoint import load_checkpoint
from app.training.defaults import Candidate, candidates
from app.training.hosts import Figures
from app.training.train import checkpoint_key, fit, forget_run

STAGE_VERSION = 4  # raise it when the same recipe and data come to give another choice
RESAMPLES = 200
PROBED_USERS = 10  # ranked before a candidate learns, to see how long that takes
ENOUGH_S = 10.0  # of time for a candidate: where there is less for all, fewer learn, but learn enough
LEAST_S = 2.0  # in which learning is worth trying
IN_SIGHT_AFTER = 1 / 3  # of its time a candidate has to be ...
IN_SIGHT = 0.5  # ... at so much of the best so far
COMPARED_USERS = 2000  # that decide, at least: one ranking a candidate, where training ranks after each epoch
SAME_TIME = 1.5  # ratio of times to rank that other work on the machine may make
WITHOUT_VALIDATION = "item_knn"


@dataclass
class _Compared:
    """A candidate that has been trained, or the reason why not."""

    candidate: Candidate
    artifact: Artifact | None = None
    measured: Measurement | None = None
    seconds: float = 0.0
    rank_s: float = 0.0
    failure: str = ""


def choose(
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    out: Path,
    settings: dict[str, Any],
    parents: dict[str, str],
) -> Artifact:
    """Train and compare the candidates within `train.minutes`, and publish the choice at `out`.

    Args:
        folder: of the candidates' checkpoints, by their names.
        settings, parents: of the manifest.

    Returns:
        An artefact of kind "choice". Figures: metric, its name; users, how many were ranked; candidates,
        each with name, settings, metric (None where it failed), low and high (95 %, of its distance to the
        best), seconds, user_ms (time to rank all items for a user), bytes and failure; chosen, the name.

    Raises:
        DataError: no candidate could be trained.
    """
    deadline = time.monotonic() + 60 * recipe.train.minutes
    compared: list[_Compared] = []
    listed = candidates(dataset)
    for number, candidate in enumerate(listed):
        left = max(deadline - time.monotonic(), 0.0)
        share = left / max(1, min(len(listed) - number, int(left / ENOUGH_S)))
        compared.append(_try(recipe, dataset, candidate, folder / candidate.name, share, compared))
    figures = _judge(recipe, compared)
    with publish(out, "choice", settings, parents, STAGE_VERSION) as draft:
        draft.figures.update(figures)
        (draft.path / "choice.json").write_bytes(msgspec.json.encode(figures))
    _announce(figures)
    return open_artifact(out, "choice", verify=False)


def with_candidate(recipe: Recipe, name: str, settings: dict[str, Any]) -> Recipe:
    """The recipe with a candidate's model and settings."""
    return recipe.override({"model.name": name, **settings})


def _try(
    recipe: Recipe,
    dataset: Dataset,
    candidate: Candidate,
    out: Path,
    limit_s: float,
    before: Sequence[_Compared],
) -> _Compared:
    compared, start = _Compared(candidate), time.monotonic()
    own = with_candidate(recipe, candidate.name, candidate.settings)
    try:
        compared.artifact = reuse(out, "checkpoint", checkpoint_key(own, dataset))
        learns = model_class(candidate.name).learns
        if (
            compared.artifact is None
            and limit_s <= (LEAST_S if learns else 0.0)
            and any(c.artifact for c in before)
        ):
            compared.failure = "there was no time left (train.minutes)"
            return compared
        users = max(COMPARED_USERS, recipe.train.valid_users)
        if compared.artifact is None:
            if learns:
                _refuse_slow(own, dataset, users, limit_s)
            in_sight = partial(_refuse_far_behind, recipe.train.metric, limit_s, before)
            compared.artifact = fit(own, dataset, out, in_sight, limit_s=limit_s if learns else None)
        scorer = ModelScorer(load_checkpoint(out, dataset).model)
        ranks_from = time.monotonic()
        compared.measured = validated(own, dataset, scorer, users, recipe.seed)
        compared.rank_s = time.monotonic() - ranks_from
    except UserError as error:  # another candidate may do
        compared.artifact, compared.failure = None, str(error)
        if isinstance(error, _FarBehind):
            forget_run(out)
    compared.seconds = round(time.monotonic() - start, 2)
    if compared.measured is not None:
        figure = compared.measured.figures[recipe.train.metric]
        say(f"choose: {candidate.name}: {recipe.train.metric} {figure:.4f} in {compared.seconds:.1f} s")
    return compared


def _refuse_slow(recipe: Recipe, dataset: Dataset, users: int, limit_s: float) -> None:
    """Raise where to rank the users of the comparison would take longer than the candidate may learn.

    How long ranking takes does not depend on the weights, so that those that it begins with will do.
    """
    model = build_model(recipe.model.source, recipe.model.hyperparameters, dataset)
    scorer, start = ModelScorer(model), time.monotonic()
    probe = validated(recipe, dataset, scorer, PROBED_USERS, recipe.seed)
    if probe is None:
        return
    user_s = (time.monotonic() - start) / PROBED_USERS
    ranked = min(users, int(np.count_nonzero(np.diff(dataset.valid.indptr))))
    if ranked * user_s > limit_s:
        raise RecipeError(
            f"it ranks all items in {user_s:.2g} s a user, too long to compare it on {ranked:,} users in the"
            f" {limit_s:.0f} s that are its share",
            where="train.minutes",
            remedy=f"raise train.minutes, or choose it by model.name = {recipe.model.name!r}",
        )


class _FarBehind(RecipeError):
    """A candidate that is not worth the rest of its time."""


def _refuse_far_behind(metric: str, limit_s: float, before: Sequence[_Compared], epoch: Figures) -> None:
    """Raise where by the figures of an epoch a candidate is far behind, after a part of its time.

    Args:
        before: the other candidates so far.
    """
    figure, measured = epoch.get(metric), [c for c in before if c.measured is not None]
    if not measured or figure is None or epoch["seconds"] < IN_SIGHT_AFTER * limit_s:
        return
    best = max(measured, key=lambda c: _figure(c, metric))
    if figure < IN_SIGHT * _figure(best, metric) and _figure(best, metric) > 0:  # a gain may be below
        raise _FarBehind(
            f"after {epoch['seconds']:.0f} s of the {limit_s:.0f} s that are its share its {metric} was"
            f" {figure:.4f}, where {best.candidate.name} has {_figure(best, metric):.4f}",
            where="train.minutes",
            remedy="raise train.minutes if it has to learn for longer",
        )


def _judge(recipe: Recipe, compared: list[_Compared]) -> dict[str, Any]:
    metric = recipe.train.metric
    usable = [c for c in compared if c.artifact is not None]
    if not usable:
        raise DataError(
            f"no model could be trained ({compared[0].failure})",
            where="model.name = 'auto'",
            remedy="name a model in model.name to see what is in its way",
        )
    measured = [c for c in usable if c.measured is not None]
    rows = {c.candidate.name: _described(c, metric) for c in compared}
    if not measured:
        names = [c.candidate.name for c in usable]
        chosen = WITHOUT_VALIDATION if WITHOUT_VALIDATION in names else names[0]
        return {"metric": metric, "users": 0, "candidates": list(rows.values()), "chosen": chosen}
    best = max(measured, key=lambda c: _figure(c, metric))
    for other in measured:
        difference = paired(_of(other), _of(best), metric, RESAMPLES, recipe.seed)
        rows[other.candidate.name] |= {"low": difference.low, "high": difference.high}
    as_good = [c for c in measured if c is best or rows[c.candidate.name]["high"] >= 0]
    shortest = min(c.rank_s for c in as_good)
    quick = [c for c in as_good if c.rank_s <= SAME_TIME * shortest]
    chosen = max(quick, key=lambda c: _figure(c, metric)).candidate.name
    users = _of(best).count
    return {"metric": metric, "users": users, "candidates": list(rows.values()), "chosen": chosen}


def _of(compared: _Compared) -> Measurement:
    assert compared.measured is not None, "only candidates that were measured are compared"
    return compared.measured


def _figure(compared: _Compared, metric: str) -> float:
    figure = _of(compared).figures[metric]
    return figure if figure == figure else float("-inf")  # NaN is never the best


def _described(compared: _Compared, metric: str) -> dict[str, Any]:
    measured, artifact = compared.measured, compared.artifact
    return {
        "name": compared.candidate.name,
        "settings": compared.candidate.settings,
        "metric": None if measured is None else measured.figures[metric],
        "seconds": compared.seconds,
        "user_ms": 0.0 if measured is None else 1e3 * compared.rank_s / measured.count,
        "bytes": 0 if artifact is None else artifact.figures["bytes"],
        **({"failure": compared.failure} if compared.failure else {}),
    }


def _announce(figures: dict[str, Any]) -> None:
    for row in figures["candidates"]:
        if "failure" in row:
            say(f"choose: {row['name']} is left out: {row['failure']}")
    say(f"choose: {sentence(figures)}")


def sentence(figures: dict[str, Any]) -> str:
    """What was compared and what was chosen, in a sentence for the report."""
    rows = [row for row in figures["candidates"] if row["metric"] is not None]
    if not rows:
        return f"{figures['chosen']} was taken, because nothing is held out to compare models by"
    best = max(rows, key=lambda row: row["metric"])["name"]
    shown = ", ".join(f"{row['name']} {row['metric']:.4f}" for row in rows)
    why = (
        "the best" if best == figures["chosen"] else f"of the quickest that are not shown to be behind {best}"
    )
    measured = f"{figures['metric']} on {figures['users']:,} validation users"
    return f"{figures['chosen']} was chosen, {why}, by {measured}: {shown}"
