"""The folder of a report: report.json for programs, report.md and plots for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.artifact import Artifact, open_artifact, publish
from app.evaluation import plots
from app.evaluation.evaluate import PROBABILITY, Report

Curve = Sequence[Mapping[str, float]]
STAGE_VERSION = 2  # raise it when the same checkpoint and settings come to give another report


def write_report(
    report: Report,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
    *,
    curve: Path | Curve = (),
) -> Artifact:
    """Publish a report as an artefact of kind "report".

    Args:
        settings, parents: of the manifest, for its cache key.
        curve: epochs of the training, each {"epoch", "loss", a validation figure, "seconds"},
            or the curve.json that holds them; a model that is not trained by epochs has none.

    Returns:
        The artefact; its figures are "figures", "intervals", "baselines" and "ratios".
    """
    epochs = _epochs(curve)
    with publish(folder, "report", settings or {}, parents or {}, STAGE_VERSION) as draft:
        content = _plain(asdict(report))
        (draft.path / "report.json").write_text(json.dumps({**content, "curve": epochs}, indent=1) + "\n")
        drawn = plots.draw(report, epochs, draft.path)
        (draft.path / "report.md").write_text(markdown(report, drawn))
        draft.figures.update({k: content[k] for k in ("figures", "intervals", "baselines", "ratios")})
    return open_artifact(folder, "report", verify=False)


def _epochs(curve: Path | Curve) -> list[dict[str, float]]:
    if isinstance(curve, Path):
        curve = json.loads(curve.read_text()) if curve.is_file() else []
    return [dict(epoch) for epoch in curve]


def _plain(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(report: Report, plots: Sequence[str] = ()) -> str:
    """The report as one page."""
    lines = [f"# {report.name}: {report.model} on the {report.part} part", ""]
    lines += [_protocol(report), ""] if report.figures else []
    lines += [f"* {note}" for note in report.notes] + [""] * bool(report.notes)
    if report.figures:
        lines += [*_figures(report), "", *_segments(report)]
        lines += ["", "How to read the figures:", "", *GLOSSARY]
    lines += ["", *(f"![{name.removesuffix('.png')}]({name})\n" for name in plots)]
    return "\n".join(lines).rstrip() + "\n"


GLOSSARY = (
    "* Ties are broken at random, so a model that scores all items alike ranks at random.",
    "* The interval holds 95 % of the values over bootstrap resamples of the users.",
    "* log_loss, accuracy, f1 and calibration_error compare each target with non-targets drawn beside it,"
    " as many as training draws; they mean something where the model's loss fits probabilities.",
    "* coverage is the share of all items that are recommended to any user; novelty is the mean"
    " self-information of the recommended items in bits, by their training events.",
    "* Users are grouped by their events in training. An unknown user is an id that the data set does not"
    " hold; an untrained one is in the data set and had no event in training. Both are ranked for with the"
    " row of the unknown user, the untrained one with the attributes of the user.",
    "* Items are grouped by their positive events in training: the head items are the fewest that make 80 %"
    " of them, the tail items all others that training met. An untrained item had no event in training and"
    " is ranked by its attributes; an unknown one was dropped from training, and each is a miss.",
    "* An item group asks for its targets alone, of the users who have any.",
)


def _protocol(report: Report) -> str:
    p = report.protocol
    against = {
        "all": f"all {p['items']:,} items" + (", without those already seen" * bool(p.get("exclude_seen"))),
        "listed": "the negatives listed with the events",
        "sampled": f"{p.get('negatives')} items that the user has not met, drawn at random",
    }[p["candidates"]]
    return f"{p['requests']:,} users, {p['targets']:,} items to find, ranked among {against}."


def _figures(report: Report) -> list[str]:
    names = list(report.baselines)
    head = ["figure", report.model, "95 % interval", *(c for name in names for c in (name, "ratio"))]
    rows = []
    for figure in _ordered(report.figures):
        low_high = report.intervals.get(figure)
        interval = f"{_number(low_high[0])} – {_number(low_high[1])}" if low_high else ""
        baselines = [
            cell
            for name in names
            for cell in (
                _number(report.baselines[name].get(figure)),
                _number(report.ratios[name].get(figure), "{:.2f} ×"),
            )
        ]
        rows.append([figure, f"**{_number(report.figures[figure])}**", interval, *baselines])
    return _table(head, rows)


def _ordered(figures: Mapping[str, float]) -> list[str]:
    """Cut-off by cut-off, what has none at the end, probabilities last."""

    def order(name: str) -> tuple[bool, int]:
        cut = name.partition("@")[2]
        return name in PROBABILITY, int(cut) if cut else 1 << 30

    return sorted(figures, key=order)


def _segments(report: Report) -> list[str]:
    shown = [name for name in ("ndcg", "hit_rate", "recall") for name in _at_middle(report, name)]
    head = ["group", "users", "targets", *shown]
    rows = [
        [name, f"{s['requests']:,}", f"{s['targets']:,}", *(_number(s[figure]) for figure in shown)]
        for name, s in report.segments.items()
    ]
    return _table(head, rows)


def _at_middle(report: Report, name: str) -> list[str]:
    """The figure at the cut-off nearest to 10."""
    cuts = sorted(int(f.partition("@")[2]) for f in report.figures if f.startswith(f"{name}@"))
    return [f"{name}@{min(cuts, key=lambda k: abs(k - 10))}"] if cuts else []


def _number(value: float | None, form: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "" if value is None else "n/a"
    return form.format(value) if form else (f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown, padded so that it reads as plain text too; the first column left, the rest right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return [line(head), line(rule), *(line(row) for row in rows)]
