"""The verbs that compare: runs with each other, folds of a log, models on a log, formats of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli.offline import measure_speed
from app.cli.options import (
    RUNS,
    AsJson,
    Force,
    Out,
    RecipeFile,
    Sets,
    Verbose,
    begin,
    print_grid,
)
from app.cli.stages import make_stage_verb
from app.terminal import comparison
from app.terminal.console import say


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of `rayrec run`, the one to compare with first.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="A .png file for a plot of the differences.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare runs over the same test users: how far each is from the first, and whether by chance.

    Runs whose test parts or candidates differ are refused.
    """
    from app.comparison.runs import compare as compare_runs

    result = compare_runs(runs, plot=out)
    print_grid(result, json, comparison.of_runs)
    for note in result["notes"]:
        say(note)


def evaluate(
    recipe: RecipeFile,
    folds: Annotated[
        int | None,
        typer.Option(help="Evaluate on so many folds of users or events instead, each trained on its own."),
    ] = None,
    out: Out = RUNS / "latest",
    set: Sets = None,
    force: Force = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure the compressed model and the baselines.

    With --folds 5 the recipe is run on five folds of the log: mean, spread, and the figures of each.
    """
    if folds is None:
        make_stage_verb("evaluate", "")(recipe, out, set, force, json, verbose)
        return
    loaded = begin(recipe, set, verbose)
    from app.comparison.folds import cross_validate

    print_grid(cross_validate(loaded, out, folds, force=force), json, comparison.of_folds)


class _BundleByDefault(TyperGroup):
    """`rayrec bench FOLDER` is `rayrec bench bundle FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["bundle", *args]
        return super().parse_args(ctx, args)


bench = typer.Typer(
    cls=_BundleByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure how fast a bundle ranks, or compare every model on a log or every format of a model.",
)
bench.command("bundle")(measure_speed)


@bench.command("models")
def bench_models(
    recipe: RecipeFile,
    models: Annotated[str, typer.Option(help="Names, separated by commas; empty: every model.")] = "",
    minutes: Annotated[float, typer.Option(help="Minutes that a model may train.", min=0.01)] = 4.0,
    out: Out = RUNS / "models",
    set: Sets = None,
    force: Force = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare every model on the log of a recipe: quality, seconds, bytes and latency.

    Each model becomes a run of its own, which can be served and compared.
    """
    loaded = begin(recipe, set, verbose)
    from app.comparison.models import bench_models as bench_every

    names = [name.strip() for name in models.split(",") if name.strip()]
    result = bench_every(loaded, out, models=names, minutes=minutes, force=force)
    print_grid(result, json, comparison.of_models)
    if not json:
        for row in result["failed"]:
            say(f"{row['name']} is left out: {row['reason']}")
        say(f"Choose by validation; the test part reports. Quality against cost: {result['plot']}")
        say(f"Whether two differ: rayrec compare {out}/models/NAME {out}/models/OTHER")


@bench.command("formats")
def bench_formats(
    recipe: RecipeFile,
    formats: Annotated[str, typer.Option(help="Names, separated by commas; empty: every format.")] = "",
    out: Out = RUNS / "latest",
    set: Sets = None,
    force: Force = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Export the model of a recipe in every format: bytes, latency, and how far scores are from the model's.

    Each is scored in its own runtime on one thread, 1,000 requests of 100 candidates, from ids to scores.
    """
    loaded = begin(recipe, set, verbose)
    from app.comparison.formats import bench_formats as bench_every

    names = [name.strip() for name in formats.split(",") if name.strip()]
    result = bench_every(loaded, out, formats=names, force=force)
    print_grid(result, json, comparison.of_formats)
