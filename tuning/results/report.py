"""report.md: what a search found, which settings mattered for which figure, and what failed, for people."""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from app.files import write_atomically
from tuning.front import Front
from tuning.points import Point

FEWEST = 8  # trials from which on settings can be told apart
SHOWN = 10  # settings of a figure, the most important ones


def write_report(front: Front, study: optuna.Study, path: Path) -> None:
    """Write the page; `study` is the journal, by which settings are told apart."""
    points, best = front.trials, front.best
    lines = [
        f"# {study.study_name}",
        "",
        f"{len(points)} trials, {sum(p.reused for p in points)} on checkpoints that were there already;"
        f" {len(front.stopped)} further ones were behind others and stopped early.",
        "",
        "## Front",
        "",
        *_front(front),
        "",
        *(f"* {name}: {best.metric} {quality:.4f}" for name, quality in front.baselines.items()),
        "",
        "## What mattered",
        "",
        *_importances(study, best.metric),
        *_failures(front),
    ]
    write_atomically(path, ("\n".join(lines).rstrip() + "\n").encode())


def _front(front: Front) -> list[str]:
    rows = [
        f"| {p.trial}{' (chosen)' if p.trial == front.best.trial else ''} | {p.quality:.4f} |"
        f" {p.p95_ms:.3f} ({p.p95_low:.3f} to {p.p95_high:.3f}) | {p.mb:.3f} | {_settings(p)} |"
        for p in front.points
    ]
    return [f"| trial | {front.best.metric} | p95, ms | MB | settings |", "|---|---|---|---|---|", *rows]


def _settings(point: Point) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sorted(point.settings.items()))


def _importances(study: optuna.Study, metric: str) -> list[str]:
    """For each figure how much each setting says of whether a trial is among the best.

    Shares by PED-ANOVA (Watanabe et al. 2023), which compares where the best trials lie with where all do.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < FEWEST:
        return [f"With fewer than {FEWEST} trials settings cannot be told apart.", ""]
    lines = []
    for number, name in enumerate((metric, "p95_ms", "bytes")):
        values = [trial.values[number] for trial in trials]
        if len(set(values)) < 2:
            lines += [f"* {name} is the same in all trials."]
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # settings that only some trials have are left out
            shares = optuna.importance.get_param_importances(study, target=partial(_value, number))
        known = [(setting.partition("@")[0], share) for setting, share in shares.items() if share >= 0.01]
        shown = ", ".join(f"{setting} {share:.0%}" for setting, share in known[:SHOWN])
        lines += [f"* {name}: {shown or 'no setting that all trials have'}"]
    return [*lines, ""]


def _value(number: int, trial: FrozenTrial) -> float:
    """A figure of which less is better."""
    sign = -1.0 if number == 0 else 1.0
    return sign * float(trial.values[number])


def _failures(front: Front) -> list[str]:
    reasons = Counter(front.failures.values())
    if not reasons:
        return []
    return ["## Failed", "", *(f"* {count} x {reason}" for reason, count in reasons.most_common())]
