"""Explains a trial: what it measured, in which settings it differs, what beats it, and how to run it."""

from __future__ import annotations

import shlex
from typing import Any

from app.files import write_atomically
from app.recipe_toml import to_toml
from tuning.front import Front, described
from tuning.points import Point, beats
from tuning.space import Settings, Space
from tuning.suggest import MODEL


def explain(front: Front, trial: int) -> dict[str, Any]:
    """What there is to know of a finished trial; writes its recipe as trial-N.toml beside the front.

    Returns:
        Number, figures and settings of the trial, p95_range, and
        beaten_by: numbers of trials of the front that are at least as good in all and better in something;
        misses: by what share of its bound it misses each limit of the budget;
        differs_from_recipe and differs_from_chosen: of each setting that differs, {"here", "there"};
        recipe: path of the file; next: the command that trains it.

    Raises:
        RecipeError: there is no such trial, or it failed; the error says why.
    """
    point = front.trial(trial)
    path = front.out / f"trial-{trial}.toml"
    write_atomically(path, to_toml(front.recipe_of(point)).encode())
    own = Space(front.recipe, (_model(front, point),), frozenset()).own(_model(front, point))
    excess = {limit.name: limit.excess(point) for limit in front.bounds}
    return {
        **described(point),
        "metric": point.metric,
        "p95_range": list(point.p95_range),
        "beaten_by": [other.trial for other in front.points if beats(other, point)],
        "misses": {name: round(share, 4) for name, share in excess.items() if share},
        "differs_from_recipe": _differences(point.settings, own),
        "differs_from_chosen": _differences(point.settings, front.best.settings),
        "chosen": front.best.trial,
        "recipe": str(path),
        "next": shlex.join(["rayrec", "run", str(path), "--out", str(front.out)]),
    }


def _model(front: Front, point: Point) -> str:
    return str(point.settings.get(MODEL, front.recipe.model.name))


def _differences(settings: Settings, others: Settings) -> dict[str, dict[str, Any]]:
    """Of each setting of a trial, where `others` have another value, both; None where they have none."""
    return {
        name: {"here": value, "there": others.get(name)}
        for name, value in sorted(settings.items())
        if others.get(name) != value
    }
