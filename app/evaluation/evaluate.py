"""The evaluation: one ranking for each test user, figures with intervals, segments and baselines.

`Report` is the result; app.evaluation.validate is the quick form for after each epoch and for tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from app.data.dataset import Dataset
from app.errors import DataError, RecipeError
from app.evaluation import metrics
from app.evaluation.candidates import seen_of
from app.evaluation.compare import headline, kept, kept_notes, paired, ranks_of
from app.evaluation.logged.evaluate import LOGGED, evaluate_logged
from app.evaluation.measure import Measured, measure
from app.evaluation.ranking import Protocol, rank
from app.evaluation.requests import Requests, requests_of
from app.evaluation.scorer import ModelScorer, Scorer
from app.evaluation.validate import cutoffs, protocol_of
from app.features.context import median_gap
from app.models.build import build_model
from app.models.discovery import model_class, model_names
from app.recipe import Recipe
from app.recipe.section import length_of_time_us
from app.terminal.console import Progress, progress

DELAYED_USERS = 2000  # asked again at serving moments
TEST_MOMENT = "test moment"
LOST = 0.8  # share of a figure below which a serving moment is warned of
PROBABILITY = ("log_loss", "accuracy", "f1", "calibration_error")
Figures = dict[str, float]


@dataclass(frozen=True)
class Report:
    """The result of an evaluation; plain data but for `ranks`, the table of `compare.ranks_of`.

    Figures are named "ndcg@10", "auc" and the like; an interval is the 95 % one of a bootstrap
    over requests; a ratio is the model's figure over the baseline's; a difference is how far the model's
    NDCG is above a baseline's, [value, low, high] by baseline and figure, over the same requests; behind
    are the baselines whose NDCG is above the model's; delayed are figures at serving moments, by delay as
    evaluate.delay names it, of at most DELAYED_USERS users, and "test moment" the same users' figures there,
    so that both can be compared; kept is the share of a figure that the compressed model has of that before,
    where both were evaluated. A figure that cannot be computed is NaN. All are empty where nothing was held
    out.
    """

    name: str
    model: str
    part: str
    protocol: dict[str, Any]
    figures: Figures
    intervals: dict[str, list[float]]
    baselines: dict[str, Figures]
    ratios: dict[str, Figures]
    segments: dict[str, Figures]
    calibration: list[Figures]
    notes: list[str]
    differences: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    behind: list[str] = field(default_factory=list)
    delayed: dict[str, Figures] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)
    ranks: pa.Table | None = field(default=None, repr=False)


def evaluate(
    recipe: Recipe,
    dataset: Dataset,
    scorer: Scorer,
    *,
    part: str = "test",
    baselines: bool = True,
    uncompressed: Scorer | None = None,
) -> Report:
    """Evaluate on "test" or "valid", with the recipe's baselines on the same requests.

    Where the part is empty, because the split holds nothing out, the report says so and has no figures.

    Args:
        uncompressed: the model before it was compressed, by which the report says what is kept.

    Raises:
        DataError: the part has events and none of them is to be predicted, or, by logged labels, all are.
        RecipeError: listed candidates are asked for and the part lists none.
    """
    if not len(getattr(dataset, part)):
        return _nothing_held_out(recipe, part)
    names = recipe.evaluate.baselines if baselines else []
    if recipe.evaluate.candidates == LOGGED:
        for name in names:
            check_baseline(name)
        content = evaluate_logged(recipe, dataset, scorer, part, names, uncompressed)
        return Report(recipe.name, recipe.model.name, part, **content)
    protocol = protocol_of(recipe, dataset, part)
    everyone = requests_of(dataset, part)
    requests = everyone.sample(recipe.evaluate.max_users, recipe.seed)
    if not len(requests):
        raise _nothing_to_predict(dataset, part)
    measured, others, before = _measure_all(recipe, dataset, requests, scorer, protocol, names, uncompressed)
    shares = kept(measured, before, recipe.evaluate.bootstrap, recipe.seed) if before else {}
    compared = {name: _comparable(other.figures) for name, other in others.items()}
    figure = headline(measured.figures)
    delayed = _delayed(recipe, dataset, requests, scorer, protocol)
    return Report(
        name=recipe.name,
        model=recipe.model.name,
        part=part,
        protocol=_describe(dataset, requests, protocol),
        figures=measured.figures,
        intervals=measured.intervals(recipe.evaluate.bootstrap, recipe.seed),
        baselines=compared,
        ratios={name: _ratios(measured.figures, figures) for name, figures in compared.items()},
        segments=measured.segments(dataset, requests),
        calibration=measured.calibration,
        notes=[
            *dataset.artifact.figures.get("notes", []),
            *_notes(requests, everyone, protocol, measured.nan),
            *_moment_notes(dataset, delayed, figure),
            *kept_notes(shares),
        ],
        differences={
            name: {figure: [*paired(measured, other, figure, recipe.evaluate.bootstrap, recipe.seed)]}
            for name, other in others.items()
        },
        behind=[name for name, figures in compared.items() if figures[figure] > measured.figures[figure]],
        delayed=delayed,
        kept=shares,
        ranks=ranks_of(dataset, requests, measured, protocol),
    )


def _delayed(
    recipe: Recipe, dataset: Dataset, requests: Requests, scorer: Scorer, protocol: Protocol
) -> dict[str, Figures]:
    """Ranking figures at serving moments and, first, at the test moment, of the same sample of users.

    Only the context depends on the moment, so a data set without one is not ranked again.
    """
    if not recipe.evaluate.delay or not dataset.schema.context_width:
        return {}
    sample = requests.sample(DELAYED_USERS, recipe.seed)
    moments = {TEST_MOMENT: sample}
    for name in recipe.evaluate.delay:
        delay = median_gap(dataset.train) if name == "median" else length_of_time_us(name)
        moments[name] = sample.delayed(dataset, delay)
    return {
        name: measure(dataset, rank(dataset, asked, scorer, protocol), cutoffs(recipe), recipe.seed).figures
        for name, asked in moments.items()
    }


def _moment_notes(dataset: Dataset, delayed: Mapping[str, Figures], figure: str) -> list[str]:
    """Which serving moments lose much of the figure, and that a log without times has no moment."""
    if not dataset.schema.timed:
        return ["the log has no times: a request is ranked alike whenever it is asked"]
    at_test = delayed.get(TEST_MOMENT, {}).get(figure, 0.0)
    return [
        f"asked {name} after the last event, {figure} is {figures[figure]:.4f} instead of {at_test:.4f}: the"
        " model lives on how soon after the last event it is asked; leave recency out of features.context if"
        " people come back later than that"
        for name, figures in delayed.items()
        if figures[figure] < LOST * at_test
    ]


def _measure_all(
    recipe: Recipe,
    dataset: Dataset,
    requests: Requests,
    scorer: Scorer,
    protocol: Protocol,
    baselines: Sequence[str],
    uncompressed: Scorer | None,
) -> tuple[Measured, dict[str, Measured], Measured | None]:
    """The model, each baseline, and the uncompressed model; a baseline that is the model is not fitted."""
    for name in baselines:
        check_baseline(name)
    others = [name for name in baselines if not _is_the_model(name, recipe)]
    scorers = 1 + len(others) + (uncompressed is not None)
    with progress("evaluate", len(requests) * scorers) as bar:
        measured = _measure(recipe, dataset, requests, scorer, protocol, bar)
        compared = dict.fromkeys(baselines, measured)
        for name in others:
            baseline = ModelScorer(build_model(name, {}, dataset))
            compared[name] = _measure(recipe, dataset, requests, baseline, protocol, bar)
        before = None
        if uncompressed is not None:
            before = _measure(recipe, dataset, requests, uncompressed, protocol, bar)
    return measured, compared, before


def check_baseline(name: str) -> None:
    """Refuse an entry of `evaluate.baselines` that cannot be one.

    Raises:
        RecipeError: there is no such model, or it learns and would be compared untrained.
    """
    if model_class(name).learns:
        closed = [other for other in model_names() if not model_class(other).learns]
        raise RecipeError(
            f"{name!r} is trained, and a baseline is fitted in closed form",
            where="evaluate.baselines",
            remedy=f"choose among {', '.join(closed)}",
        )


def _nothing_to_predict(dataset: Dataset, part: str) -> DataError:
    return DataError(
        f"the {part} part has no positive event to predict",
        where=str(dataset.path),
        remedy=f"give [split] a larger {part} part, or check data.positive",
    )


def _nothing_held_out(recipe: Recipe, part: str) -> Report:
    note = f"nothing was held out to {part} on, so there are no figures; see [split] {part}"
    return Report(recipe.name, recipe.model.name, part, {}, {}, {}, {}, {}, {}, [], [note])


def _is_the_model(baseline: str, recipe: Recipe) -> bool:
    """Whether the model that is evaluated is this baseline, which then needs no second fit."""
    return recipe.model.source == baseline and not recipe.model.hyperparameters


def _measure(
    recipe: Recipe,
    dataset: Dataset,
    requests: Requests,
    scorer: Scorer,
    protocol: Protocol,
    bar: Progress,
) -> Measured:
    ks = cutoffs(recipe)
    # As many negatives as in training: probabilities are calibrated at the rate they were fitted at.
    negatives = max(1, recipe.train.negatives)
    ranked = rank(dataset, requests, scorer, protocol, top=max(ks), negatives=negatives, bar=bar)
    return measure(dataset, ranked, ks, recipe.seed)


def _comparable(figures: Figures) -> Figures:
    """Without figures of probabilities, which a baseline's scores are not."""
    return {name: value for name, value in figures.items() if name not in PROBABILITY}


def _ratios(figures: Mapping[str, float], other: Mapping[str, float]) -> Figures:
    """Of the figures that say how good a ranking is."""
    ranking = {k: v for k, v in other.items() if k == "auc" or k.partition("@")[0] in metrics.AT_K}
    return {k: figures[k] / v for k, v in ranking.items() if v > 0}


def _describe(dataset: Dataset, requests: Requests, protocol: Protocol) -> dict[str, Any]:
    described = asdict(protocol) | {
        "requests": len(requests),
        "targets": len(requests.target),
        "items": dataset.schema.items - 1,
    }
    if protocol.candidates != "sampled":
        del described["negatives"]
    if protocol.candidates != "all":
        del described["exclude_seen"]
    return described


def _notes(requests: Requests, everyone: Requests, protocol: Protocol, nan: int) -> list[str]:
    rows, items = seen_of(requests, slice(None))
    size = int(max(requests.target.max(), items.max(initial=0))) + 1
    again = np.isin(requests.owner * size + requests.target, rows * size + items)
    repeats = len(np.unique(requests.owner[again]))
    facts = {
        f"{len(everyone)} users could be ranked, {len(requests)} were drawn": len(everyone) - len(requests),
        f"{nan} scores were NaN and ranked last: the model is broken": nan,
        f"{(requests.target == 0).sum()} targets are items that training does not know: each is a miss": (
            (requests.target == 0).sum()
        ),
        f"{(requests.user == 0).sum()} requests are of users that training does not know": (
            (requests.user == 0).sum()
        ),
        f"{repeats} users return to an item that they had before; nothing is excluded for them": (
            repeats * (protocol.candidates == "all" and protocol.exclude_seen)
        ),
    }
    return [text for text, count in facts.items() if count]
