"""front.html: the trials of a search as one file without scripts or network; hovering a point shows it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from app.files import write_atomically
from tuning.front import Front
from tuning.points import COSTS, LABELS, Point

WIDTH, HEIGHT, MARGIN = 520, 360, 56  # of a panel, in pixels
STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2rem; color: #1f2328; background: #fff }
svg { margin-right: 1rem } text { font-size: 11px; fill: #59636e }
line { stroke: #d1d9e0 } .budget { stroke: #d1242f; stroke-dasharray: 4 } .baseline { stroke: #9a6700 }
circle { fill: #b8c0cc } .front { fill: #1f6feb } .chosen { stroke: #d1242f; stroke-width: 3 }
circle:hover { stroke: #1f2328; stroke-width: 2 }
"""


def write_page(front: Front, path: Path) -> None:
    """Write the page: quality against each cost, every trial with its figures and settings."""
    panels = "".join(_panel(front, cost) for cost in COSTS)
    title = f"{len(front.trials)} trials; the front is blue, the choice is ringed"
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(front.best.metric)} against its costs</h1>"
        f"<p>{html.escape(title)}. Hover a point to see its figures and settings.</p>{panels}</html>\n"
    )
    write_atomically(path, text.encode())


def _panel(front: Front, cost: str) -> str:
    points, best, baselines = front.trials, front.best, front.baselines
    costs, qualities = [p.figure(cost) for p in points], [*(p.quality for p in points), *baselines.values()]
    across = _Scale(costs, MARGIN, WIDTH - 10, logarithmic=min(costs) > 0 and max(costs) > 8 * min(costs))
    up = _Scale(qualities, HEIGHT - MARGIN, 10)
    kept = {p.trial for p in front.points}
    lines = [
        _line(across(limit.bound), 10, across(limit.bound), HEIGHT - MARGIN, "budget", "budget")
        for limit in front.bounds
        if limit.name == cost and across.holds(limit.bound)
    ]
    lines += [
        _line(MARGIN, up(quality), WIDTH - 10, up(quality), "baseline", f"{name} {quality:.4f}")
        for name, quality in baselines.items()
    ]
    dots = [
        _dot(across(p.figure(cost)), up(p.quality), p, _classes(p, best, kept))
        for p in sorted(points, key=lambda p: (p.trial in kept, p.trial == best.trial))
    ]
    ends = [(across, x, f'x="{across(x):.1f}" y="{HEIGHT - MARGIN + 16}"') for x in across.ends]
    ends += [(up, y, f'x="{MARGIN - 6}" y="{up(y):.1f}" text-anchor="end"') for y in up.ends]
    marks = "".join(f"<text {where}>{value:.4g}</text>" for _, value, where in ends)
    label = f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(LABELS[cost])}</text>'
    axes = _line(MARGIN, HEIGHT - MARGIN, WIDTH - 10, HEIGHT - MARGIN) + _line(
        MARGIN, 10, MARGIN, HEIGHT - MARGIN
    )
    shapes = "".join([axes, *lines, *dots, marks, label])
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{shapes}</svg>'


class _Scale:
    """Pixels of values, from the least at `start` to the largest at `end`."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False
    ) -> None:
        self.ends = (min(values), max(values))
        self.start, self.end, self.logarithmic = start, end, logarithmic

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (*self.ends, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.ends[0] <= value <= self.ends[1]


def _classes(point: Point, best: Point, kept: set[int]) -> str:
    return " ".join(["front"] * (point.trial in kept) + ["chosen"] * (point.trial == best.trial))


def _dot(x: float, y: float, point: Point, classes: str) -> str:
    figures = [f"{name} {value:.4g}" for name, value in point.figures().items()]
    settings = [f"{name} = {value}" for name, value in sorted(point.settings.items())]
    text = html.escape("\n".join([f"trial {point.trial}", *figures, *settings]))
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="{classes}"><title>{text}</title></circle>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "", name: str = "") -> str:
    title = f"<title>{html.escape(name)}</title>" if name else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}">{title}</line>'
