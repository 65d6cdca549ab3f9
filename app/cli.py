"""The command line, `rayrec VERB`: each verb calls the pipeline or the service and prints the result.

Exit codes: 0 done, 1 the user's mistake, 2 ours, 130 interrupted. Heavy imports stand inside the
verbs, so that `rayrec --help` is quick. All verbs stand in this one file, because together they are
the interface that a person meets.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import RayRecError, RecipeError
from app.terminal import summary
from app.terminal.console import say, table

if TYPE_CHECKING:
    from app.recipe import Recipe

app = typer.Typer(
    help="From an event log to a ranking service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
RUNS = Path("runs")
# Their files are listed, not imported, so that `rayrec --help` is quick.
FORMATS = [module.name for module in iter_modules([f"{Path(__file__).parent}/bundle/export/formats"])]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder in which recipe.toml is written.")],
    json: AsJson = False,
) -> None:
    """Write a recipe with every key, its default and its meaning."""
    from app.terminal import scaffold

    _print(scaffold.init(folder), json)


@app.command()
def check(
    recipe: RecipeFile,
    set: Sets = None,
    model: Annotated[
        bool, typer.Option("--model", help="Check the model instead: whether it keeps what models promise.")
    ] = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check the recipe and the data without training.

    Shows the schema, counts, the rows that would be rejected, and the expected time.
    """
    _be_verbose(verbose)
    loaded = _load(recipe, set)
    if model:
        from app.evaluation.contract import check_model

        _print(check_model(loaded.model), json)
        return
    from app.data.stage import check as check_data
    from app.models.discovery import model_config

    model_config(loaded.model.source, loaded.model.hyperparameters)
    _print(check_data(loaded), json)


def _add_stage(name: str, description: str) -> None:
    def run_until(
        recipe: RecipeFile,
        out: Out = RUNS / "latest",
        set: Sets = None,
        force: Force = False,
        json: AsJson = False,
        verbose: Verbose = False,
    ) -> None:
        _be_verbose(verbose)
        loaded = _load(recipe, set)
        from app import pipeline

        done = pipeline.run(loaded, out.absolute(), until=name, force=force)
        artifact = done.artifacts[name]
        _print({"path": str(artifact.path), "figures": artifact.figures, "seconds": done.seconds}, json)

    run_until.__doc__ = description
    app.command(name)(run_until)


_add_stage("prepare", "Clean the log and split it into a data set.")
_add_stage("train", "Train the model, or go on with an interrupted training.")
_add_stage("compress", "Make the trained model smaller, as [compress] says.")
_add_stage("evaluate", "Measure the compressed model and the baselines.")
_add_stage("refit", "Train once more on all parts, where train.refit asks for it.")


@app.command()
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
    """Make the bundle that is served, or an export in another format."""
    _be_verbose(verbose)
    loaded = _load(recipe, set)
    from app import pipeline

    done = pipeline.run(loaded, out.absolute(), force=force, format=format)
    artifact = done.artifacts["export"]
    _print({"path": str(artifact.path), "figures": artifact.figures, "seconds": done.seconds}, json)


@app.command()
def run(
    recipe: RecipeFile,
    out: Out = RUNS / "latest",
    set: Sets = None,
    force: Force = False,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages, from the event log to a bundle."""
    _be_verbose(verbose)
    loaded = _load(recipe, set)
    from app import pipeline

    result = pipeline.run(loaded, out.absolute(), force=force).summary()
    _print(result, json, summary.of_run)
    if not json:
        say(f"Report: {out / 'report' / 'report.md'}")
        say(f"Next: rayrec serve {result['bundle']}")


@app.command()
def tune(
    recipe: RecipeFile,
    trials: Annotated[
        int | None, typer.Option(help="Number of finished trials, earlier ones included.", min=1)
    ] = None,
    budget: Annotated[
        str, typer.Option(help='Limits that the chosen model keeps, e.g. "p95_ms<=8, mb<=20".')
    ] = "",
    out: Out = RUNS / "tune",
    set: Sets = None,
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Search hyperparameters and compression together.

    Chooses the cheapest model that keeps the quality.
    """
    _be_verbose(verbose)
    loaded = _load(recipe, set)
    from tuning.search import tune as search

    wanted = trials or loaded.tune.trials
    _print(search(loaded, out.absolute(), trials=wanted, budget=budget or loaded.tune.budget), json)


@app.command()
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
    _be_verbose(verbose)
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


Store = Annotated[str, typer.Option("--store", help="Store folder of the service that is meant.")]
Port = Annotated[
    int, typer.Option("--port", help="Port of the service that is meant; by default the only one that runs.")
]


@app.command()
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
    _print(admin.deploy(discovery.find(store, port), command), json)


@app.command("rollback")
def roll_back(store: Store = "", port: Port = 0, json: AsJson = False) -> None:
    """End a trial, or return to the previous version, at once."""
    from app.serving.rollout import admin, discovery

    _print(admin.roll_back(discovery.find(store, port)), json)


@app.command("status")
def show_status(store: Store = "", port: Port = 0, json: AsJson = False) -> None:
    """Show versions, replicas and requests of a running service."""
    from app.serving.rollout import discovery
    from app.serving.rollout.status import status

    _print(status(discovery.find(store, port)), json, summary.of_service)


@app.command("experiment")
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
    _print(admin.promote(service) if promote else report(service, event), json, summary.of_experiment)


@app.command()
def scale(
    replicas: Annotated[int, typer.Argument(help="Number of replicas; 0: as many as the load needs.", min=0)],
    store: Store = "",
    port: Port = 0,
    json: AsJson = False,
) -> None:
    """Set how many replicas a running service has."""
    from app.serving.rollout import admin, discovery

    _print(admin.scale(discovery.find(store, port), replicas), json)


@app.command()
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
    _be_verbose(verbose)
    from app.bundle import standalone

    if users:
        from app.lists.run import rank_users

        _print(rank_users(bundle, users, out, k=k, store=store), json)
    elif requests is not None:
        standalone.rank_lines(bundle, requests, sys.stdout)
    else:
        _print(standalone.rank_one(bundle, user, [i for i in items.split(",") if i], k), json)


@app.command("events")
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
    """Write a service's feedback to a file, while it runs or afterwards."""
    from app.stores.export import export_events

    _print(export_events(location, out, items), json)


@app.command("bench")
def measure_speed(
    bundle: BundleFolder,
    candidates: Annotated[int, typer.Option(help="Candidates per request.", min=1)] = 100,
    json: AsJson = False,
) -> None:
    """Measure how fast a bundle ranks on this machine, without HTTP."""
    from app.bundle.benchmark import measure
    from app.bundle.runtime import Ranker

    ranker = Ranker.open(bundle)
    _print({f"batch_{n}": measure(ranker, candidates=candidates, batch=n) for n in (1, 16)}, json)


@app.command("demo")
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
    _be_verbose(verbose)
    from app.terminal.demo import demo

    result = demo(out.absolute(), users=users, items=items, events=events, quiet=json)
    if json:
        _print(result, json)


@app.command("doctor")
def examine_machine(json: AsJson = False) -> None:
    """Show packages, ports, memory, disk and GPUs of this machine."""
    from app.terminal.doctor import doctor

    _print(doctor(), json)


def _load(recipe: Path, changes: list[str] | None) -> Recipe:
    """Read the recipe before anything heavy is imported, so that a mistake in it shows at once."""
    from app.recipe_toml import load

    return load(recipe, changes or ())


def _be_verbose(verbose: bool) -> None:
    if verbose:
        os.environ["RAYREC_VERBOSE"] = "1"


def _print(
    result: dict[str, Any], as_json: bool, rows: Callable[[dict[str, Any]], summary.Rows] = summary.of_stage
) -> None:
    if as_json:
        print(json.dumps(result, default=str))
    else:
        table(rows(result))


def main() -> None:
    """Run a verb, and turn an error into one message and an exit code."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
        if code == 130:  # the argument parser returns an interrupt instead of raising it
            raise KeyboardInterrupt
    except RayRecError as error:
        code = _fail(error.exit_code, error.what, error.where, error.remedy, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(130, "interrupted", "", "the same command goes on where it stopped", as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _unexpected(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception, as_json: bool) -> int:
    if format_message := getattr(error, "format_message", None):  # of the argument parser
        return _fail(1, str(format_message()), "", "see `rayrec --help`", as_json)
    if os.environ.get("RAYREC_VERBOSE"):
        traceback.print_exc()
    first = (str(error).splitlines() or [""])[0]
    remedy = "this is a fault of ours; --verbose shows where"
    return _fail(2, f"unexpected {type(error).__name__}: {first}", "", remedy, as_json)


def _fail(code: int, what: str, where: str, remedy: str, as_json: bool) -> int:
    print(RayRecError(what, where=where, remedy=remedy), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"what": what, "where": where, "remedy": remedy}}))
    return code
