"""The folder of a report: report.json and ranks.parquet for programs, report.md and plots for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from app.artifact import Artifact, open_artifact, publish
from app.evaluation import plots
from app.evaluation.evaluate import Report
from app.evaluation.page import markdown

Curve = Sequence[Mapping[str, float]]
PUBLISHED = (
    "figures",
    "intervals",
    "baselines",
    "ratios",
    "differences",
    "behind",
    "delayed",
    "kept",
    "notes",
)
RANKS = "ranks.parquet"  # see compare.ranks_of
STAGE_VERSION = 7  # raise it when the same checkpoint and settings come to give another report


def write_report(
    report: Report,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
    *,
    curve: Path | Curve = (),
) -> Artifact:
    """Publish a report as an artefact of kind "report".

    Args:
        settings, parents: of the manifest, for its cache key.
        curve: epochs of the training, each {"epoch", "loss", a validation figure, "seconds"},
            or the curve.json that holds them; a model that is not trained by epochs has none.

    Returns:
        The artefact; its figures are the fields of the report that PUBLISHED names.
    """
    epochs = _epochs(curve)
    with publish(folder, "report", settings or {}, parents or {}, STAGE_VERSION) as draft:
        content = _plain(asdict(replace(report, ranks=None)))
        del content["ranks"]
        if report.ranks is not None:
            pq.write_table(report.ranks, draft.path / RANKS)
        (draft.path / "report.json").write_text(json.dumps({**content, "curve": epochs}, indent=1) + "\n")
        drawn = plots.draw(report, epochs, draft.path)
        (draft.path / "report.md").write_text(markdown(report, drawn))
        draft.figures.update({k: content[k] for k in PUBLISHED})
    return open_artifact(folder, "report", verify=False)


def _epochs(curve: Path | Curve) -> list[dict[str, float]]:
    if isinstance(curve, Path):
        curve = json.loads(curve.read_text()) if curve.is_file() else []
    return [dict(epoch) for epoch in curve]


def _plain(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
