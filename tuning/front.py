"""What a search found: its trials, those that no other one beats, and the one that a budget chooses."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import RecipeError
from app.recipe import Recipe
from tuning import budget as budgets
from tuning.budget import Limit
from tuning.points import Point, pareto_front
from tuning.space import changed

if TYPE_CHECKING:
    import pandas as pd

FILES = ("front.csv", "front.png", "front.html", "report.md", "best.toml")


@dataclass(frozen=True)
class Front:
    """The finished trials of a search, and what is known beside them.

    Args:
        recipe: what was searched around.
        out: folder of the search.
        trials: finished ones, in the order in which they finished; at least one.
        limits: the budget.
        baselines: the quality of models in closed form, on the same users.
        failures: of each trial that failed, by its number, the reason.
        stopped: of each trial that was stopped, by its number, the epoch after which it was.
        models: names of those that were searched over.
        study: name of the study in the journal.
    """

    recipe: Recipe
    out: Path
    trials: Sequence[Point]
    limits: Sequence[Limit] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[int, str] = field(default_factory=dict)
    stopped: Mapping[int, int] = field(default_factory=dict)
    models: Sequence[str] = ()
    study: str = ""

    @cached_property
    def points(self) -> list[Point]:
        """The trials that no other one beats, best first."""
        return pareto_front(self.trials)

    @cached_property
    def _choice(self) -> tuple[Point, bool]:
        return budgets.choose(self.trials, self.limits)

    @property
    def best(self) -> Point:
        """The trial that the budget chooses; where none keeps it, the nearest."""
        return self._choice[0]

    @property
    def within_budget(self) -> bool:
        """Whether the chosen trial keeps the budget."""
        return self._choice[1]

    @property
    def bounds(self) -> list[Limit]:
        """The budget as numbers: a share of the best quality is resolved."""
        return [limit.among(self.trials) for limit in self.limits]

    @property
    def behind(self) -> list[str]:
        """Names of the baselines that rank better than the chosen trial."""
        return [name for name, quality in self.baselines.items() if quality > self.best.quality]

    @property
    def files(self) -> dict[str, Path]:
        """What the search leaves to read: front_csv, front_png, front_html, report_md and best_toml."""
        return {name.replace(".", "_"): self.out / name for name in FILES}

    def trial(self, number: int) -> Point:
        """The finished trial with a number.

        Raises:
            RecipeError: there is none; of one that failed it says why, of one that was stopped when.
        """
        for point in self.trials:
            if point.trial == number:
                return point
        known = ", ".join(str(point.trial) for point in self.trials)
        what = f"there is no trial {number}"
        if number in self.failures:
            what = f"trial {number} failed: {self.failures[number]}"
        if number in self.stopped:
            what = f"trial {number} was behind others and stopped after epoch {self.stopped[number]}"
        raise RecipeError(what, where=str(self.out), remedy=f"choose one of {known}")

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe that `rayrec run` reproduces a trial from, with all epochs."""
        return changed(self.recipe, point.settings)

    def frame(self) -> pd.DataFrame:
        """All finished trials as a table, best quality first.

        Columns: trial, the metric, p95_ms, p95_low, p95_high, mb, reused, front (whether no other trial beats
        it), chosen, and each setting under its key of the recipe.
        """
        import pandas as pd

        kept = {point.trial for point in self.points}
        rows = [
            {
                "trial": point.trial,
                **point.figures(),
                "p95_low": point.p95_low,
                "p95_high": point.p95_high,
                "reused": point.reused,
                "front": point.trial in kept,
                "chosen": point.trial == self.best.trial,
                **point.settings,
            }
            for point in sorted(self.trials, key=lambda p: (-p.quality, p.trial))
        ]
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """The figures that `rayrec tune --json` prints.

        Returns:
            journal, study, trials (finished ones), reused, stopped, failed, metric, models, front and best
            (settings and figures), baselines (name to quality on the same users), behind (those that are
            better than the best), within_budget, next (the command that trains the best), and the paths of
            the files written.
        """
        best_toml = str(self.files["best_toml"])
        return {
            "journal": str(self.out / "journal.log"),
            "study": self.study,
            "trials": len(self.trials),
            "reused": sum(point.reused for point in self.trials),
            "stopped": len(self.stopped),
            "failed": len(self.failures),
            "metric": self.best.metric,
            "models": list(self.models),
            "front": [described(point) for point in self.points],
            "best": described(self.best),
            "baselines": {name: round(quality, 6) for name, quality in self.baselines.items()},
            "behind": self.behind,
            "within_budget": self.within_budget,
            "next": shlex.join(["rayrec", "run", best_toml, "--out", str(self.out)]),
            **{name: str(path) for name, path in self.files.items()},
        }


def described(point: Point) -> dict[str, Any]:
    """Number, figures and settings of a trial as plain data."""
    figures = {name: round(value, 6) for name, value in point.figures().items()}
    return {"trial": point.trial, **figures, "reused": point.reused, "settings": point.settings}
