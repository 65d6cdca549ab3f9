"""What the verbs share: their options, and how they read a recipe and print a result."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.terminal import summary
from app.terminal.console import grid, table

if TYPE_CHECKING:
    from app.recipe import Recipe

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a TOML file.")]
BundleFolder = Annotated[Path, typer.Argument(help="The bundle: a folder that `export` or `run` made.")]
BundleLocation = Annotated[
    str,
    typer.Argument(help="The bundle: a folder that `export` or `run` made, or a URI (s3://, gs://...)."),
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder for the results of all stages; unchanged ones are used again.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the recipe, e.g. --set train.epochs=3 (repeatable)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Run stages again even if nothing has changed.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show Ray's log and tracebacks.")]
Store = Annotated[str, typer.Option("--store", help="Store folder of the service that is meant.")]
Port = Annotated[
    int, typer.Option("--port", help="Port of the service that is meant; by default the only one that runs.")
]
RUNS = Path("runs")  # of results, unless --out says otherwise


def load_recipe(recipe: Path, changes: list[str] | None) -> Recipe:
    """Read and check the recipe before anything heavy is imported, so that its mistakes show at once."""
    from app.recipe_check import load_checked

    return load_checked(recipe, changes or ())


def begin(recipe: Path, changes: list[str] | None, verbose: bool) -> Recipe:
    """What a verb that works on a recipe begins with: its checked recipe, Ray's log, and how it ends."""
    set_verbose(verbose)
    loaded = load_recipe(recipe, changes)
    end_by_signals()
    return loaded


def set_verbose(verbose: bool) -> None:
    """Have Ray's log and tracebacks shown, here and in processes that are started."""
    if verbose:
        os.environ["RAYREC_VERBOSE"] = "1"


def end_by_signals() -> None:
    """Let SIGTERM and SIGHUP end a verb as Ctrl-C does: what is finished is kept, and nothing left running.

    One that is ignored, as SIGHUP is under `nohup`, stays so.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def print_result(
    result: dict[str, Any], as_json: bool, rows: Callable[[dict[str, Any]], summary.Rows] = summary.of_stage
) -> None:
    """Print a result as one JSON object, or as a table of the rows that `rows` makes of it."""
    if as_json:
        print(json.dumps(result, default=str))
    else:
        table(rows(result))


def print_grid(
    result: dict[str, Any],
    as_json: bool,
    columns: Callable[[dict[str, Any]], tuple[list[str], list[list[str]]]],
) -> None:
    """Print a result as one JSON object, or as the table, head and rows, that `columns` makes of it."""
    if as_json:
        print(json.dumps(result, default=str))
    else:
        grid(*columns(result))
