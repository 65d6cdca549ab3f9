"""The steps of compression: a file each, with `apply(work)`, named in `compress.steps`."""

from __future__ import annotations

import importlib
from typing import Any

from app.compression.work import Work


def apply_step(name: str, work: Work) -> dict[str, Any]:
    """Apply the step of the file `app/compression/steps/NAME.py`; returns its figures."""
    figures: dict[str, Any] = importlib.import_module(f"app.compression.steps.{name}").apply(work)
    return figures
