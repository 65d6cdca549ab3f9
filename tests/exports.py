"""Exports in tests: made for real, and skipped where their extra is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.bundle.export.export import export
from app.bundle.export.formats import ExportFormat, export_format
from app.bundle.export.source import Trained
from app.data.dataset import Dataset
from app.errors import MachineError
from app.events import HistoryEvent
from app.recipe import parse
from tests.bundles import NOW

ITEMS = [f"i{row}" for row in range(1, 21)]
HISTORY = [HistoryEvent("i5", "view", NOW - 7200.0), HistoryEvent("i9", "buy", NOW - 60.0)]
FIXED = ("executorch", "litert")  # formats of a fixed shape, which take seconds to lower a model


def exported(checkpoint: Trained, dataset: Dataset, out: Path, name: str) -> Path:
    recipe = parse({"name": "tiny", "export": {"unpickle": True}}, "test")
    return export(recipe, dataset, checkpoint, out, {}, {}, {}, format=name).path


def format_of(name: str) -> ExportFormat:
    """A format, or a skipped test where its extra is not installed."""
    try:
        return export_format(name, unpickle=True)
    except MachineError as error:
        pytest.skip(str(error))
