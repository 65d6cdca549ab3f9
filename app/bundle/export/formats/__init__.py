"""The formats of an export, one file each; a new file is a new format, and nothing else needs a change.

A file NAME.py defines two functions, and its docstring's first line describes it:

    write(source: ExportSource, draft: Draft, **options) -> None   writes the files into draft.path
    read(path: Path) -> Score                                      something that scores like the model

A score function takes a request with its history and its moment, and gives the logit of each item. A file
whose exports can run code when they are loaded, as pickles do, also says `UNPICKLES = True`; one that needs
an extra raises `missing_extra(...)` when it is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from app.artifact import Draft
from app.bundle.export.source import ExportSource
from app.bundle.request.requests import RankRequest
from app.errors import MachineError, RecipeError

DEFAULT = "bundle"  # what `rayrec serve` takes
Score = Callable[[RankRequest], dict[str, float]]


class ExportFormat(Protocol):
    """The two functions of a format's file."""

    def write(self, source: ExportSource, draft: Draft, **options: Any) -> None:
        """Write the files of an export into the folder of a draft, and its figures into the manifest."""
        ...

    def read(self, path: Path) -> Score:
        """Open an export at `path`; raises ArtifactError where it is damaged."""
        ...


def format_names() -> list[str]:
    """Names of the formats in this folder, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def export_format(name: str, *, unpickle: bool = False) -> ExportFormat:
    """The format in the file `app/bundle/export/formats/NAME.py`.

    Args:
        name: of the format.
        unpickle: whether it may be one whose files can run code when they are loaded.

    Raises:
        RecipeError: there is no such format, the error lists those that there are; or it unpickles, and
            `unpickle` does not allow that.
        MachineError: it needs an extra that is not installed.
    """
    if name not in format_names():
        raise RecipeError(
            f"unknown format {name!r}", where="export", remedy=f"choose one of {', '.join(format_names())}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    if getattr(module, "UNPICKLES", False) and not unpickle:
        raise RecipeError(
            f"a file of the format {name} is unpickled when it is loaded, which can run any code",
            where="export.unpickle",
            remedy="set it to true to allow that, and load only files of your own; or use the format onnx",
        )
    return cast(ExportFormat, module)


def missing_extra(name: str, error: ImportError, *, also: str = "") -> MachineError:
    """The error for a format whose packages are not installed.

    Args:
        name: of the format, and of the extra in pyproject.toml.
        error: what could not be imported.
        also: a further command that installs what pip cannot resolve beside the rest.
    """
    return MachineError(
        f"the format {name} needs packages that are not installed ({error})",
        where="export",
        remedy=f"pip install 'rayrec[{name}]'" + (f" && {also}" if also else ""),
    )
