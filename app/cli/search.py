"""The verb of the search: tune, and what becomes of its choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import (
    RUNS,
    AsJson,
    Out,
    Port,
    RecipeFile,
    Sets,
    Store,
    Verbose,
    begin,
    print_result,
)
from app.terminal import summary
from app.terminal.console import say

if TYPE_CHECKING:
    from pathlib import Path

    from app.recipe import Recipe
    from app.serving.rollout.state import Service
    from tuning.front import Front


def tune(
    recipe: RecipeFile,
    trials: Annotated[
        int | None, typer.Option(help="Number of finished trials, earlier ones included.", min=1)
    ] = None,
    budget: Annotated[
        str, typer.Option(help='Limits that the chosen model keeps, e.g. "p95_ms<=8, mb<=20".')
    ] = "",
    add_trials: Annotated[
        int | None, typer.Option(help="Number of trials beside those that have finished.", min=1)
    ] = None,
    explain: Annotated[
        int | None, typer.Option(help="Explain a finished trial, by its number, instead of searching.", min=0)
    ] = None,
    ship: Annotated[
        bool,
        typer.Option(
            "--ship",
            help="Measure the choice as it is served, train it on train plus validation, and export it.",
        ),
    ] = False,
    deploy: Annotated[
        bool, typer.Option("--deploy", help="Ship, and deploy to the service that runs, on trial at first.")
    ] = False,
    out: Out = RUNS / "tune",
    set: Sets = None,
    store: Store = "",
    port: Port = 0,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Search hyperparameters and compression together.

    Chooses the cheapest model that keeps the quality.
    """
    loaded = begin(recipe, set, verbose)
    if explain is not None:
        _explain(loaded, out, budget, explain, json)
        return
    service = None
    if deploy:
        from app.serving.rollout import discovery

        service = discovery.find(store, port)  # before hours of work
    from tuning.tune import search

    front = search(loaded, out, trials=trials or 0, add_trials=add_trials or 0, budget=budget)
    result = front.summary()
    if ship or deploy:
        result["shipped"] = _shipped(front, service)
    print_result(result, json, summary.of_tune)
    if not json:
        say(f"Next: {_next(result)}")


def _explain(recipe: Recipe, out: Path, budget: str, trial: int, json: bool) -> None:
    from tuning.results.explain import explain
    from tuning.tune import opened

    result = explain(opened(recipe, out, budget), trial)
    print_result(result, json, summary.of_trial)
    if not json:
        say(f"Next: {result['next']}")


def _shipped(front: Front, service: Service | None) -> dict[str, Any]:
    """Ship a front's choice, and give it to the service, if there is one."""
    from tuning.ship import ship

    result = ship(front)
    if service is not None:
        from app.serving.rollout import admin
        from app.serving.rollout.state import Command

        result["deployed"] = admin.deploy(service, Command("deploy", result["bundle"]))
    return result


def _next(result: dict[str, Any]) -> str:
    """The next command: serving what was shipped, unless it is deployed, or training what was chosen."""
    shipped = result.get("shipped")
    if shipped is None:
        return str(result["next"])
    return "rayrec status" if "deployed" in shipped else f"rayrec serve {shipped['bundle']}"
