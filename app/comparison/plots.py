"""Pictures of comparisons, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import UserError
from app.evaluation.compare import headline
from app.evaluation.plots import BLUE, GREY, ORANGE, STYLE, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SURE = 0.05  # p-value below which a difference is drawn in colour
LINE_INCH = 0.34  # height of a difference


def checked_plot(path: Path) -> Path:
    """The absolute path of a plot.

    Raises:
        UserError: it is no .png file.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(
            f"{path.name!r} is no .png file", where="--out", remedy="name a file such as runs.png"
        )
    return path.absolute()


def draw_differences(result: Mapping[str, Any], path: Path) -> None:
    """Draw the differences that `compare` found, each with its interval, at `path`."""
    differences = result["differences"]
    cut = headline(next(iter(differences.values()))).partition("@")[2]
    rows = [
        (name, figure, row)
        for name, figures in differences.items()
        for figure, row in figures.items()
        if figure.endswith(f"@{cut}")
    ]

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for line, (_, _, row) in enumerate(reversed(rows)):
            colour = GREY if row["p"] >= SURE else BLUE if row["value"] > 0 else ORANGE
            arms = [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]
            axes.errorbar([row["value"]], [line], xerr=arms, fmt="o", color=colour, capsize=3)
            axes.annotate(
                f"p {row['p']:.2g}", (row["high"], line), (6, -3), textcoords="offset points", fontsize=8
            )
        labels = [f"{name}: {label_of(figure)}" for name, figure, _ in reversed(rows)]
        axes.set_yticks(range(len(rows)), labels)
        axes.axvline(0, color="#1a202c", linewidth=1)
        axes.set_xlabel(f"difference to {result['first']}, 95 % interval over {result['users']:,} users")
        axes.set_title("Better than the first to the right; grey: may be chance")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12, y=0.5 / len(rows))

    _save(path, (8.6, 1.4 + LINE_INCH * len(rows)), plot)


def draw_models(rows: Sequence[Mapping[str, Any]], figure: str, path: Path) -> None:
    """Draw the quality of models, with its interval, against what each costs.

    Args:
        rows: of `bench_models`, those that were measured.
        figure: the name of the quality.
        path: of the picture.
    """
    costs = (("seconds", "seconds of training"), ("p50_ms", "milliseconds for a request of 100 candidates"))

    def plot(whole: Figure) -> None:
        panels = whole.subplots(1, len(costs), sharey=True)
        for axes, (cost, label) in zip(panels, costs, strict=True):
            _against(axes, rows, cost)
            axes.set_xlabel(label)
        panels[0].set_ylabel(f"{label_of(figure)} on the test part, 95 % interval")
        panels[0].set_title("Quality against cost; area: bytes of the bundle; orange: in closed form")

    _save(path, (10.6, 5.0), plot)


def _against(axes: Axes, rows: Sequence[Mapping[str, Any]], cost: str) -> None:
    """One panel: each model at its cost, on a logarithmic scale because costs differ by powers of ten."""
    largest = max(row["bytes"] for row in rows)
    axes.set_xscale("log")
    for row in rows:
        x, quality = max(row[cost], 1e-3), row["test"]
        arms = [[max(0.0, quality["value"] - quality["low"])], [max(0.0, quality["high"] - quality["value"])]]
        axes.errorbar([x], [quality["value"]], yerr=arms, fmt="none", ecolor=GREY, capsize=3)
        colour = ORANGE if row["closed_form"] else BLUE
        axes.scatter([x], [quality["value"]], [30 + 370 * row["bytes"] / largest], color=colour, alpha=0.75)
        axes.annotate(row["name"], (x, quality["value"]), (7, 5), textcoords="offset points", fontsize=9)
    axes.margins(x=0.2, y=0.12)


def _save(path: Path, inches: tuple[float, float], plot: Callable[[Figure], None]) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot

    style: Any = STYLE
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style):
        figure = pyplot.figure(figsize=inches, layout="constrained")
        plot(figure)
        figure.savefig(path, dpi=144)
        pyplot.close(figure)
