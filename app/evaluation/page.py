"""The report as one page of Markdown, for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from app.evaluation.evaluate import PROBABILITY, TEST_MOMENT, Report
from app.evaluation.logged.evaluate import LOGGED
from app.evaluation.plots import label_of

BETTER_MODEL = 'Set [model] name = "auto", or search with `rayrec tune`.'


def markdown(report: Report, plots: Sequence[str] = ()) -> str:
    """The report as one page."""
    lines = [f"# {report.name}: {report.model} on the {report.part} part", ""]
    lines += [_protocol(report), ""] if report.figures else []
    lines += [f"* {note}" for note in report.notes] + [""] * bool(report.notes)
    if report.figures:
        lines += [*_figures(report), "", *_comparison(report), "", *_moments(report), *_segments(report)]
        lines += ["", "How to read the figures:", "", *(LABELS if _logged(report) else RANKINGS), *GROUPS]
    lines += ["", *(f"![{name.removesuffix('.png')}]({name})\n" for name in plots)]
    return "\n".join(lines).rstrip() + "\n"


RANKINGS = (
    "* Ties are broken at random, so a model that scores all items alike ranks at random.",
    "* The interval holds 95 % of the values over bootstrap resamples of the users.",
    "* log_loss, accuracy, f1 and calibration_error compare each target with non-targets drawn beside it,"
    " as many as training draws; they mean something where the model's loss fits probabilities.",
    "* coverage is the share of all items that are recommended to any user; novelty is the mean"
    " self-information of the recommended items in bits, by their training events.",
    "* An item group asks for its targets alone, of the users who have any.",
)
LABELS = (
    "* auc is the chance that of two events drawn at random, one with label 1 and one with label 0, the first"
    " scores higher; gauc is the same within each user, weighted by their events.",
    "* log_loss is in nats; information_gain is the share of the labels' entropy that the scores explain, 0"
    " for a model that says the mean of all labels; accuracy is at probability 1/2.",
    "* calibration_ratio is the sum of the probabilities over the number of labels 1; calibration_error is"
    " the mean gap between both within bins of probability.",
    "* label_means is the baseline that knows how an item, and a user, is on the whole, and nothing else.",
    "* The interval holds 95 % of the values over bootstrap resamples of the users, with all their events.",
)
GROUPS = (
    "* Users are grouped by their events in training. An unknown user is an id that the data set does not"
    " hold; an untrained one is in the data set and had no event in training. Both are ranked for with the"
    " row of the unknown user, the untrained one with the attributes of the user.",
    "* Items are grouped by their positive events in training: the head items are the fewest that make 80 %"
    " of them, the tail items all others that training met. An untrained item had no event in training and"
    " is ranked by its attributes; an unknown one was dropped from training, and each is a miss.",
)


def _protocol(report: Report) -> str:
    p = report.protocol
    if _logged(report):
        share = p["positives"] / p["targets"]
        return (
            f"{p['targets']:,} logged events of {p['requests']:,} users, {share:.1%} with label 1,"
            " each scored at its moment with what its user had done before."
        )
    against = {
        "all": f"all {p['items']:,} items" + (", without those already seen" * bool(p.get("exclude_seen"))),
        "listed": "the negatives listed with the events",
        "sampled": f"{p.get('negatives')} items that the user has not met, drawn at random",
    }[p["candidates"]]
    return f"{p['requests']:,} users, {p['targets']:,} items to find, ranked among {against}."


def _logged(report: Report) -> bool:
    """Whether the figures are of logged labels; else they are of rankings."""
    return bool(report.protocol.get("candidates") == LOGGED)


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


def _comparison(report: Report) -> list[str]:
    """A sentence for each baseline, the ones that rank better first."""
    sentences = []
    for name in sorted(report.differences, key=lambda baseline: baseline not in report.behind):
        for figure, (value, low, high) in report.differences[name].items():
            better = name in report.behind
            how = f"{_number(abs(value))} {'below' if better else 'above'} {name}'s"
            if math.isfinite(low):
                chance = ", which may be chance" if low <= 0 <= high else ""
                how += f" (95 % interval of the difference {low:+.4f} to {high:+.4f}{chance})"
            advice = f" **{name} ranks better than this model.** {BETTER_MODEL}" if better else ""
            sentences.append(f"* {label_of(figure)} is {how}.{advice}")
    return ["Over the same users:", "", *sentences] if sentences else []


def _moments(report: Report) -> list[str]:
    """The figures at serving moments, a row each."""
    if not report.delayed:
        return []
    shown = [name for figure in ("ndcg", "hit_rate", "recall") for name in _at_middle(report, figure)]
    rows = [
        [f"{name} after the last event" if name != TEST_MOMENT else name, *(_number(f[n]) for n in shown)]
        for name, f in report.delayed.items()
    ]
    return ["At serving moments, the same users and histories:", "", *_table(["asked", *shown], rows), ""]


def _ordered(figures: Mapping[str, float]) -> list[str]:
    """Cut-off by cut-off, what has none at the end, probabilities last."""

    def order(name: str) -> tuple[bool, int]:
        cut = name.partition("@")[2]
        return name in PROBABILITY, int(cut) if cut else 1 << 30

    return sorted(figures, key=order)


def _segments(report: Report) -> list[str]:
    shown = [name for name in ("ndcg", "hit_rate", "recall") for name in _at_middle(report, name)]
    shown = shown or ["auc", "gauc", "log_loss"]
    head = ["group", "users", "events" if _logged(report) else "targets", *shown]
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
