"""`rayrec compare RUN RUN ...`: how runs differ from the first one, over the same users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.comparison.plots import checked_plot, draw_differences
from app.comparison.ranks import RankedRun, read_runs, values_of
from app.comparison.significance import paired_differences

FIGURES = ("ndcg", "hit_rate", "recall", "mrr")


def compare(runs: Sequence[Path], *, plot: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Compare runs with the first of them, by the ranks that their reports keep.

    Args:
        runs: folders of `rayrec run`; models and data sets are not read.
        plot: a .png file for the differences; None: none is drawn.
        seed: of the resamples.

    Returns:
        users, targets and protocol of the test part; runs, each with name, model and figures; first, the name
        that the others are compared with; differences {name: {figure: {value, low, high, p}}}, positive where
        the run is better than the first, with a 95 % interval of a bootstrap over users and a two-sided
        p-value of a permutation test; notes; plot, where one was drawn.

    Raises:
        ArtifactError: a run without a report, or with one of an older version.
        DataError: fewer than two runs, or their test parts differ; says how.
        UserError: `plot` does not end in .png.
    """
    target = None if plot is None else checked_plot(plot)
    read = read_runs(runs)
    names = _figures_of(read[0])
    values = [values_of(run, names) for run in read]
    differences = {}
    for run, own in zip(read[1:], values[1:], strict=True):
        judged = paired_differences(own - values[0], seed)
        rows = zip(judged.value, judged.low, judged.high, judged.p, strict=True)
        differences[run.name] = {
            name: dict(zip(("value", "low", "high", "p"), map(float, row), strict=True))
            for name, row in zip(names, rows, strict=True)
        }
    result: dict[str, Any] = {
        "users": read[0].requests,
        "targets": len(read[0].ranks),
        "protocol": read[0].protocol,
        "first": read[0].name,
        "runs": [
            {
                "name": run.name,
                "model": run.model,
                "figures": dict(zip(names, own.mean(0).tolist(), strict=True)),
            }
            for run, own in zip(read, values, strict=True)
        ],
        "differences": differences,
        "notes": _notes(len(differences)),
    }
    if target is not None:
        draw_differences(result, target)
        result["plot"] = str(target)
    return result


def _figures_of(run: RankedRun) -> list[str]:
    """Names of the figures compared; where each user has one target, recall is the hit rate."""
    shown = [name for name in FIGURES if name != "recall" or len(run.ranks) > run.requests]
    return [f"{name}@{cut}" for name in shown for cut in run.cuts]


def _notes(comparisons: int) -> list[str]:
    if comparisons < 2:
        return []
    level = 0.05 / comparisons
    return [
        f"a p-value is of one comparison; of {comparisons}, those below {level:.3f} are sure (Bonferroni)"
    ]
