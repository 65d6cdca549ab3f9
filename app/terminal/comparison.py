"""What comparisons show on a terminal: of runs, of folds, of models, and of formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LESS_SHOWN = ("precision", "map", "novelty", "coverage")  # figures that stand in --json alone
Grid = tuple[list[str], list[list[str]]]  # the head, and the rows below it


def of_runs(result: Mapping[str, Any]) -> Grid:
    """A row for each run and figure, at the cut-off nearest to 10: how far it is from the first run."""
    first, *others = result["runs"]
    shown = _nearest_to_ten(first["figures"])
    rows = [
        [figure, *_difference(result["differences"][other["name"]][figure], figure, first, other)]
        for figure in shown
        for other in others
    ]
    return ["figure", "run", first["name"], "run's", "difference", "95 % interval", "p"], rows


def of_folds(result: Mapping[str, Any]) -> Grid:
    """A row for each figure at the cut-off nearest to 10: its mean and spread, each fold, and baselines."""
    shown = [name for name in _nearest_to_ten(result["figures"]) if not name.startswith(LESS_SHOWN)]
    baselines = result["baselines"]
    rows = [
        [
            name,
            *(f"{result['figures'][name][key]:.4f}" for key in ("mean", "sd")),
            *(f"{value:.4f}" for value in result["figures"][name]["folds"]),
            *(f"{figures[name]:.4f}" for figures in baselines.values()),
        ]
        for name in shown
    ]
    return ["figure", "mean", "sd", *(f"fold {n + 1}" for n in range(result["folds"])), *baselines], rows


def of_models(result: Mapping[str, Any]) -> Grid:
    """A row for each model, best on validation first: quality and half its 95 % interval, and costs."""
    figure = result["figure"]
    rows = [
        [
            row["name"],
            _with_interval(row["valid"]),
            _with_interval(row["test"]),
            f"{row['seconds']:.1f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['p50_ms']:.2f}",
        ]
        for row in result["models"]
    ]
    return ["model", f"{figure}, valid", "test", "train s", "bundle MB", "request ms"], rows


def of_formats(result: Mapping[str, Any]) -> Grid:
    """A row for each format of an export: size, latency of a request, largest difference from the model."""
    rows = [
        [
            row["name"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            f"{row['difference']:.1g}",
        ]
        for row in result["formats"]
    ]
    return [f"{result['model']} as", "MB", "p50 ms", "p95 ms", "differs by"], rows


def _with_interval(quality: Mapping[str, float] | None) -> str:
    if quality is None:
        return ""
    return f"{quality['value']:.4f} ±{(quality['high'] - quality['low']) / 2:.4f}"


def _difference(
    row: Mapping[str, float], figure: str, first: Mapping[str, Any], other: Mapping[str, Any]
) -> list[str]:
    figures = [f"{run['figures'][figure]:.4f}" for run in (first, other)]
    interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [other["name"], *figures, f"{row['value']:+.4f}", interval, f"{row['p']:.2g}"]


def _nearest_to_ten(figures: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Figures "name@k" at the k nearest to 10."""
    cuts = {int(name.partition("@")[2]) for name in figures if "@" in name}
    cut = min(cuts, key=lambda k: abs(k - 10))
    return [name for name in figures if name.endswith(f"@{cut}")]
