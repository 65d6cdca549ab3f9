"""Writes what a search leaves to read: front.csv, front.png, front.html, report.md and best.toml."""

from __future__ import annotations

import optuna

from app.files import write_atomically
from app.recipe import Recipe
from app.recipe_toml import to_toml
from tuning.front import Front
from tuning.points import Point
from tuning.results.page import write_page
from tuning.results.plot import plot
from tuning.results.report import write_report
from tuning.results.table import write_csv


def write_results(front: Front, study: optuna.Study) -> None:
    """Write the files of a front; settings are told apart by the trials of its study."""
    files = front.files
    write_csv(front, files["front_csv"])
    plot(front, files["front_png"])
    write_page(front, files["front_html"])
    write_report(front, study, files["report_md"])
    write_best(front, front.best, front.recipe_of(front.best))


def write_best(front: Front, point: Point, recipe: Recipe) -> None:
    """Write best.toml: a recipe that was chosen, and what its trial measured."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in point.figures().items())
    head = f"# Chosen by a search: trial {point.trial}, on the validation part {figures}.\n\n"
    write_atomically(front.files["best_toml"], (head + to_toml(recipe)).encode())
