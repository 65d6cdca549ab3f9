"""The verbs that take a recipe: a new one, its check, its stages, and the search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

import typer

from app.cli.options import (
    RUNS,
    AsJson,
    Force,
    Out,
    RecipeFile,
    Sets,
    Verbose,
    begin,
    load_recipe,
    print_result,
    set_verbose,
)
from app.errors import UserError
from app.terminal import summary
from app.terminal.check_table import of_check
from app.terminal.console import say

# Their files are listed, not imported, so that `rayrec --help` is quick.
FORMATS = [module.name for module in iter_modules([f"{Path(__file__).parents[1]}/bundle/export/formats"])]


def init(
    folder: Annotated[Path, typer.Argument(help="Folder in which recipe.toml is written.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or globs to look at, behind --from.", show_default=False),
    ] = None,
    look: Annotated[
        bool, typer.Option("--from", help="Look at FILES (events, items, users), and fill in their columns.")
    ] = False,
    set: Sets = None,
    json: AsJson = False,
) -> None:
    """Write a recipe with every key, its default, its meaning and the values that it takes.

    `rayrec init shop --from log/*.csv items.csv` looks at the files and fills in their columns.
    """
    if look != bool(files):
        raise UserError(
            "--from stands without files" if look else f"{files[0] if files else ''!r} stands without --from",
            remedy="write `rayrec init FOLDER --from FILES...`",
        )
    from app.terminal import scaffold

    print_result(scaffold.init(folder, files or (), set or ()), json)


def explain(
    key: Annotated[
        str, typer.Argument(help="A key or table of a recipe: train.epochs, epochs, train, model.mlp.")
    ],
    json: AsJson = False,
) -> None:
    """Say what a key of a recipe does, what it takes, and which keys go with it."""
    from app.terminal.explain import explain as explain_key

    print_result(explain_key(key), json)


def check(
    recipe: RecipeFile,
    set: Sets = None,
    model: Annotated[
        bool, typer.Option("--model", help="Check the model instead: whether it keeps what models promise.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Check a bundle of a run instead: whether it answers as measured."),
    ] = None,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check the recipe and the data without training.

    Shows the schema, counts, the rows that would be rejected, and the expected time.
    """
    set_verbose(verbose)
    loaded = load_recipe(recipe, set)
    if model:
        from app.evaluation.contract import check_model

        print_result(check_model(loaded.model), json)
        return
    if bundle is not None:
        from app.parity import compare_bundle

        print_result(compare_bundle(loaded, bundle.absolute().parent, bundle.absolute()), json)
        return
    from app.data.stage import check as check_data
    from app.training.defaults import settled

    print_result(check_data(settled(loaded)), json, of_check)


def make_stage_verb(name: str, description: str) -> Callable[..., None]:
    """The verb that runs a recipe up to one stage.

    Args:
        name: of the stage.
        description: what its help says.
    """

    def run_until(
        recipe: RecipeFile,
        out: Out = RUNS / "latest",
        set: Sets = None,
        force: Force = False,
        json: AsJson = False,
        verbose: Verbose = False,
    ) -> None:
        loaded = begin(recipe, set, verbose)
        from app import pipeline

        done = pipeline.run(loaded, out.absolute(), until=name, force=force)
        artifact = done.artifacts[name]
        print_result({"path": str(artifact.path), "figures": artifact.figures, "seconds": done.seconds}, json)

    run_until.__doc__ = description
    return run_until


def export(
    recipe: RecipeFile,
    out: Out = RUNS / "latest",
    format: Annotated[
        str, typer.Option(help=f"One of {', '.join(FORMATS)}; a bundle is what is served.")
    ] = "bundle",
    set: Sets = None,
    force: Force = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make the bundle that is served, or another format."""
    loaded = begin(recipe, set, verbose)
    from app import pipeline

    done = pipeline.run(loaded, out.absolute(), force=force, format=format)
    artifact = done.artifacts["export"]
    print_result({"path": str(artifact.path), "figures": artifact.figures, "seconds": done.seconds}, json)


def run(
    recipe: RecipeFile,
    out: Out = RUNS / "latest",
    set: Sets = None,
    force: Force = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages, from the event log to a bundle."""
    loaded = begin(recipe, set, verbose)
    from app import pipeline

    result = pipeline.run(loaded, out.absolute(), force=force).summary()
    print_result(result, json, summary.of_run)
    if not json:
        say(f"Report: {out / 'report' / 'report.md'}")
        for line in summary.behind(result, str(recipe)):
            say(line)
        say(f"Next: rayrec serve {result['bundle']}")
