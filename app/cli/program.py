"""All verbs on one page, and what becomes of errors.

Exit codes: 0 done, 1 the user's mistake, 2 ours, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable

import typer

from app.cli import comparison, offline, search, service, stages
from app.errors import RayRecError

VERBS: dict[str, Callable[..., None]] = {
    "init": stages.init,
    "explain": stages.explain,
    "check": stages.check,
    "prepare": stages.make_stage_verb("prepare", "Clean the log and split it into a data set."),
    "train": stages.make_stage_verb("train", "Train the model, or go on with an interrupted training."),
    "compress": stages.make_stage_verb("compress", "Make the trained model smaller, as [compress] says."),
    "evaluate": comparison.evaluate,
    "refit": stages.make_stage_verb("refit", "Train once more on all parts, where train.refit asks for it."),
    "export": stages.export,
    "run": stages.run,
    "tune": search.tune,
    "compare": comparison.compare,
    "serve": service.serve,
    "deploy": service.deploy,
    "rollback": service.roll_back,
    "status": service.show_status,
    "experiment": service.compare_versions,
    "scale": service.scale,
    "rank": offline.rank,
    "events": offline.export_feedback,
    "demo": offline.run_demo,
    "doctor": offline.examine_machine,
}

app = typer.Typer(
    help="From an event log to a ranking service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, verb in VERBS.items():
    app.command(name)(verb)
app.add_typer(comparison.bench, name="bench")


def main() -> None:
    """Run a verb, and turn an error into one message and an exit code."""
    as_json = "--json" in sys.argv
    if "--verbose" not in sys.argv:
        _silence_libraries()
    try:
        code = app(standalone_mode=False)
        if code == 130:  # the argument parser returns an interrupt instead of raising it
            raise KeyboardInterrupt
    except RayRecError as error:
        code = _fail(error.exit_code, error.what, error.where, error.remedy, as_json)
    except (KeyboardInterrupt, typer.Abort):
        remedy = "the same command goes on where it stopped"
        if "serve" in sys.argv[1:2]:
            remedy = "the service has ended; every event that was acknowledged is stored"
        code = _fail(130, "interrupted", "", remedy, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        code = _unexpected(error, as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _silence_libraries() -> None:
    """Keep warnings of libraries off the screen, unless python or the environment asks for them."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not (sys.warnoptions or os.environ.get("RAYREC_VERBOSE")):
        warnings.simplefilter("ignore")


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
