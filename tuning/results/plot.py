"""front.png: the trials of a search, quality against each cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from app.files import replacing
from tuning.front import Front
from tuning.points import LABELS, Point

FRONT, OTHER, BEST, BASELINE = "#1f6feb", "#b8c0cc", "#d1242f", "#9a6700"
STYLES = (":", "-.")


def plot(front: Front, path: Path) -> None:
    """Quality against latency and against bytes; front coloured, choice ringed, baselines as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, (name, label) in zip(axes, LABELS.items(), strict=True):
        _panel(axis, front, name)
        axis.set_xlabel(label)
        for bound in (limit.bound for limit in front.bounds if limit.name == name):
            axis.axvline(bound, color=BEST, linewidth=1, linestyle="--", label="budget")
        for (baseline, quality), style in zip(front.baselines.items(), cycle(STYLES), strict=False):
            axis.axhline(quality, color=BASELINE, linewidth=1.2, linestyle=style, label=baseline, zorder=1)
    axes[0].set_ylabel(f"{front.best.metric}, validation")
    named = {label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=len(named), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")
    pyplot.close(figure)


def _panel(axis: Any, front: Front, name: str) -> None:
    points, kept, best = front.trials, front.points, front.best
    rest = [p for p in points if p not in kept]
    for group, colour, size, label in ((rest, OTHER, 26, "other trials"), (kept, FRONT, 38, "front")):
        if group:
            values = [p.figure(name) for p in group], [p.quality for p in group]
            axis.scatter(*values, s=size, color=colour, label=label, zorder=3 if group is kept else 2)
    stairs = zip(*_stairs(kept, name), strict=True)
    axis.plot(*stairs, drawstyle="steps-post", color=FRONT, linewidth=1, alpha=0.5, zorder=1)
    ring: dict[str, Any] = {"s": 130, "facecolors": "none", "edgecolors": BEST, "linewidths": 1.6}
    axis.scatter(best.figure(name), best.quality, label="chosen", zorder=4, **ring)
    if max(p.figure(name) for p in points) > 8 * min(p.figure(name) for p in points):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(color="#e6e9ee", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _stairs(kept: Sequence[Point], name: str) -> list[tuple[float, float]]:
    """The best quality to be had at each cost: the front as this panel's one cost shows it."""
    steps: list[tuple[float, float]] = []
    for point in sorted(kept, key=lambda p: (p.figure(name), -p.quality)):
        if not steps or point.quality > steps[-1][1]:
            steps.append((point.figure(name), point.quality))
    return steps
