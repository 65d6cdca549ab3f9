"""Export: a checkpoint becomes an artefact that runs without Ray and torch, in one of several formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.artifact import Artifact, open_artifact, publish
from app.bundle.export.formats import DEFAULT, export_format
from app.bundle.export.source import ExportSource, Trained
from app.data.dataset import Dataset
from app.recipe import Recipe
from app.terminal.console import progress

STAGE_VERSION = 8  # raise it when the same checkpoint and settings come to give another export


def export(
    recipe: Recipe,
    dataset: Dataset,
    checkpoint: Trained,
    out: Path,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    figures: Mapping[str, Any],
    *,
    format: str = DEFAULT,
    **options: Any,
) -> Artifact:
    """Write a checkpoint at `out`.

    Args:
        recipe, dataset, checkpoint, figures: see ExportSource.
        out: folder of the artefact.
        settings, parents: of the manifest.
        format: a file of app/bundle/export/formats.
        options: that the format's `write` takes.

    Returns:
        An artefact whose kind is the format.

    Raises:
        RecipeError: there is no such format, it cannot hold this model, or export.unpickle does not allow it.
        MachineError: the format needs an extra that is not installed.
        RayRecError: the exported graph does not compute what the model does.
    """
    chosen = export_format(format, unpickle=recipe.export.unpickle)
    with progress("export"), publish(out, format, settings, parents, STAGE_VERSION) as draft:
        chosen.write(ExportSource(recipe, dataset, checkpoint, figures), draft, **options)
    return open_artifact(out, format, verify=False)
