"""The report by logged labels, and the quick form for after each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.data.dataset import Dataset
from app.errors import DataError
from app.evaluation.compare import kept, kept_notes, paired
from app.evaluation.logged.events import LoggedEvents, logged_events, scores_of
from app.evaluation.logged.label_means import NAME, LabelMeans
from app.evaluation.logged.measure import RANKING, MeasuredLabels, measure_labels
from app.evaluation.scorer import ModelScorer, Scorer
from app.models.build import build_model
from app.recipe import Recipe
from app.terminal.console import progress

LOGGED = "logged"  # evaluate.candidates
HEADLINE = "auc"
BEFORE = "uncompressed"  # among the scorers: the model before it was compressed


def evaluate_logged(
    recipe: Recipe,
    dataset: Dataset,
    scorer: Scorer,
    part: str,
    baselines: Sequence[str],
    uncompressed: Scorer | None = None,
) -> dict[str, Any]:
    """The fields of a Report but its name, model and part.

    Beside the baselines named, which are models in closed form and have ranking figures alone, stands
    LabelMeans, a probability that knows neither tastes nor attributes.

    Raises:
        DataError: the events of the part all have one label.
    """
    everyone = logged_events(dataset, part)
    events = everyone.of_users(recipe.evaluate.max_users, recipe.seed)
    _refuse_one_label(dataset, events, part)
    scorers: dict[str, Scorer] = {"": scorer, NAME: LabelMeans(dataset)}
    scorers |= {name: ModelScorer(build_model(name, {}, dataset)) for name in baselines}
    scorers |= {BEFORE: uncompressed} if uncompressed else {}
    with progress("evaluate", len(events) * len(scorers)) as bar:
        every = {
            name: measure_labels(events, *scores_of(dataset, events, each, bar))
            for name, each in scorers.items()
        }
    measured, seed, resamples = every.pop(""), recipe.seed, recipe.evaluate.bootstrap
    shares = kept(measured, every.pop(BEFORE), resamples, seed) if uncompressed else {}
    compared = {name: _comparable(name, other) for name, other in every.items()}
    return {
        "protocol": _describe(events),
        "figures": measured.figures,
        "intervals": measured.intervals(resamples, seed),
        "baselines": compared,
        "ratios": {
            name: {figure: measured.figures[figure] / figures[figure] for figure in RANKING}
            for name, figures in compared.items()
        },
        "segments": measured.segments(dataset, events),
        "calibration": measured.calibration,
        "notes": [
            *dataset.artifact.figures.get("notes", []),
            *_notes(everyone, events, measured),
            *kept_notes(shares),
        ],
        "kept": shares,
        "differences": {
            name: {HEADLINE: [*paired(measured, other, HEADLINE, resamples, seed)]}
            for name, other in every.items()
        },
        "behind": [name for name, f in compared.items() if f[HEADLINE] > measured.figures[HEADLINE]],
    }


def validated_logged(
    recipe: Recipe, dataset: Dataset, scorer: Scorer, max_users: int, seed: int
) -> MeasuredLabels | None:
    """The figures on the valid part's events of at most `max_users` users; None where there are no events."""
    events = logged_events(dataset, "valid").of_users(max_users, seed)
    return measure_labels(events, *scores_of(dataset, events, scorer)) if len(events) else None


def _comparable(name: str, measured: MeasuredLabels) -> dict[str, float]:
    """Without figures of probabilities, which the scores of models in closed form are not."""
    return {k: v for k, v in measured.figures.items() if name == NAME or k in RANKING}


def _refuse_one_label(dataset: Dataset, events: LoggedEvents, part: str) -> None:
    positives = int((events.label > 0).sum())
    if not 0 < positives < len(events):
        raise DataError(
            f"all {len(events):,} events of the {part} part have label {int(positives > 0)}, so that no score"
            " can tell them apart",
            where=str(dataset.path),
            remedy="check data.positive and data.positive_above, or give [split] a larger part",
        )


def _describe(events: LoggedEvents) -> dict[str, Any]:
    return {
        "candidates": LOGGED,
        "requests": len(np.unique(events.user)),
        "targets": len(events),
        "positives": int((events.label > 0).sum()),
    }


def _notes(everyone: LoggedEvents, events: LoggedEvents, measured: MeasuredLabels) -> list[str]:
    facts = {
        f"the events of {len(np.unique(events.user)):,} users were drawn, {len(events):,} of"
        f" {len(everyone):,}": len(everyone) - len(events),
        f"{measured.nan} scores were NaN and counted as the lowest: the model is broken": measured.nan,
        f"{(events.item == 0).sum():,} events are of items that training does not know": (
            (events.item == 0).sum()
        ),
        f"{(events.user == 0).sum():,} events are of users that training does not know": (
            (events.user == 0).sum()
        ),
    }
    return [text for text, count in facts.items() if count]
