"""The verbs that need no service: ranking with a bundle, stored feedback, the demo, this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import RUNS, AsJson, BundleFolder, Out, Verbose, print_result, set_verbose


def rank(
    bundle: BundleFolder,
    user: Annotated[str, typer.Option(help="The user to rank for.")] = "",
    items: Annotated[str, typer.Option(help="Candidates, separated by commas; empty: all items.")] = "",
    k: Annotated[int, typer.Option(help="Number of items to return.", min=1)] = 10,
    requests: Annotated[
        Path | None, typer.Option(help="A file of requests instead, JSON lines as for /v1/rank; - is stdin.")
    ] = None,
    users: Annotated[
        str, typer.Option(help="A file or folder of users instead, each of whom gets a list; can be resumed.")
    ] = "",
    out: Annotated[Path, typer.Option(help="File for the lists of --users, .parquet or .jsonl.")] = Path(
        "lists.parquet"
    ),
    store: Annotated[
        str, typer.Option(help="Feedback for the lists of --users, a store folder or redis://...")
    ] = "",
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Rank with a bundle, without a server."""
    set_verbose(verbose)
    from app.bundle import standalone

    if users:
        from app.lists.run import rank_users

        print_result(rank_users(bundle, users, out, k=k, store=store), json)
    elif requests is not None:
        standalone.rank_lines(bundle, requests, sys.stdout)
    else:
        print_result(standalone.rank_one(bundle, user, [i for i in items.split(",") if i], k), json)


def export_feedback(
    location: Annotated[
        str, typer.Argument(help="The feedback log: the folder BUNDLE.store, or redis://...")
    ],
    out: Annotated[Path, typer.Option(help="File for the events, .parquet, .csv or .jsonl.")],
    items: Annotated[
        Path | None, typer.Option(help="File for the items that were put, with the same endings.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Write the feedback of a service to a file.

    The service may run meanwhile.
    """
    from app.stores.export import export_events

    print_result(export_events(location, out, items), json)


def measure_speed(
    bundle: BundleFolder,
    candidates: Annotated[int, typer.Option(help="Candidates per request.", min=1)] = 100,
    json: AsJson = False,
) -> None:
    """Measure how fast a bundle ranks on this machine, without HTTP."""
    from app.bundle.benchmark import measure
    from app.bundle.runtime import Ranker

    ranker = Ranker.open(bundle)
    print_result({f"batch_{n}": measure(ranker, candidates=candidates, batch=n) for n in (1, 16)}, json)


def run_demo(
    out: Out = RUNS / "demo",
    users: Annotated[int, typer.Option(help="Users of the shop.", min=50)] = 2000,
    items: Annotated[int, typer.Option(help="Items of the shop.", min=50)] = 500,
    events: Annotated[int, typer.Option(help="Events of the shop's log.", min=1000)] = 100_000,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run everything on a made-up shop.

    All stages, served requests, and a small search.
    """
    set_verbose(verbose)
    from app.terminal.demo import demo

    result = demo(out.absolute(), users=users, items=items, events=events, quiet=json)
    if json:
        print_result(result, json)


def examine_machine(json: AsJson = False) -> None:
    """Show packages, ports, memory, disk and GPUs of this machine."""
    from app.terminal.doctor import doctor

    print_result(doctor(), json)
