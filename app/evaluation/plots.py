"""Plots of a report, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.evaluation.compare import headline
from app.evaluation.evaluate import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#8a94a6"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ee",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
Curve = Sequence[Mapping[str, float]]


def draw(report: Report, curve: Curve, folder: Path) -> list[str]:
    """Write the plots for which the report has data; returns their file names."""
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    style: Any = STYLE

    drawn = []
    with matplotlib.rc_context(style):
        for name, plot, given in (
            ("figures.png", _figures, bool(report.figures)),
            ("segments.png", _segments, bool(report.segments)),
            ("calibration.png", _calibration, bool(report.calibration)),
            ("curve.png", lambda axes, _: _curve(axes, curve), bool(curve)),
        ):
            if given:
                figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
                plot(axes, report)
                figure.savefig(folder / name, dpi=144)
                pyplot.close(figure)
                drawn.append(name)
    return drawn


def label_of(figure: str) -> str:
    """A figure's name for readers: ndcg@10 -> NDCG@10, hit_rate@5 -> hit rate@5."""
    name, at, cut = figure.partition("@")
    return (
        (name.upper() if name in ("ndcg", "mrr", "map", "auc", "gauc") else name.replace("_", " ")) + at + cut
    )


def _figures(axes: Axes, report: Report) -> None:
    cut = headline(report.figures).partition("@")[2]
    ranking = [f"{name}@{cut}" for name in ("ndcg", "hit_rate", "recall", "mrr", "map")]
    names = ranking if cut else ["auc", "gauc"]
    baselines = [(f"{name} (baseline)", figures) for name, figures in report.baselines.items()]
    bars = [(report.model, report.figures), *baselines]
    colours = [BLUE, ORANGE, GREY, "#38a169", "#805ad5"]
    width = 0.8 / len(bars)
    for index, (model, figures) in enumerate(bars):
        x = [i + (index - (len(bars) - 1) / 2) * width for i in range(len(names))]
        values = [figures[name] for name in names]
        axes.bar(x, values, width * 0.92, color=colours[index % len(colours)], label=model)
        if index == 0 and report.intervals:
            axes.errorbar(x, values, _arms(values, names, report), fmt="none", ecolor="#1a202c", capsize=3)
    axes.set_xticks(range(len(names)), [label_of(name) for name in names])
    axes.set_ylabel("mean over users" if cut else "area under the ROC curve")
    axes.set_title(f"{report.name}: figures beside the baselines, {report.part} part")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.15)
    axes.legend()


def _arms(values: Sequence[float], names: Sequence[str], report: Report) -> list[list[float]]:
    """Lengths of the error bars, below and above."""
    bounds = [report.intervals[name] for name in names]
    return [
        [max(0.0, v - low) for v, (low, _) in zip(values, bounds, strict=True)],
        [max(0.0, high - v) for v, (_, high) in zip(values, bounds, strict=True)],
    ]


def _segments(axes: Axes, report: Report) -> None:
    figure = headline(report.figures)
    names = list(report.segments)[::-1]
    values = [report.segments[name][figure] for name in names]
    bars = axes.barh(range(len(names)), values, 0.6, color=[GREY if "items" in n else BLUE for n in names])
    counts = [
        f"{v:.3f}  ({report.segments[n]['targets']:,} targets)" for n, v in zip(names, values, strict=True)
    ]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # above the line of all
    axes.bar_label(bars, counts, padding=5, bbox=white, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(
        report.figures[figure], color=ORANGE, linestyle="--", label=f"all: {report.figures[figure]:.3f}"
    )
    axes.set_xlim(0, max([*values, report.figures[figure], 1e-9]) * 1.55)
    axes.set_xlabel(f"{label_of(figure)}, mean over users" if "@" in figure else label_of(figure))
    axes.set_title("By group of users and of items")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")


def _calibration(axes: Axes, report: Report) -> None:
    predicted = [b["predicted"] for b in report.calibration]
    observed = [b["observed"] for b in report.calibration]
    total = sum(b["count"] for b in report.calibration)
    sizes = [20 + 600 * b["count"] / total for b in report.calibration]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    axes.plot(predicted, observed, color=BLUE, linewidth=1, alpha=0.5)
    axes.scatter(predicted, observed, sizes, color=BLUE, alpha=0.75, label="a bin; area: how many points")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_xlabel("predicted probability, mean of the bin")
    axes.set_ylabel("observed share of positives")
    axes.set_title(f"Calibration: expected error {report.figures['calibration_error']:.3f}")
    axes.legend(loc="upper left", markerscale=0.6)


def _curve(axes: Axes, curve: Curve) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [e["epoch"] for e in curve]
    axes.plot(epochs, [e["loss"] for e in curve], color=ORANGE, marker="o", markersize=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss", color=ORANGE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    name = _validated(curve)
    if name:
        _validation(axes, epochs, [e.get(name, math.nan) for e in curve], name)
    seconds = curve[-1].get("seconds", 0.0)  # each epoch says how long the training has taken so far
    axes.set_title(f"Training: {len(curve)} epochs, {seconds:.0f} s")


def _validated(curve: Curve) -> str | None:
    """The validation figure of a curve: the NDCG nearest to 10 if there is one, else the first that is."""
    names = [
        k for k in curve[-1] if k not in ("epoch", "loss", "seconds") and isinstance(curve[-1][k], float)
    ]
    ndcg = [name for name in names if name.startswith("ndcg@")]
    return headline(ndcg) if ndcg else next(iter(names), None)


def _validation(axes: Axes, epochs: Sequence[float], values: Sequence[float], name: str) -> None:
    right: Any = axes.twinx()
    right.plot(epochs, values, color=BLUE, marker="s", markersize=4)
    right.set_ylabel(f"validation {label_of(name)}", color=BLUE)
    right.spines["right"].set_visible(True)
    right.grid(visible=False)
    real = [(v, e) for v, e in zip(values, epochs, strict=True) if math.isfinite(v)]
    if real:
        best, epoch = max(real)
        note = f"best {best:.4f} after epoch {epoch:g}"
        right.plot([epoch], [best], "o", markersize=11, markerfacecolor="none", color=BLUE, label=note)
        right.legend(loc="center right")
