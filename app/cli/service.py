"""The verbs of a service: serve, and what is asked of one that runs."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.options import (
    AsJson,
    BundleLocation,
    Port,
    Sets,
    Store,
    Verbose,
    end_by_signals,
    print_result,
    set_verbose,
)
from app.errors import RecipeError
from app.terminal import summary


def serve(
    bundle: BundleLocation,
    set: Sets = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen at, on loopback unless serve.host says otherwise.")
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Number of replicas, whatever the load; by default it follows the load.", min=1),
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of each replica.", min=1)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=BUNDLE",
            help="A further model, served at /v1/models/NAME/rank (repeatable).",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Serve a bundle over HTTP until Ctrl-C."""
    set_verbose(verbose)
    end_by_signals()  # while it starts
    from app.recipe import parse
    from app.recipe_toml import parse_override
    from app.serving.service import serve as serve_bundle

    changes = dict(parse_override(text) for text in set or ())
    options = {"port": port, "cpus": cpus, "min_replicas": replicas, "max_replicas": replicas}
    changes |= {f"serve.{key}": value for key, value in options.items() if value is not None}
    if model:
        changes["serve.models"] = dict(_parse_model(text) for text in model)
    serve_bundle(bundle, parse({}, "--set").override(changes).serve, verbose=verbose)


def _parse_model(text: str) -> tuple[str, str]:
    name, equals, location = text.partition("=")
    if not equals or not location:
        raise RecipeError(f"{text!r} names no bundle", where="--model", remedy="write NAME=BUNDLE")
    return name, location


def deploy(
    bundle: BundleLocation,
    canary: Annotated[
        float,
        typer.Option("--canary", "--share", help="Per cent of the users who get it first.", min=0, max=99),
    ] = 0.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep serving both versions: an experiment.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Give it to all users at once, without a trial.")
    ] = False,
    set: Sets = None,
    store: Store = "",
    port: Port = 0,
    json: AsJson = False,
) -> None:
    """Deploy a bundle to a running service, on trial at first.

    It is verified, loaded, compared with the version that is served and given to some users, then to
    all; where it fails or is slow, it is rolled back. Without requests the trial waits for them.
    """
    from app.serving.bundle_cache import absolute
    from app.serving.rollout import admin, discovery
    from app.serving.rollout.state import Command

    limits = admin.parse_limits(set or ())
    command = Command("deploy", absolute(bundle), canary, keep, now, limits=limits)
    print_result(admin.deploy(discovery.find(store, port), command), json)


def roll_back(store: Store = "", port: Port = 0, json: AsJson = False) -> None:
    """End a trial, or return to the previous version, at once."""
    from app.serving.rollout import admin, discovery

    print_result(admin.roll_back(discovery.find(store, port)), json)


def show_status(store: Store = "", port: Port = 0, json: AsJson = False) -> None:
    """Show versions, replicas and requests of a running service."""
    from app.serving.rollout import discovery
    from app.serving.rollout.status import status

    print_result(status(discovery.find(store, port)), json, summary.of_service)


def compare_versions(
    event: Annotated[str, typer.Option(help="Event type that counts as an outcome; empty: all types.")] = "",
    promote: Annotated[
        bool, typer.Option("--promote", help="Give the new version to all users, which ends a trial.")
    ] = False,
    store: Store = "",
    port: Port = 0,
    json: AsJson = False,
) -> None:
    """Compare the two versions of `deploy --keep`.

    Shows outcomes per user and whether they differ. `rollback` returns to the old version.
    """
    from app.serving.rollout import admin, discovery
    from app.serving.rollout.status import report

    service = discovery.find(store, port)
    print_result(admin.promote(service) if promote else report(service, event), json, summary.of_experiment)


def scale(
    replicas: Annotated[int, typer.Argument(help="Number of replicas; 0: as many as the load needs.", min=0)],
    store: Store = "",
    port: Port = 0,
    json: AsJson = False,
) -> None:
    """Set how many replicas a running service has."""
    from app.serving.rollout import admin, discovery

    print_result(admin.scale(discovery.find(store, port), replicas), json)
